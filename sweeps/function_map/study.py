"""A function of one's own, or dynamics of one's own, over any axes: what `sweeps.sweep` runs."""

import dataclasses
import functools
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from relu_sgd import Status
from sweeps.function_map.subject import Subject
from sweeps.runtime import arithmetic
from sweeps.runtime.engine import Start, default_lanes, map_on_devices, run_on_devices
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError

__all__ = ["FunctionMap", "is_dynamics", "keys_of"]

# Names that the summary has columns of.
_RESERVED = {"seed", "runs", "probability", "key"}


def is_dynamics(value: Any) -> bool:
    """Whether something has the methods of `relu_sgd.Dynamics`."""
    methods = ("init", "advance_to", "done", "result")
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


@jax.jit
def _fold(words: Array, seeds: Array) -> Array:
    cell = functools.reduce(jax.random.fold_in, words, arithmetic.key(0))
    return jax.vmap(lambda seed: jax.random.fold_in(cell, seed))(seeds)


def keys_of(cell: Mapping[str, Any], seeds: range) -> Key[Array, " seeds"]:
    """The keys of the runs of a cell: each depends on its seed and the axes' names and values alone."""
    digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).digest()
    words = np.frombuffer(digest[:8], ">u4").astype(np.uint32)
    return _fold(words, np.arange(seeds.start, seeds.stop, dtype=np.uint32))


def _kind_of(dtype: Any) -> np.dtype:
    """The type that values are stored in: floats of fewer than 32 bits as 32."""
    is_short = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return np.dtype(np.float32 if is_short else dtype)


def _fields(result: Any) -> Mapping[str, Any] | None:
    """The parts of what dynamics return, by name."""
    if isinstance(result, Mapping):
        return result
    if hasattr(result, "_asdict"):
        return result._asdict()
    if dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return None


