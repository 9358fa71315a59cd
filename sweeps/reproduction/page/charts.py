"""Maps that a reader hovers over, as specifications of Vega-Lite, and the library that draws them.

Drawn as SVG: every cell is an element with a label, which screen readers and the page's own keys find, and its axes
take the page's colours, light or dark.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from sweeps import logistic
from sweeps.reporting.style import LAYERS_TITLES
from sweeps.reproduction.page.text import interval, number

__all__ = ["Chart", "is_map", "library", "map_charts"]

# What a reader is told of a cell.
_TOLD = {
    "cell": "cell",
    "converged": "converged",
    "share": "share",
    "other": "otherwise",
    "proofs": "proved nearby",
}
_COUNTS = {"step_limit": "at the step limit", "dead": "with dead samples", "diverged": "diverged"}
_PROOFS = {
    "proved_global": "global minimum",
    "proved_local": "local minimum of positive loss",
    "undecided": "undecided",
}
_REQUIRED = {"d0", "d1", "runs", "converged", "probability", "probability_low", "probability_high"}
_MOST_TICKS = 12
# Axes, legends and titles take the colour of the page's text.
_INK = "currentColor"
_CONFIG = {
    "background": None,
    "font": "inherit",
    "axis": {"labelColor": _INK, "titleColor": _INK, "domainColor": _INK, "tickColor": _INK, "grid": False},
    "legend": {"labelColor": _INK, "titleColor": _INK},
    "view": {"stroke": _INK},
}


class Chart(NamedTuple):
    """A map of one set-up.

    Attributes:
      title: the set-up.
      columns: cells in a row of the map; cells go through the rows, the least d0 first.
      specification: of Vega-Lite, without sizes that depend on the page.
      header, rows: the same as a table, counts of successes out of runs; the largest d0 first.
    """

    title: str
    columns: int
    specification: Mapping[str, Any]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one module of JavaScript that fetches nothing, 0.9 MB; empty where the package
    that holds them is not installed, for which few platforms have no wheel.
    """
    try:
        import vl_convert
    except ImportError:
        return ""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def is_map(summary: pandas.DataFrame) -> bool:
    """Whether a table is the summary of a convergence map."""
    return set(summary.columns) >= _REQUIRED and len(summary) > 0


def _edges(sizes: np.ndarray) -> np.ndarray:
    """Where the cells of increasing sizes end: halfway, and as far beyond the outermost."""
    if len(sizes) == 1:
        return sizes[0] + np.array([-0.5, 0.5])
    middle = (sizes[1:] + sizes[:-1]) / 2
    return np.concatenate([[2 * sizes[0] - middle[0]], middle, [2 * sizes[-1] - middle[-1]]])


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return 0 if value is None or math.isnan(value) else int(value)


def _listed(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The counts above 0, "" where the table has none of them."""
    if not set(names) & set(row):
        return ""
    return ", ".join(f"{_whole(row, name)} {text}" for name, text in names.items() if _whole(row, name)) or "none"


def _cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader is told of a cell, by the names of `_TOLD`, and the probability."""
    told = {"cell": f"d0 = {row['d0']:g}, d1 = {row['d1']:g}", "converged": "no run yet"}
    runs = _whole(row, "runs")
    if runs:
        within = interval(row["probability_low"], row["probability_high"])
        told["converged"] = f"{_whole(row, 'converged')} of {runs} runs"
        told["share"] = f"{number(row['probability'])}{f' (95% interval {within})' if within else ''}"
        told |= {"other": _listed(row, _COUNTS), "proofs": _listed(row, _PROOFS)}
    known = runs and math.isfinite(row["probability"])
    return {name: text for name, text in told.items() if text} | {"probability": row["probability"] if known else None}


def _boundaries(d0: np.ndarray, d1: np.ndarray, counts: np.ndarray) -> list[dict[str, Any]]:
    """Where the probability is 1/2, a row of the map each: inside the grid, or beyond a bound on it.

    Args:
      d0: of the rows.
      d1: of the columns, increasing.
      counts: rows x columns x (runs, successes).
    """
    if len(d1) < 2 or d1[0] <= 0:
        return []
    left, *_, right = _edges(d1)
    found = logistic.boundary(d1, counts[..., 1], counts[..., 0], num_resamples=0)
    marks = []
    for row, (size, place, low, high) in enumerate(zip(found.size, found.place, found.low, found.high, strict=True)):
        ends = {}
        if place == logistic.INSIDE:
            told = f"at d1 = {number(size)} (95% interval {interval(low or -math.inf, high)})"
            at, shape = size, "circle"
            ends = {"low": max(low, left), "high": min(high, right)}
        elif place == logistic.ABOVE and left <= low <= right:
            told, at, shape = f"above d1 = {number(low)}", low, "triangle-right"
        elif place == logistic.BELOW and left <= high <= right:
            told, at, shape = f"below d1 = {number(high)}", high, "triangle-left"
        else:
            continue
        runs = int(counts[row, :, 0].sum())
        told = f"d0 = {d0[row]:g}: probability 1/2 {told}, {runs} runs"
        marks.append({"d0": float(d0[row]), "d1": float(at), "shape": shape, "told": told}
                     | {name: float(end) for name, end in ends.items()})  # fmt: skip
    return marks


def _tooltip(names: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"field": name, "type": "nominal", "title": title} for name, title in names.items()]


