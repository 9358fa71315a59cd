"""A study made of somebody's own function, or of own `Dynamics` with a law of their starts, over any axes."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import operator
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from relu_sgd.dynamics import Status
from sweeps.own_study.current import check_current
from sweeps.runtime import arithmetic, sources
from sweeps.runtime.engine import Start, default_lanes, map_on_devices, run_on_devices
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Code", "OwnStudy"]

_STATUS = "how the run ended, see relu_sgd.Status"
_DYNAMICS = ("init", "advance_to", "done", "result")


@dataclasses.dataclass(frozen=True)
class Code:
    """Something defined in Python: what is run.

    Attributes:
      name: file and name, for readers.
      module: that it is in; "__main__" is the script that was started.
      attribute: its name there, "" where other processes cannot import it.
      source: hash of its source.
      local: the thing itself; it does not travel to other processes.
    """

    name: str
    module: str
    attribute: str
    source: str
    local: Any

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "local": None}

    def __str__(self) -> str:
        return f"{self.name}@{self.source}"

    @classmethod
    def of(cls, value: Any, beside: Any = None) -> "Code":
        """A function, or an object that is a variable of the module in which the function `beside` is defined.

        Raises:
          UsageError: it has no name, or is made of values that a hash of its source would not know.
        """
        function = inspect.unwrap(value) if inspect.isfunction(inspect.unwrap(value)) else None
        if function is None:
            variables = getattr(inspect.unwrap(beside), "__globals__", {})
            attribute = next((name for name, own in variables.items() if own is value), "")
            if not attribute:
                raise UsageError(
                    f"run: a {type(value).__name__} must be a variable at the top level of the file that defines "
                    "start, so that its name and source can be kept"
                )
            source = sources.source_hash(beside)
            module = sys.modules.get(variables.get("__name__", ""))
            is_importable = module is not None and vars(module) is variables and "__file__" in variables
            file = Path(variables.get("__file__", None) or "interpreter")
            home = module.__name__ if module is not None else ""
            return cls(f"{file.name}:{attribute}", home, attribute if is_importable else "", source, value)
        name = function.__qualname__.rpartition("<locals>.")[2]
        if "<lambda>" in name or function.__closure__:
            what = "a lambda has no name" if "<lambda>" in name else f"{name} uses variables of the function around it"
            raise UsageError(f"run: {what}, which the store could not keep; define a function of its arguments alone")
        file = Path(function.__code__.co_filename)
        module_name = function.__module__ or ""
        found: Any = None
        if "<" not in function.__qualname__ and module_name in sys.modules:
            found = getattr(sys.modules[module_name], function.__qualname__, None)
        importable = found is value and file.is_file()
        attribute = function.__qualname__ if importable else ""
        return cls(f"{file.name}:{name}", module_name, attribute, sources.source_hash(function), value)

    def value(self) -> Any:
        """The thing, imported where it has to be.

        Raises:
          UsageError: it is not there, or was edited since.
        """
        if self.local is not None:
            return self.local
        try:
            value = operator.attrgetter(self.attribute)(importlib.import_module(self.module))
        except (ImportError, AttributeError) as error:
            raise UsageError(f"run: a worker process cannot import {self.name} ({error})") from error
        if inspect.isfunction(inspect.unwrap(value)) and sources.source_hash(value) != self.source:
            raise UsageError(
                f"run: {self.name} was edited while the sweep ran; the same command begins anew or refuses"
            )
        return value


def _plain(record: Any, num_leading: int = 0) -> dict[str, Any]:
    """What is kept of the result of `Dynamics`, or of many along a leading axis: all of a dictionary, the numbers of
    anything else.
    """
    if isinstance(record, Mapping):
        return dict(record)
    values = record._asdict() if hasattr(record, "_asdict") else vars(record)
    is_number = lambda value: hasattr(value, "dtype") and jnp.ndim(value) == num_leading
    return {name: value for name, value in values.items() if is_number(value)}


def _checked(record: Any, taken: tuple[str, ...]) -> dict[str, Array]:
    """A record with its status."""
    if not isinstance(record, Mapping) or not record or not all(isinstance(name, str) for name in record):
        raise UsageError(f"run: must return a dictionary of named numbers and arrays, got {type(record).__name__}")
    if clash := sorted({*taken, "seed"} & set(record)):
        raise UsageError(f"run: returns {clash[0]!r}, which is the name of an axis")
    try:
        values = {name: jnp.asarray(value) for name, value in record.items()}
    except (TypeError, ValueError) as error:
        raise UsageError(f"run: must return numbers and arrays: {str(error).splitlines()[0]}") from error
    status = values.get("status", jnp.int8(Status.CONVERGED))
    if status.shape != () or not jnp.issubdtype(status.dtype, jnp.integer):
        raise UsageError(
            f"run: the status must be one whole number of relu_sgd.Status, got {status.dtype}{status.shape}"
        )
    return {**values, "status": status.astype(jnp.int8)}


def _run(study: "OwnStudy", cell: tuple[tuple[str, Any], ...], key: Key[Array, ""]) -> dict[str, Array]:
    """One run of a function."""
    return _checked(study.run.value()(key, **dict(cell)), tuple(study.grid))


def _begin(study: "OwnStudy", cell: tuple[tuple[str, Any], ...], key: Key[Array, ""]) -> Start:
    """The start of one run of `Dynamics`."""
    assert study.start is not None
    first, rest = jax.random.split(key)
    pair = study.start.value()(first, **dict(cell))
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise UsageError(f"start: must return (params, problem), got {type(pair).__name__}")
    return Start(pair[1], pair[0], rest)


def _measure(study: "OwnStudy", both: tuple[Start, Any]) -> dict[str, Array]:
    """What is kept of a run of `Dynamics` besides its result."""
    if study.measure is None:
        return {}
    start, result = both
    record = study.measure.value()(start.params, start.problem, result)
    if not isinstance(record, Mapping):
        raise UsageError(f"measure: must return a dictionary of named numbers and arrays, got {type(record).__name__}")
    return {name: jnp.asarray(value) for name, value in record.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnStudy(Study):
    """See `sweeps.sweep`; it has no flags.

    Attributes:
      run: a function of (key, **axes), or `Dynamics`, or a function of **axes that makes them.
      start: of `Dynamics`, a function of (key, **axes) to (params, problem).
      num_steps: of `Dynamics`, the most steps.
      measure: of `Dynamics`, a function of (params, problem, result) to what is kept besides.
      grid: the axes.
      runs: the seeds of a cell.
      base_seed: of the whole sweep.
      precision: "float32" or "float64".
    """

    name = "sweep"
    reporter = "sweeps.own_study.report:report"
    statuses: ClassVar = {status.value: status.name.lower().replace("_", " ") for status in Status if status}
    nan_allowed = True

    run: Code
    start: Code | None
    num_steps: int
    measure: Code | None = None
    grid: Mapping[str, tuple[Any, ...]]
    runs: range
    base_seed: int
    precision: str

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The grid."""
        return dict(self.grid)

    def seeds(self) -> range:
        """As given."""
        return self.runs

    @property
    def arithmetic(self) -> str:
        """The precision of everything that does not say otherwise."""
        return self.precision

    def science(self) -> dict[str, Any]:
        """Everything that decides the results, the hash of the source among it."""
        code: dict[str, Any] = {"run": str(self.run)}
        if self.start is not None:
            code |= {"start": str(self.start), "num_steps": self.num_steps}
        if self.measure is not None:
            code["measure"] = str(self.measure)
        seeds = [self.runs.start, self.runs.stop] if self.runs.start else self.runs.stop
        axes = {name: list(values) for name, values in self.grid.items()}
        return {**code, "axes": axes, "seeds": seeds, "base_seed": self.base_seed, "precision": self.precision}

    @functools.cached_property
    def has_status(self) -> bool:
        """Whether the runs say how they ended."""
        return "status" in self._shapes[1]

    @functools.cached_property
    def success(self) -> str:
        """The metric that says whether a run succeeds: the status, or the only truth value; "" where there is none."""
        truths = [name for name, (kind, _, *shape) in self.metrics.items() if np.dtype(kind) == bool and shape == [()]]
        return "status" if self.has_status else truths[0] if len(truths) == 1 else ""

    @property
    def boundary_axis(self) -> str:
        """The last axis, of numbers, where it is known what a success is."""
        name, values = list(self.grid.items())[-1]
        return name if self.success and not any(isinstance(value, str) for value in values) else ""

    def succeeded(self, results: "xr.Dataset") -> np.ndarray:
        """Which runs are successes: those that converged, or whose truth value is true."""
        done = results["status"].values != Status.PENDING
        return super().succeeded(results) if self.success == "status" else done & results[self.success].values

    @functools.cached_property
    def metrics(self) -> Metrics:
        """What the first cell's runs return; nothing is computed for that."""
        shapes, _ = self._shapes
        kinds: dict[str, Any] = {
            name: (leaf.dtype, f"{name} as {self.run.name} returns it", leaf.shape)
            for name, leaf in shapes.items()
            if name != "status"
        }
        return {**kinds, "status": (np.int8, _STATUS)}

    @functools.cached_property
    def _shapes(self) -> tuple[dict[str, Any], set[str]]:
        return self._shapes_of(0)

    def _shapes_of(self, index: int) -> tuple[dict[str, Any], set[str]]:
        """Names, types and shapes of a run's record in a cell, and the names that the run itself gives."""
        cell = tuple((name, values[index]) for name, values in self.grid.items())
        own: set[str] = set()

        def run(key: Key[Array, ""]) -> dict[str, Array]:
            if self.start is None:
                record = self.run.value()(key, **dict(cell))
            else:
                start, dynamics = _begin(self, cell, key), self._dynamics(dict(cell))
                result = dynamics.result(dynamics.advance_to(dynamics.init(*start), self.num_steps))
                record = {**_plain(result), **_measure(self, (start, result))}
            own.update(record if isinstance(record, Mapping) else ())
            return _checked(record, tuple(self.grid))

        with jax.enable_x64(self.precision == "float64"):
            return jax.eval_shape(run, arithmetic.key(0)), own

    def check_code(self) -> None:
        """Traces a run of the first cell and one of the last, of code that is its file's."""
        for code in (self.run, self.start, self.measure):
            if code is not None:
                check_current(code.local)
        last = {name: values[-1] for name, values in self.grid.items()}
        self._check_kinds(last, {name: (leaf.shape, leaf.dtype) for name, leaf in self._shapes_of(-1)[0].items()})

    def _dynamics(self, cell: Mapping[str, Any]) -> Any:
        value = self.run.value()
        made = value if all(hasattr(value, name) for name in _DYNAMICS) else value(**cell)
        if not all(hasattr(made, name) for name in _DYNAMICS):
            raise UsageError(f"run: with a start it must return Dynamics ({', '.join(_DYNAMICS)}), not {made!r:.40}")
        return made

    def keys(self, cell: Mapping[str, Any], seeds: range) -> Key[Array, " seeds"]:
        """The random keys of the runs of a cell: they depend on the base seed, the cell's values and the seed alone."""
        digest = hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).digest()
        key = arithmetic.key(self.base_seed)
        for part in (digest[:4], digest[4:8]):
            key = jax.random.fold_in(key, np.uint32(int.from_bytes(part, "big")))
        return jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jnp.asarray(seeds))

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """The cells of a tile, one after another, and the seeds of a cell side by side."""
        parts, spent = [], {"compilation": 0.0, "running": 0.0}
        devices = jax.local_devices()[: execution.num_devices or None]
        for cell in tile.cells():
            begun = time.perf_counter()
            keys, items = self.keys(cell, tile.seeds), tuple(cell.items())
            spent["running"] += time.perf_counter() - begun
            if self.start is None:
                run = functools.partial(_run, self, items)
                records, seconds = map_on_devices(run, keys, lanes=execution.lanes or len(keys), devices=devices)
            else:
                starts = jax.jit(jax.vmap(functools.partial(_begin, self, items)))(keys)
                num_weights = sum(np.size(leaf) for leaf in jax.tree.leaves(starts.params)) // len(keys)
                results, seconds = run_on_devices(
                    self._dynamics(cell),
                    starts,
                    self.num_steps,
                    lanes=execution.lanes or default_lanes(jax.default_backend(), num_weights),
                    steps_per_chunk=execution.steps_per_chunk,
                    devices=devices,
                )
                records = _plain(results, num_leading=1)
                if self.measure is not None:
                    side_by_side = execution.lanes or len(keys)
                    measure = functools.partial(_measure, self)
                    measured, more = map_on_devices(measure, (starts, results), lanes=side_by_side, devices=devices)
                    records |= measured
                    seconds = {name: seconds[name] + more[name] for name in seconds}
                records.setdefault("status", np.full(len(keys), Status.CONVERGED, np.int8))
            self._check(cell, records)
            parts.append(records)
            spent |= {name: spent[name] + value for name, value in seconds.items()}
        jax.clear_caches()
        return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}, spent

    def _check(self, cell: Mapping[str, Any], records: Mapping[str, np.ndarray]) -> None:
        """Whether a cell returns what the first one does."""
        self._check_kinds(cell, {name: (np.shape(part)[1:], np.asarray(part).dtype) for name, part in records.items()})
        if not np.isin(records["status"], list(self.statuses)).all():
            where = ", ".join(f"{name}={value}" for name, value in cell.items())
            raise UsageError(f"run: a status at {where} is none of relu_sgd.Status (0 is a run that was not made)")

    def _check_kinds(self, cell: Mapping[str, Any], records: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        """Whether names, shapes and types are those of the first cell."""
        where = ", ".join(f"{name}={value}" for name, value in cell.items())
        if set(records) != set(self.metrics):
            raise UsageError(f"run: returns {sorted(records)} at {where}, and {sorted(self.metrics)} in the first cell")
        for name, (kind, _, *shape) in self.metrics.items():
            found, dtype = records[name]
            if found != (*shape, ())[0]:
                raise UsageError(f"run: {name} has shape {found} at {where}, and {(*shape, ())[0]} in the first cell")
            # A store of whole numbers would cut what comes after the point.
            if name != "status" and not np.can_cast(dtype, np.dtype(kind), "same_kind"):
                raise UsageError(f"run: {name} is of type {dtype} at {where}, and {np.dtype(kind)} in the first cell")