def _is_number(value: Any) -> bool:
    if not jax.tree_util.all_leaves([value]):
        return False
    try:
        dtype = jnp.result_type(value)
    except (TypeError, ValueError):
        return False
    return jnp.issubdtype(dtype, jnp.bool) or jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FunctionMap(Study):
    """A map of one's own; see `sweeps.sweep`. Its fields are no flags: functions do not come from a command line.

    Attributes:
      run: the function of (key, **cell) to a dictionary of scalars; with `start` dynamics, or a function of the cell to
        dynamics.
      start: (key, **cell) to (params, problem); None where `run` is all.
      measure: (params, problem, result) to further scalars, of dynamics.
      grid: name and values of every axis.
      runs: the seeds of every cell.
      num_steps: after which dynamics end.
      precision: "float32" or "float64".
      kinds: name to type of what is kept of a run; empty before it is known.
    """

    name = "function_map"
    reporter = "sweeps.function_map.report:report"
    statuses: ClassVar = {
        code: Status(code).name.lower().replace("_", " ") if code in set(Status) else f"status {code}"
        for code in range(1, 128)
    }
    execution_groups = ()
    nan_is_missing = False

    run: Subject
    start: Subject | None = None
    measure: Subject | None = None
    grid: tuple[tuple[str, tuple[Any, ...]], ...]
    runs: range
    num_steps: int = 0
    precision: str
    kinds: tuple[tuple[str, str], ...] = ()

    @property
    def subjects(self) -> dict[str, Subject]:
        """The functions, by what they are for."""
        given = {"run": self.run, "start": self.start, "measure": self.measure}
        return {name: value for name, value in given.items() if value is not None}

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """As given."""
        return dict(self.grid)

    def seeds(self) -> range:
        """As given."""
        return self.runs

    @property
    def arithmetic(self) -> str:
        """As given."""
        return self.precision

    @property
    def metrics(self) -> Metrics:
        """What the function returns."""
        kept = {name: (np.dtype(kind), name) for name, kind in self.kinds if name != "status"}
        return {**kept, "status": (np.int8, "0 pending, 1 done or converged, others as the function says")}

    def science(self) -> dict[str, Any]:
        """Functions with their sources, the grid, and what dynamics are told."""
        return {
            **{name: value.name for name, value in self.subjects.items()},
            "source": {name: value.source for name, value in self.subjects.items()},
            "axes": {name: list(values) for name, values in self.grid},
            "seeds": [self.runs.start, self.runs.stop],
            "num_steps": self.num_steps,
            "precision": self.precision,
        }

    def flagfile(self, block: Sequence[int] = ()) -> str:
        """There are no flags."""
        return f"# Made by sweeps.sweep of {self.run.name}, which repeats it.\n"

    def check_edits(self, there: Mapping[str, Any], out: Path) -> None:
        """Refuses the results of functions that were edited since.

        Args:
          there: the science of the results.
          out: their folder.

        Raises:
          UsageError: see above.
        """
        sources = there.get("source", {})
        for name, value in self.subjects.items():
            before = sources.get(name) if isinstance(sources, dict) else None
            if there.get(name) == value.name and before not in (None, value.source):
                raise UsageError(
                    f"--out: {out} has results of {value.name} as it was before an edit (source {before}, now "
                    f"{value.source}); take another folder, or undo the edit"
                )

    # What is run.

    def discover(self) -> dict[str, str]:
        """Name to type of what is kept of a run, from tracing the first and the last cell of the grid.

        Raises:
          UsageError: a function cannot be called like this, or returns something else than named scalars.
        """
        cells = [{name: values[at] for name, values in self.grid} for at in (0, -1)]
        key = jax.eval_shape(lambda: arithmetic.key(0))
        found: list[dict[str, Any]] = []
        for cell in cells:
            self._check_signatures(cell)
            found.append(jax.eval_shape(functools.partial(self._traced, cell), key))
        first, last = found
        self._check_names(set(first), set(last), cells[1])
        return {name: str(_kind_of(jnp.result_type(first[name], last[name]))) for name in first}

    def _check_signatures(self, cell: Mapping[str, Any]) -> None:
        called = self.run if self.start is None else self.start
        self._check_signature(called, "(key, **axes)", None, **cell)
        if self.start is not None and not is_dynamics(self.run.value):
            self._check_signature(self.run, "(**axes)", **cell)
        if self.measure is not None:
            self._check_signature(self.measure, "(params, problem, result)", None, None, None)

    def _check_signature(self, called: Subject, form: str, *arguments: Any, **keywords: Any) -> None:
        try:
            inspect.signature(called.value).bind(*arguments, **keywords)
        except TypeError as error:
            axes = ", ".join(dict(self.grid))
            raise UsageError(f"{called.name} must take {form}, with the axes {axes}: {error}") from error
        except ValueError:
            pass  # Python cannot tell.

    def dynamics(self, cell: Mapping[str, Any]) -> Any:
        """The dynamics of a cell.

        Raises:
          UsageError: the function returns none.
        """
        if is_dynamics(self.run.value):
            return self.run.value
        made = self.run.value(**cell)
        if not is_dynamics(made):
            raise UsageError(
                f"{self.run.name} must return dynamics (init, advance_to, done, result) when there is a start, got "
                f"{type(made).__name__}"
            )
        return made

    def begin(self, cell: Mapping[str, Any], key: Key[Array, ""]) -> Start:
        """What the dynamics of a run begin with.

        Raises:
          UsageError: `start` returns no pair.
        """
        assert self.start is not None
        drawing, running = jax.random.split(key)
        pair = self.start.value(drawing, **cell)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UsageError(f"{self.start.name} must return (params, problem), got {type(pair).__name__}")
        return Start(problem=pair[1], params=pair[0], key=running)

    def _traced(self, cell: Mapping[str, Any], key: Key[Array, ""]) -> dict[str, Array]:
        """A run without its steps, for the names and types of what it returns."""
        if self.start is None:
            return self.named(cell, self.run.value(key, **cell))
        start, dynamics = self.begin(cell, key), self.dynamics(cell)
        result = dynamics.result(dynamics.init(*start))
        return self.named(cell, {**self.scalars(result), **self.measured(start, result)})

    def scalars(self, result: Any) -> dict[str, Any]:
        """The named scalars among what dynamics return.

        Raises:
          UsageError: there are none.
        """
        fields = _fields(result)
        kept = {name: value for name, value in (fields or {}).items() if _is_number(value) and jnp.ndim(value) == 0}
        if not kept and self.measure is None:
            raise UsageError(f"the result of {self.run.name} has no named scalars; give a `measure`")
        return kept

    def measured(self, start: Start, result: Any) -> dict[str, Any]:
        """What `measure` says of a run."""
        if self.measure is None:
            return {}
        returned = self.measure.value(start.params, start.problem, result)
        return self._checked(self.measure, returned)

    def _checked(self, called: Subject, returned: Any) -> dict[str, Array]:
        """What a function returned, when it is named scalars."""
        if not isinstance(returned, Mapping):
            raise UsageError(f"{called.name} must return a dict of named scalars, got {type(returned).__name__}")
        if not returned:
            raise UsageError(f"{called.name} must return a dict of named scalars, got an empty one")
        for name, value in returned.items():
            if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED or name in dict(self.grid):
                raise UsageError(f"{called.name} returns {name!r}, which cannot be the name of a scalar here")
            if not _is_number(value):
                raise UsageError(f"{called.name} returns {name}, which is no number but {type(value).__name__}")
            if jnp.shape(value) != ():
                raise UsageError(f"{called.name} returns {name} of shape {jnp.shape(value)}, and must return scalars")
            if name == "status" and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
                raise UsageError(f"{called.name} returns a status that is no whole number")
        return dict(returned)

    def named(self, cell: Mapping[str, Any], returned: Any) -> dict[str, Array]:
        """What is kept of a run, as arrays of their types.

        Raises:
          UsageError: it is not named scalars, or not those that are known.
        """
        values = self._checked(self.run, returned)
        if not self.kinds:
            return {name: jnp.asarray(value) for name, value in values.items()}
        self._check_names(set(dict(self.kinds)), set(values), cell)
        return {name: self._cast(name, values[name], kind, cell) for name, kind in self.kinds}

    def _cast(self, name: str, value: Any, kind: str, cell: Mapping[str, Any]) -> Array:
        found = _kind_of(jnp.result_type(value))
        if not np.can_cast(found, np.dtype(kind), "same_kind"):
            raise UsageError(f"{self.run.name} returns {name} of type {found} at {_words(cell)}, and {kind} before")
        return jnp.asarray(value, kind)

    def _check_names(self, known: set[str], found: set[str], cell: Mapping[str, Any]) -> None:
        if known != found:
            raise UsageError(
                f"{self.run.name} returns {', '.join(sorted(found))} at {_words(cell)}, and "
                f"{', '.join(sorted(known))} before"
            )

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """The seeds of a tile, a cell after the other."""
        timings: Timings = {"drawing": 0.0, "compilation": 0.0, "running": 0.0}
        devices = jax.local_devices()[: execution.num_devices or None]
        parts = []
        for cell in tile.cells():
            begun = time.perf_counter()
            keys = keys_of(cell, tile.seeds)
            timings["drawing"] += time.perf_counter() - begun
            follow = self._map_function if self.start is None else self._map_dynamics
            records, spent = follow(cell, keys, execution, devices)
            parts.append(self._finished(cell, records, len(tile.seeds)))
            timings |= {name: timings[name] + seconds for name, seconds in spent.items()}
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, timings

    def _map_function(
        self, cell: Mapping[str, Any], keys: Array, execution: Execution, devices: list[jax.Device]
    ) -> tuple[Any, Timings]:
        lanes = execution.lanes or default_lanes(jax.default_backend(), interruptible=False)
        follow: Callable[[Any], Any] = lambda key: self.named(cell, self.run.value(key, **cell))
        return map_on_devices(follow, keys, lanes=lanes, devices=devices)

    def _map_dynamics(
        self, cell: Mapping[str, Any], keys: Array, execution: Execution, devices: list[jax.Device]
    ) -> tuple[Any, Timings]:
        side_by_side = execution.lanes or default_lanes(jax.default_backend(), interruptible=False)
        starts, drawing = map_on_devices(functools.partial(self.begin, cell), keys, lanes=side_by_side, devices=devices)
        num_weights = sum(leaf[0].size for leaf in jax.tree.leaves(starts.params))
        lanes = execution.lanes or default_lanes(jax.default_backend(), num_weights)
        results, running = run_on_devices(
            self.dynamics(cell),
            starts,
            self.num_steps,
            lanes=lanes,
            steps_per_chunk=execution.steps_per_chunk,
            devices=devices,
        )

        def read(both: tuple[Start, Any]) -> dict[str, Array]:
            start, result = both
            return self.named(cell, {**self.scalars(result), **self.measured(start, result)})

        records, reading = map_on_devices(read, (starts, results), lanes=side_by_side, devices=devices)
        return records, {name: drawing[name] + running[name] + reading[name] for name in running}

    def _finished(self, cell: Mapping[str, Any], records: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
        """The records of a cell, each run with a status that says it is done."""
        status = np.asarray(records.get("status", np.ones(count)))
        if not ((status >= 1) & (status <= 127)).all():
            wrong = status[(status < 1) | (status > 127)][0]
            raise UsageError(
                f"{self.run.name} returns the status {wrong} at {_words(cell)}; a status is 1 (success) to 127"
            )
        return {**{name: np.asarray(value) for name, value in records.items()}, "status": status.astype(np.int8)}


def _words(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in cell.items())