def _axis(title: str, sizes: np.ndarray) -> dict[str, Any]:
    return {"title": title, **({"values": sizes.tolist()} if len(sizes) <= _MOST_TICKS else {})}


def _specification(cells: list[dict[str, Any]], marks: list[dict[str, Any]], d0: np.ndarray, d1: np.ndarray) -> Any:
    across, up = _edges(d1), _edges(d0)
    scales = {
        "x": {"domain": [across[0], across[-1]], "nice": False, "zero": False},
        "y": {"domain": [up[0], up[-1]], "nice": False, "zero": False},
    }
    x, y = ({"type": "quantitative", "scale": scales[name]} for name in "xy")
    fields = {name: title for name, title in _TOLD.items() if any(name in cell for cell in cells)}
    # One text of all that, made in the browser: it is the label of the cell's element.
    sentence = " + ".join(
        f"(datum.{name} ? '; {title}: ' + datum.{name} : '')" for name, title in fields.items() if name != "cell"
    )
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": cells},
            "transform": [{"calculate": f"datum.cell + {sentence}", "as": "told"}],
            "mark": {"type": "rect", "invalid": None},
            "encoding": {
                "x": {**x, "field": "left", "axis": _axis("hidden width d1", d1)},
                "x2": {"field": "right"},
                "y": {**y, "field": "bottom", "axis": _axis("input dimension d0", d0)},
                "y2": {"field": "top"},
                "color": {
                    "condition": {"test": "datum.probability === null", "value": "transparent"},
                    "field": "probability",
                    "type": "quantitative",
                    "scale": {"scheme": "cividis", "domain": [0, 1]},
                    "legend": {"title": "share of runs that converged", "orient": "top", "gradientLength": 160},
                },
                "description": {"field": "told"},
                "tooltip": _tooltip(fields),
            },
        }
    ]
    if marks:
        size = 45 if len(d0) <= _MOST_TICKS else 18
        place = {"x": {**x, "field": "d1"}, "y": {**y, "field": "d0"}}
        said = {"description": {"field": "told"}, "tooltip": _tooltip({"told": "boundary"})}
        ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": place["y"]}
        inside = [{"filter": "datum.shape == 'circle'"}]
        layers += [
            {
                "data": {"values": marks},
                "transform": inside,
                "mark": {"type": "rule", "aria": False, "color": colour, "strokeWidth": width},
                "encoding": ends,
            }
            for colour, width in (("black", 3.5), ("white", 1.5))
        ]
        layers.append(
            {
                "data": {"values": marks},
                "mark": {
                    "type": "point",
                    "filled": True,
                    "fill": "white",
                    "stroke": "black",
                    "size": size,
                    "opacity": 1,
                },
                "encoding": {
                    **place,
                    "shape": {"field": "shape", "type": "nominal", "scale": None, "legend": None},
                    **said,
                },
            }
        )
    return {
        "width": "container",
        "height": 380,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": _CONFIG,
        "layer": layers,
    }


def _chart(title: str, frame: pandas.DataFrame) -> Chart:
    d0, d1 = (np.unique(frame[name].to_numpy(float)) for name in ("d0", "d1"))
    across, up = _edges(d1), _edges(d0)
    by_cell: dict[Any, Any] = {(row["d0"], row["d1"]): row for row in frame.to_dict("records")}
    cells, counts = [], np.zeros((len(d0), len(d1), 2))
    for (i, size), (j, width) in itertools.product(enumerate(d0), enumerate(d1)):
        row = by_cell.get((size, width), {"d0": size, "d1": width})
        counts[i, j] = _whole(row, "runs"), _whole(row, "converged")
        ends = zip(("left", "right", "bottom", "top"), (across[j], across[j + 1], up[i], up[i + 1]), strict=True)
        cells.append(_cell(row) | {name: float(end) for name, end in ends})
    rows = [
        (f"{size:g}", *(f"{int(successes)}/{int(runs)}" if runs else "" for runs, successes in line))
        for size, line in zip(d0[::-1], counts[::-1], strict=True)
    ]
    header = ("d0 \\ d1", *(f"{size:g}" for size in d1))
    return Chart(title, len(d1), _specification(cells, _boundaries(d0, d1, counts), d0, d1), header, tuple(rows))


def _title(names: Sequence[str], values: Sequence[Any]) -> str:
    parts = [
        LAYERS_TITLES.get(value, str(value)) if name == "trained_layers" else f"{name} = {value}"
        for name, value in zip(names, values, strict=True)
    ]
    return ", ".join(parts) or "map"


def map_charts(summary: pandas.DataFrame) -> tuple[Chart, ...]:
    """A map per set-up.

    Args:
      summary: summary.csv of a convergence map; the columns before d0 name the set-up.

    Raises:
      ValueError: a cell is there twice.
    """
    names = list(summary.columns[: list(summary.columns).index("d0")])
    if summary.duplicated([*names, "d0", "d1"]).any():
        raise ValueError(f"a cell of the map is there twice: {names or 'no set-up'}, d0, d1")
    if not names:
        return (_chart(_title((), ()), summary),)
    groups = summary.groupby(names, sort=False, dropna=False)
    return tuple(_chart(_title(names, values), frame) for values, frame in groups)
