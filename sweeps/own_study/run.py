"""`sweep`: a function of one's own as a map."""

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from relu_sgd._checks import whole_number
from sweeps.command import app
from sweeps.own_study.study import Code, OwnStudy
from sweeps.runtime import extension, session
from sweeps.runtime.store import Store, StoreError
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
    base_seed: int = 0,
    **execution: Any,
) -> "xr.Dataset":
    """Runs a function for every cell of a grid and every seed, and keeps what it returns.

    The same call goes on after an interruption, and returns at once when everything is there. `out` gets results.zarr,
    summary.csv (of every cell, the share of each truth value, and of status 1 where the runs have a status, with
    Wilson's 95 percent intervals; mean and Student's interval of other numbers), report.html and figures: a heat map
    over two axes, a curve over one.

    Args:
      run: a pure function of (key, **axes), of JAX's operations: a random key, and the concrete values of the axes by
        name. It returns a dictionary of numbers and arrays, the same names, shapes and types in every cell; "status"
        among them, if there is one, is a code of `relu_sgd.Status`. It is compiled for every cell and mapped over its
        seeds. Or `relu_sgd.Dynamics`, or a function of **axes that makes them; the dictionary of their result is kept,
        or the numbers in it.
      axes: name to values, all of them whole numbers, numbers or text.
      seeds: of the runs of a cell, a range; or their number n, for range(n).
      out: the output folder.
      start: with `Dynamics`, a pure function of (key, **axes) to (params, problem).
      num_steps: with `Dynamics`, the step at which a run ends that has not ended by itself.
      measure: with `Dynamics`, a pure function of (params, problem, result), of the start and the end of a run, to a
        dictionary of what is kept besides.
      precision: "float32" or "float64"; JAX's own setting when None.
      base_seed: another one gives other random keys. The key of a run depends on it, on the seed and on the values of
        the axes, and on nothing else.
      execution: fields of `sweeps.study.Execution`: num_processes, lanes (all seeds of a cell side by side unless told
        otherwise), block, shard_index, shard_count, coordinator, num_devices, compilation_cache, repair; and refine,
        so many further runs at most, where they tell most about the value of the last axis at which the probability of
        success is 1/2 (`sweeps.refinement`): it is to grow along that axis, and a success is a run that converged, or
        the one truth value that is returned.

    Returns:
      The results over (*axes, seed), in memory; the status of a run that was not made, by another shard or by
      `refine`, is 0.

    Worker processes import the file of the function, a script too, without what stands under
    `if __name__ == "__main__":`. A script without such a line, and a function that cannot be imported (one in a
    notebook), run in this process alone.

    Raises:
      UsageError: (a ValueError) an argument is not allowed; the folder holds other results; or the file that defines
        the function was edited since they were begun.
      TileError: (a UsageError) some cells could not be computed; the others are stored, and it is raised from what the
        first of them said.
      SystemExit: SIGINT or SIGTERM came; what was done is stored.
    """
    if not isinstance(axes, Mapping):
        raise UsageError(f"axes: must be a dictionary of names to values, got {axes!r:.60}")
    grid = {name: _axis(name, values) for name, values in axes.items()}
    if not grid:
        raise UsageError("axes: give at least one")
    codes = _codes(run, start, grid)
    if (start is None) != (num_steps is None):
        raise UsageError("start and num_steps belong to Dynamics: give both of them, or neither")
    if measure is not None:
        if start is None or not callable(measure):
            raise UsageError("measure: must be a function of (params, problem, result), and belongs to Dynamics")
        codes.append(Code.of(measure))
    if precision is None:
        precision = "float64" if jax.config.jax_enable_x64 else "float32"  # type: ignore[attr-defined]
    if precision not in ("float32", "float64"):
        raise UsageError(f"precision: {precision!r} is not one of float32, float64")
    try:
        study = OwnStudy(
            run=codes[0],
            start=codes[1] if start is not None else None,
            num_steps=0 if num_steps is None else whole_number("num_steps", num_steps),
            measure=codes[2] if measure is not None else None,
            grid=grid,
            runs=_seeds(seeds),
            base_seed=whole_number("base_seed", base_seed, 0),
            precision=precision,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    places = _execution(out, _in_this_process(codes, execution))
    with app.as_a_program():
        try:
            finished = not places.repair and (places.out / "report.html").exists()
            if places.refine or not (finished and _is_complete(study, session.open_results(places.out))):
                app.complete(study, places)
            results = extension.read(session.open_results(places.out), "runs")
        except StoreError as error:
            raise UsageError(f"out: {error}{session.REPAIR}") from error
    # Of text Zarr's own type comes back, which xarray cannot look up.
    return results.assign_coords({name: np.asarray(values) for name, values in grid.items()})


def _is_complete(study: OwnStudy, store: Store) -> bool:
    same = store.attributes["science"] == study.science() and store.attributes.get("study") == study.name
    return same and not any(left.any() for left in session.pending(study, store).values())


def _execution(out: Any, given: Mapping[str, Any]) -> Execution:
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise UsageError(f"out: must be a folder, got {out!r}")
    known = flags_of(Execution)
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known or name in ("out", "figures_only"):
            raise UsageError(f"{name}: sweep has no such argument")
        parser = known[name][0].parser
        try:
            values[name] = None if value is None else parser.parse(parser.serialize(value))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}: {error}") from error
    return Execution(out=Path(out), **values)


