"""What is said of the runs of somebody's own function: summary.csv, a heat map or curve, a table as text."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from relu_sgd.dynamics import Status
from sweeps.own_study.study import OwnStudy
from sweeps.reporting import boundary, style
from sweeps.reporting.statistics import interval, mean_interval
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results

__all__ = ["report", "summarize"]

_MOST_PANELS = 12
_MOST_MEANS = 4


def _shares(study: OwnStudy) -> list[str]:
    """The metrics of which a share is counted: truth values, and how runs ended where they say so."""
    truths = [name for name, (kind, _, *shape) in study.metrics.items() if np.dtype(kind) == bool and shape == [()]]
    return truths + ["status"] * study.has_status


def _means(study: OwnStudy) -> list[str]:
    """The numbers that are averaged."""
    numbers = {name for name, (kind, _, *shape) in study.metrics.items() if np.dtype(kind).kind in "iuf"}
    scalars = [name for name, (_, _, *shape) in study.metrics.items() if shape == [()]]
    return [name for name in scalars if name in numbers]


def summarize(study: OwnStudy, data: xr.Dataset) -> pandas.DataFrame:
    """A row a cell: its runs; of each share count, share and interval; of each number mean and interval, of
    `converged_at` beside a status over the runs that converged.
    """
    rows = []
    for index in np.ndindex(*map(len, study.grid.values())):
        done = data["status"].values[index] != Status.PENDING
        row = {name: values[i] for (name, values), i in zip(study.grid.items(), index, strict=True)}
        row["runs"] = runs = int(done.sum())
        for name in _shares(study):
            values = data[name].values[index][done]
            count = int((values == Status.CONVERGED).sum()) if name == "status" else int(values.sum())
            name = "converged" if name == "status" else name
            low, high = interval(count, runs) if runs else (np.nan, np.nan)
            share = count / runs if runs else np.nan
            row |= {f"{name}_count": count, name: share, f"{name}_low": low, f"{name}_high": high}
        for name in _means(study):
            of = done
            if study.has_status and name == "converged_at":
                of = data["status"].values[index] == Status.CONVERGED  # -1 in all others.
            mean, low, high = mean_interval(data[name].values[index][of].astype(float))
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return pandas.DataFrame(rows)


def _ticks(values: Sequence[Any]) -> list[str]:
    return [value if isinstance(value, str) else f"{value:g}" for value in values]


def _curve(axes: Axes, table: pandas.DataFrame, name: str, x: str) -> None:
    is_text = isinstance(table[x].iloc[0], str)
    where = np.arange(len(table)) if is_text else table[x].to_numpy(float)
    middle = table[name].to_numpy(float)
    ends = np.abs(np.stack([middle - table[f"{name}_low"], table[f"{name}_high"] - middle]))
    axes.errorbar(where, middle, ends, fmt="o" if is_text else "o-", capsize=3, markersize=4, linewidth=0.8)
    if is_text:
        axes.set_xticks(where, _ticks(list(table[x])))
    axes.set_xlabel(x)
    axes.set_ylabel(name)


def _heat(axes: Axes, table: pandas.DataFrame, name: str, y: str, x: str, norm: Normalize) -> Any:
    shown = table.pivot(index=y, columns=x, values=name)
    rows, columns = list(dict.fromkeys(table[y])), list(dict.fromkeys(table[x]))
    values = np.ma.masked_invalid(shown.loc[rows, columns].to_numpy(float))
    # Cells of one size, whatever the values along the axes are.
    mesh = axes.imshow(values, norm=norm, cmap="cividis", origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), _ticks(columns))
    axes.set_yticks(range(len(rows)), _ticks(rows))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return mesh


def _slices(study: OwnStudy, table: pandas.DataFrame, further: Sequence[str]) -> Iterator[tuple[str, pandas.DataFrame]]:
    """The table for every combination of values of the further axes, with its title."""
    for values in itertools.product(*(study.grid[name] for name in further)):
        part = table
        for name, value in zip(further, values, strict=True):
            part = part[part[name] == value]
        yield ", ".join(f"{name} = {value}" for name, value in zip(further, values, strict=True)), part


def _draw(study: OwnStudy, table: pandas.DataFrame, name: str, is_share: bool, caption: str) -> Figure:
    """A curve over one axis; a heat map over two, a panel for every value of the others."""
    first, *others = study.grid
    panels = list(itertools.islice(_slices(study, table, others[1:]), _MOST_PANELS))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.8 * columns + 0.8, 3.9 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    known = table[name].to_numpy(float)
    known = known[np.isfinite(known)]
    low, high = (0.0, 1.0) if is_share else (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    for axes, (title, part) in zip(grid, panels, strict=False):
        axes.set_title(title, fontsize="medium")
        if others:
            mesh = _heat(axes, part, name, others[0], first, Normalize(low, high))
        else:
            _curve(axes, part, name, first)
            if is_share:
                axes.set_ylim(-0.03, 1.03)
    for axes in grid[len(panels) :]:
        axes.remove()
    if others:
        figure.colorbar(mesh, ax=grid[: len(panels)].tolist(), label=f"share of {name}" if is_share else f"mean {name}")
    figure.suptitle(f"Share of {name}" if is_share else f"Mean {name}")
    style.add_caption(figure, caption)
    return figure


def report(study: OwnStudy, results: Results) -> Report:
    """summary.csv and a figure of every share; without shares, of the first numbers."""
    (data,) = results.values()
    table = summarize(study, data)
    runs, most = f"{len(study.runs)}", int(table["runs"].max())
    tables = {"summary": table}
    if most > len(study.runs):
        runs = f"{runs} to {most}"
        made = (data["status"] != Status.PENDING).sum("seed")
        counts = xr.Dataset({"runs": made, "converged": made.copy(data=study.succeeded(data).sum(-1))})
        tables["boundary"] = boundary.table(counts, study.boundary_axis)
    caption = (
        f"{study.run.name}, {runs} runs a cell, {study.precision}; intervals of 95 percent. "
        f"Configuration {configuration_of(study.science())}."
    )
    shares = ["converged" if name == "status" else name for name in _shares(study)]
    figures = {name: _draw(study, table, name, True, caption) for name in shares}
    if not shares:
        figures = {name: _draw(study, table, name, False, caption) for name in _means(study)[:_MOST_MEANS]}
    text = table.to_string(index=False, float_format="%.4g", max_rows=60)
    return Report(tables, figures, (), f"{text}\n{caption}")
