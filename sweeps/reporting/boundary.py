"""The boundary of a map, the size at which the probability of success is 1/2, as a table, as text and in a figure."""

from typing import Any

import numpy as np
import pandas
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patheffects import Normal, Stroke

from sweeps import logistic

__all__ = ["METHOD", "draw", "table", "text"]

METHOD = (
    "Boundary: the size at which a logistic curve in its logarithm passes 1/2, fitted to a row's counts with Jeffreys' "
    "prior, and the 95 percent interval from the profile of that likelihood"
)


def table(summary: xr.Dataset, axis: str) -> pandas.DataFrame:
    """A row of the map a row.

    Args:
      summary: `runs` and `converged`, counts over `axis` and others.
      axis: that of the sizes.

    Returns:
      The other axes; `runs`; `boundary`, `boundary_low` and `boundary_high`, `bootstrap_low` and `bootstrap_high`,
      `slope`, `deviance` and `place` of `sweeps.logistic.Boundary`; and `degrees_of_freedom` of the deviance.

    Raises:
      ValueError: see `sweeps.logistic.fit`.
    """
    counts = summary[["runs", "converged"]].transpose(..., axis)
    others = [name for name in counts["runs"].dims if name != axis]
    rows = [dict(zip(others, values, strict=True)) for values in _product(counts, others)]
    runs, successes = (counts[name].values.reshape(len(rows), -1) for name in ("runs", "converged"))
    found = logistic.boundary(summary[axis].values, successes, runs)
    return pandas.DataFrame(rows).assign(
        runs=runs.sum(axis=1),
        boundary=found.size,
        boundary_low=found.low,
        boundary_high=found.high,
        bootstrap_low=found.bootstrap_low,
        bootstrap_high=found.bootstrap_high,
        slope=found.slope,
        deviance=found.deviance,
        degrees_of_freedom=(runs > 0).sum(axis=1) - 2,
        place=found.place,
    )


def _product(counts: xr.Dataset, names: list[Any]) -> list[tuple[Any, ...]]:
    shape = [counts.sizes[name] for name in names]
    return [tuple(counts[name].values[i] for name, i in zip(names, index, strict=True)) for index in np.ndindex(*shape)]


def _said(row: Any) -> str:
    """An estimate with its interval, or what is known of a row without one."""
    low, high = (f"{end:.3g}" if 0 < end < np.inf else "" for end in (row.boundary_low, row.boundary_high))
    if row.place == logistic.INSIDE:
        return f"{row.boundary:.3g} ({low or 'below the grid'} to {high or 'above the grid'})"
    if row.place == logistic.ABOVE:
        return f"above {low}" if low else "above the grid, as far as few runs tell"
    if row.place == logistic.BELOW:
        return f"below {high}" if high else "below the grid, as far as few runs tell"
    return "not known"


def text(boundaries: pandas.DataFrame, axis: str, other: str) -> str:
    """The boundaries over one other axis, in one line each."""
    lines = [f"{other}: {axis} at probability 1/2, with its 95 percent interval"]
    lines += [f"{getattr(row, other):>7}: {_said(row)}, {row.runs} runs" for row in boundaries.itertuples()]
    return "\n".join(lines)


def draw(axes: Axes, boundaries: pandas.DataFrame, other: str) -> list[Any]:
    """The boundaries across and the other axis up, with their intervals; an arrow for what lies on one side of a bound.

    Returns:
      Handles for a legend; none where nothing is drawn.
    """
    left, right = axes.get_xlim()
    outline = [Stroke(linewidth=3, foreground="black"), Normal()]  # Visible on cells and paper alike.
    inside = boundaries[boundaries["place"] == logistic.INSIDE]
    handles: list[Any] = []
    if len(inside):
        size = inside["boundary"].to_numpy()
        low, high = (inside[f"boundary_{end}"].to_numpy().clip(left, right) for end in ("low", "high"))
        y = inside[other].to_numpy()
        bars = axes.hlines(y, low, high, color="white", linewidth=1.5)
        bars.set_path_effects(outline)
        handles += axes.plot(
            size, y, color="white", linewidth=1, marker="o", markersize=3.5, markeredgecolor="black",
            path_effects=outline, label="probability 1/2, with its interval",
        )  # fmt: skip
    for place, marker, name in ((logistic.ABOVE, ">", "boundary_low"), (logistic.BELOW, "<", "boundary_high")):
        beyond = boundaries[(boundaries["place"] == place) & boundaries[name].between(left, right)]
        if len(beyond):
            handles += axes.plot(
                beyond[name], beyond[other], color="white", linestyle="", marker=marker, markersize=5,
                markeredgecolor="black", label="its bound",
            )  # fmt: skip
    axes.set_xlim(left, right)
    shown = {handle.get_label(): handle for handle in handles}
    return list(shown.values())