def _seeds(seeds: Any) -> range:
    runs = seeds if isinstance(seeds, range) else range(whole_number("seeds", seeds))
    if not runs or runs.step != 1 or runs.start < 0 or runs.stop > 2**32:
        raise UsageError(f"seeds: a range must go up from 0 or more in steps of 1, and not be empty; got {seeds!r}")
    return runs


def _axis(name: Any, values: Any) -> tuple[Any, ...]:
    if not isinstance(name, str) or not name.isidentifier() or name in ("seed", "key", "status"):
        raise UsageError(f"axes: {name!r} is no name for an axis")
    if not isinstance(values, Sequence | np.ndarray):
        raise UsageError(f"axes: the values of {name} must be a list, got {values!r:.60}")
    plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
    kinds = {float if isinstance(value, int) else type(value) for value in plain}
    if isinstance(values, str) or not plain or kinds not in ({float}, {str}):
        raise UsageError(f"axes: the values of {name} must be numbers, or all of them text; got {values!r}")
    if not all(isinstance(value, str) or math.isfinite(value) for value in plain):
        raise UsageError(f"axes: the values of {name} must be finite; got {values!r:.60}")
    if len(set(plain)) != len(plain):
        raise UsageError(f"axes: {name} repeats a value")
    return plain


def _codes(run: Any, start: Any, grid: Mapping[str, Any]) -> list[Code]:
    """What is run, as `Code`, when it can be called with the axes."""
    makes = not all(hasattr(run, name) for name in ("init", "advance_to", "done", "result"))
    if start is None and not makes:
        raise UsageError("run: Dynamics need a start, a function of (key, **axes) to (params, problem)")
    for name, function, has_key in (("run", run if makes else None, start is None), ("start", start, True)):
        if function is None:
            continue
        if not callable(function):
            raise UsageError(f"{name}: {function!r} is no function")
        try:
            inspect.signature(function).bind(*([None] if has_key else []), **grid)
        except TypeError as error:
            expected = ", ".join([*(["key"] if has_key else []), *grid])
            raise UsageError(f"{name}: must take ({expected}): {error}") from error
    return [Code.of(run, start), *([] if start is None else [Code.of(start)])]


def _in_this_process(codes: Sequence[Code], execution: dict[str, Any]) -> dict[str, Any]:
    """The execution, in this process alone where workers could not import what they run, or would run the script
    again.
    """
    is_guarded, script = app.main_is_guarded()
    if is_guarded and all(code.attribute for code in codes):
        return execution
    if execution.get("num_processes", 0) not in (0, 1):
        raise UsageError(
            "num_processes: worker processes "
            + (
                f"cannot import {next(code.name for code in codes if not code.attribute)}"
                if is_guarded
                else f'would run {script} again, which has no `if __name__ == "__main__":`'
            )
        )
    return {**execution, "num_processes": 1}
