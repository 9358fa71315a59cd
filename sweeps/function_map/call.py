"""`sweep`: a function of one's own as a map."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from relu_sgd._checks import whole_number
from sweeps.command import app
from sweeps.function_map.study import FunctionMap, is_dynamics
from sweeps.function_map.subject import Subject, subject
from sweeps.runtime import arithmetic, processes, session
from sweeps.study import Execution, UsageError, flags_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["sweep"]


def sweep(
    run: Any,
    *,
    axes: Mapping[str, Sequence[Any]],
    seeds: int | range,
    out: str | Path,
    start: Callable[..., tuple[Any, Any]] | None = None,
    num_steps: int | None = None,
    measure: Callable[[Any, Any, Any], Mapping[str, Any]] | None = None,
    precision: str | None = None,
    **execution: Any,
) -> "xr.Dataset":
    """A function at every value of some axes, for every seed: stored, resumed, summarized and drawn.

    A run's key depends on its seed and its axes' names and values alone, and its result on these and the functions. A
    second call goes on where the first was interrupted; when everything is there it returns at once. The folder gets
    results.zarr, summary.csv (shares and means with 95 percent intervals), figures and report.html.

    Worker processes import the functions by name: from their module, or once more from the script that is run, which
    must then call `sweep` under `if __name__ == "__main__":`. Lambdas, functions inside functions, notebooks and
    scripts without that line run in this process.

    Args:
      run: a pure function of (key, **axes) that jit goes through, to a dictionary of named scalars: booleans, whole
        numbers or floats. "status" among them says how the run ended: 1 for a success, 2 to 127 otherwise; without it
        every run is 1. The axes' values are concrete. With `start` instead dynamics (`relu_sgd.Dynamics`, as `Descent`),
        or a function of (**axes) that returns dynamics; of their result the named scalars are kept.
      axes: name to values: whole numbers, floats, truth values, or strings.
      seeds: of every cell; a number n stands for range(n).
      out: the folder: new, empty, or one of an earlier call.
      start: of dynamics, (key, **axes) to (params, problem).
      num_steps: of dynamics, the step at which a run ends that has not ended by itself.
      measure: of dynamics, (params, problem, result) to further named scalars; params are those of the start.
      precision: "float32" or "float64"; None for what JAX is set to.
      **execution: num_processes, num_devices, lanes, steps_per_chunk, block, compilation_cache, shard_index or
        shard_count, as the flags of these names: `sweeps.study.Execution`.

    Returns:
      What every run returned, over (the axes, "seed"); runs of other shards that are not done have status 0.

    Raises:
      UsageError: in one line, what cannot be: the functions do not fit together, `out` is foreign or has results of
        other arguments or of other code. Nothing was written.
      SystemExit: a signal asked to stop, and the tiles in hand are stored.
    """
    try:
        where = _execution(out, execution)
        with _as_in_workers():
            study = _study(run, start, measure, axes, seeds, num_steps, precision)
            where = _where(study, where)
            session.check_folder(where.out)
            arithmetic.check(os.environ.get("XLA_FLAGS", ""))
            session.configure_jax(study.precision, where.compilation_cache)
            if (where.out / "results.zarr").exists():
                study.check_edits(session.open_results(where.out).attributes["science"], where.out)
            study = dataclasses.replace(study, kinds=tuple(study.discover().items()))
            return _results(study, where)
    except UsageError as error:
        # The texts are those of flags.
        raise UsageError(re.sub(r"(?<!\S)--(?=\w)", "", str(error))) from error.__cause__


def _results(study: FunctionMap, where: Execution) -> "xr.Dataset":
    was_reported = (where.out / "report.html").exists()
    store = session.train(study, where)
    (variant,) = study.variants()
    if store.pending(variant.group).any():
        logging.info("this shard is done; others are not, so no figures yet")
    elif not was_reported:
        app.complete(study, dataclasses.replace(where, figures_only=True))
    results = store.read(variant.group)
    texts = {name: results[name].astype(object) for name, values in study.grid if isinstance(values[0], str)}
    return results.assign_coords(texts)


def _execution(out: Any, given: Mapping[str, Any]) -> Execution:
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise UsageError(f"out: must be a folder, got {out!r}")
    known = flags_of(Execution)
    values: dict[str, Any] = {"out": Path(out)}
    for name, value in given.items():
        if name not in known or name in ("out", "figures_only"):
            raise UsageError(f"{name}: sweep has no such argument")
        parser = known[name][0].parser
        try:
            values[name] = None if value is None else parser.parse(parser.serialize(value))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}: {error}") from error
    return Execution(**values)


def _where(study: FunctionMap, execution: Execution) -> Execution:
    """In this process, where others cannot import the functions."""
    local = [value.name for value in study.subjects.values() if value.module is None]
    if not local or execution.num_processes == 1:
        return execution
    if execution.num_processes:
        raise UsageError(
            f"num_processes: {execution.num_processes} processes cannot import {local[0]}; they need a function at the "
            'top of a module, or of a script that calls sweep under `if __name__ == "__main__":`'
        )
    logging.info("other processes cannot import %s: its runs are done in this one", local[0])
    return dataclasses.replace(execution, num_processes=1)


def _study(
    run: Any, start: Any, measure: Any, axes: Any, seeds: Any, num_steps: Any, precision: str | None
) -> FunctionMap:
    """The study that the arguments describe.

    Raises:
      UsageError: they do not fit together.
    """
    if start is None:
        if is_dynamics(run):
            raise UsageError("start: dynamics need one, (key, **axes) to (params, problem)")
        for name, value in (("measure", measure), ("num_steps", num_steps)):
            if value is not None:
                raise UsageError(f"{name}: is for dynamics with a start")
    elif num_steps is None:
        raise UsageError("num_steps: dynamics need a number of steps")
    for name, value in (("run", run), ("start", start), ("measure", measure)):
        if not (callable(value) or (value is None and name != "run") or (name == "run" and is_dynamics(run))):
            raise UsageError(f"{name}: must be a function, got {value!r:.60}")
    try:
        steps = 0 if num_steps is None else whole_number("num_steps", num_steps, 0)
    except ValueError as error:
        raise UsageError(f"num_steps: {error}") from error
    if precision not in (None, "float32", "float64"):
        raise UsageError(f"precision: must be float32 or float64, got {precision!r}")
    make: Callable[[Any], Subject | None] = lambda value: None if value is None else subject(value)
    return FunctionMap(
        run=subject(run, getattr(start, "__module__", None)),
        start=make(start),
        measure=make(measure),
        grid=_grid(axes),
        runs=_seeds(seeds),
        num_steps=steps,
        precision=precision or ("float64" if jax.config.values["jax_enable_x64"] else "float32"),
    )


def _seeds(seeds: Any) -> range:
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        seeds = range(int(seeds))
    if not isinstance(seeds, range) or not len(seeds) or seeds.step != 1 or seeds.start < 0 or seeds.stop > 2**32:
        raise UsageError(f"seeds: must be a whole number from 1 on, or a range in steps of 1 from 0 on, got {seeds!r}")
    return seeds


def _grid(axes: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(axes, Mapping) or not axes:
        raise UsageError(f"axes: must be a dict of names to values, with one axis at least, got {axes!r:.60}")
    grid = []
    for name, values in axes.items():
        if not isinstance(name, str) or not name.isidentifier() or name in ("key", "seed", "status"):
            raise UsageError(f"axes: {name!r} cannot be the name of an axis")
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
            raise UsageError(f"axes: {name} must be a list of values, one at least, got {values!r:.60}")
        plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
        of_text = all(isinstance(value, str) for value in plain)
        of_numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in plain)
        if not (of_text or of_numbers):
            raise UsageError(f"axes: {name} must have finite numbers, or strings, got {plain!r:.60}")
        if len(set(plain)) != len(plain):
            raise UsageError(f"axes: {name} repeats a value")
        grid.append((name, plain))
    return tuple(grid)


@contextmanager
def _as_in_workers() -> Iterator[None]:
    """This process is set up as a launcher's, and afterwards as it was."""
    options = [*arithmetic.PINNED, "jax_enable_x64", "jax_compilation_cache_dir"]
    options += ["jax_persistent_cache_min_compile_time_secs", "jax_persistent_cache_min_entry_size_bytes"]
    before = {name: jax.config.values[name] for name in options}
    environment = {name: os.environ.get(name) for name in processes.THREADS}
    processes.limit_threads()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        for name, text in environment.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text
