"""What a map of one's own says: a row a cell with intervals, and a figure over its axes."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.function_map.study import FunctionMap
from sweeps.reporting import style
from sweeps.reporting.statistics import interval, mean_interval
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results

__all__ = ["report", "summarize"]

_MOST_PANELS = 12
_MOST_LABELS = 12


def _share(successes: np.ndarray) -> tuple[float, float, float]:
    """The share of successes with Wilson's interval."""
    return (float(successes.mean()), *interval(int(successes.sum()), len(successes)))


def summarize(study: FunctionMap, data: xr.Dataset) -> pandas.DataFrame:
    """A row per cell: the share of runs with status 1 where the function says how runs end, the shares of its booleans
    (Wilson's intervals), the means of its numbers (Student's, over the finite ones) and their medians.
    """
    rows = []
    kinds = dict(study.kinds)
    codes = [int(code) for code in np.unique(data["status"].values) if code > 1]
    for at in np.ndindex(*(len(values) for _, values in study.grid)):
        row: dict[str, Any] = {name: values[index] for (name, values), index in zip(study.grid, at, strict=True)}
        status = data["status"].values[at]
        row["runs"] = len(status)
        if "status" in kinds:
            row["probability"], row["probability_low"], row["probability_high"] = _share(status == 1)
            row |= {f"status_{code}": int((status == code).sum()) for code in codes}
        for name, kind in kinds.items():
            values = data[name].values[at]
            if name == "status":
                continue
            if kind == "bool":
                row[f"{name}_share"], row[f"{name}_low"], row[f"{name}_high"] = _share(values)
            else:
                numbers = np.asarray(values, float)
                # A descent says -1 for never.
                finite = numbers[np.isfinite(numbers) & ((name != "converged_at") | (numbers >= 0))]
                row[f"{name}_mean"], row[f"{name}_low"], row[f"{name}_high"] = mean_interval(finite)
                row[f"{name}_median"] = float(np.median(finite)) if len(finite) else np.nan
        rows.append(row)
    return pandas.DataFrame(rows)


def _shown(study: FunctionMap) -> list[tuple[str, str, bool]]:
    """What a figure shows: the stem of its columns, its title, and whether it is a share; the shares first."""
    kinds = {name: kind for name, kind in study.kinds if name != "status"}
    shares = [("probability", "share of runs with status 1", True)] if "status" in dict(study.kinds) else []
    shares += [(f"{name}_share", f"share of {name}", True) for name, kind in kinds.items() if kind == "bool"]
    return shares + [(f"{name}_mean", f"mean of {name}", False) for name, kind in kinds.items() if kind != "bool"]


def _ticks(set_ticks: Any, values: Sequence[Any]) -> None:
    """The values at whole numbers, as many as there is room for."""
    at = range(0, len(values), max(1, -(-len(values) // _MOST_LABELS)))
    set_ticks(at, [values[index] if isinstance(values[index], str) else f"{values[index]:g}" for index in at])


def _curve(axes: Axes, table: pandas.DataFrame, name: str, values: Sequence[Any], stem: str, title: str) -> None:
    """A curve over an axis with its intervals."""
    of_text = isinstance(values[0], str)
    part = table if of_text else table.sort_values(name)
    places = np.arange(len(part)) if of_text else part[name].to_numpy(float)
    begin = stem.removesuffix("_share").removesuffix("_mean")
    middle = part[stem].to_numpy(float)
    low, high = part[f"{begin}_low"].to_numpy(float), part[f"{begin}_high"].to_numpy(float)
    axes.errorbar(
        places, middle, [np.maximum(middle - low, 0), np.maximum(high - middle, 0)], marker="o", markersize=3, capsize=2
    )
    if of_text:
        _ticks(axes.set_xticks, values)
    elif places[0] > 0 and places[-1] / places[0] >= 50:
        style.set_log_x(axes, places)
    axes.set_xlabel(name)
    axes.set_ylabel(title)


def _heat_map(
    axes: Axes, table: pandas.DataFrame, grid: Sequence[tuple[str, Sequence[Any]]], stem: str, is_share: bool
) -> Any:
    """Cells of one size, the first axis up and the second across."""
    (up, rows), (across, columns) = grid
    shown = table[stem].to_numpy(float).reshape(len(rows), len(columns))
    low, high = (0.0, 1.0) if is_share else (None, None)
    mesh = axes.imshow(
        np.ma.masked_invalid(shown), origin="lower", aspect="auto", vmin=low, vmax=high,
        cmap="cividis" if is_share else "viridis", interpolation="nearest",
    )  # fmt: skip
    axes.set_facecolor("0.9")
    _ticks(axes.set_yticks, rows)
    _ticks(axes.set_xticks, columns)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    return mesh


def _panels(study: FunctionMap, table: pandas.DataFrame) -> list[tuple[str, pandas.DataFrame, str, str, bool]]:
    """Title, cells, columns and their title, of every panel: all that is shown, or the first for all values of the further axes."""
    shown = _shown(study)
    if len(study.grid) <= 2:
        return [(title, table, stem, title, share) for stem, title, share in shown][:_MOST_PANELS]
    stem, title, share = shown[0]
    names = [name for name, _ in study.grid[2:]]
    panels = []
    for values in itertools.product(*(values for _, values in study.grid[2:])):
        cells = np.logical_and.reduce([table[name] == value for name, value in zip(names, values, strict=True)])
        words = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
        panels.append((f"{title}\n{words}", table[cells], stem, title, share))
    return panels[:_MOST_PANELS]


def _draw(study: FunctionMap, table: pandas.DataFrame, caption: str) -> Figure | None:
    panels = _panels(study, table) if _shown(study) else []
    if not panels:
        return None
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.6 * rows + 0.8), layout="constrained")
    figure.suptitle(study.run.name)
    style.add_caption(figure, caption)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (heading, cells, stem, title, is_share) in zip(places, panels, strict=False):
        if len(study.grid) == 1:
            (name, values), *_ = study.grid
            _curve(axes, cells, name, values, stem, title)
            if is_share:
                axes.set_ylim(-0.03, 1.03)
        else:
            mesh = _heat_map(axes, cells, study.grid[:2], stem, is_share)
            axes.set_title(heading, fontsize="medium")
            figure.colorbar(mesh, ax=axes)
    for axes in places[len(panels) :]:
        axes.remove()
    return figure


def report(study: FunctionMap, results: Results) -> Report:
    """summary.csv, the figure, and the shares and means over all runs."""
    (data,) = results.values()
    table = summarize(study, data)
    lines = [
        f"{stem}: {table[stem].min():.4g} to {table[stem].max():.4g} over the cells" for stem, _, _ in _shown(study)
    ]
    axes = ", ".join(f"{name} ({len(values)})" for name, values in study.grid)
    caption = (
        f"{study.run.name} over {axes}, seeds {study.runs.start} to {study.runs.stop - 1}, {study.precision}; intervals of "
        f"95 percent. Configuration {configuration_of(study.science())}."
    )
    figure = _draw(study, table, caption)
    return Report({"summary": table}, {} if figure is None else {"map": figure}, (), "\n".join([*lines, caption]))
