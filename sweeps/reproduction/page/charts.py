"""Maps that a reader hovers over, as specifications of Vega-Lite, and the library that draws them.

Drawn as SVG: every cell is an element with a label, which screen readers and the page's own keys find, and its axes
take the page's colours, light or dark.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from sweeps import logistic
from sweeps.reporting import boundary
from sweeps.reporting.style import LAYERS_TITLES
from sweeps.reproduction.page.text import interval, number

__all__ = ["Chart", "is_map", "library", "map_charts"]

_COUNTS = {"step_limit": "at the step limit", "dead": "with dead samples", "diverged": "diverged"}
_PROOFS = {
    "proved_global": "with a global minimum proved nearby",
    "proved_local": "with a local minimum of positive loss proved nearby",
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
    return ", ".join(f"{_whole(row, name)} {text}" for name, text in names.items() if name in row)


def _cell(row: Mapping[str, Any], left: float, right: float, bottom: float, top: float) -> dict[str, Any]:
    """A cell's place, value and what a reader is told of it."""
    told = {"cell": f"d0 = {row['d0']:g}, d1 = {row['d1']:g}"}
    runs = _whole(row, "runs")
    if runs:
        within = interval(row["probability_low"], row["probability_high"])
        told["converged"] = f"{_whole(row, 'converged')} of {runs} runs"
        told["share"] = f"{number(row['probability'])}{f' (95% interval {within})' if within else ''}"
        told["other"] = _listed(row, _COUNTS)
        told["proofs"] = _listed(row, _PROOFS)
    else:
        told["converged"] = "no run yet"
    said = [told["cell"], told["converged"] + (" converged" if runs else "")]
    said += [told[name] for name in ("share", "other", "proofs") if told.get(name)]
    return {
        "left": left,
        "right": right,
        "bottom": bottom,
        "top": top,
        "probability": row["probability"] if runs and math.isfinite(row["probability"]) else None,
        "told": f"{said[0]}: {'; '.join(said[1:])}",
        **{name: text for name, text in told.items() if text},
    }


def _boundaries(frame: pandas.DataFrame, right: float, left: float) -> list[dict[str, Any]]:
    """Where the probability is 1/2, a row of the map each: inside the grid, or beyond a bound on it."""
    if frame["d1"].nunique() < 2 or frame["d1"].min() <= 0:
        return []
    counts = frame.set_index(["d0", "d1"])[["runs", "converged"]].to_xarray().fillna(0).astype(int)
    marks = []
    for row in boundary.table(counts, "d1").itertuples():
        low, high = float(row.boundary_low), float(row.boundary_high)
        told = f"d0 = {row.d0:g}: probability 1/2 "
        if row.place == logistic.INSIDE:
            told += f"at d1 = {number(row.boundary)} (95% interval {interval(low or -math.inf, high)})"
            at, shape = float(row.boundary), "circle"
        elif row.place == logistic.ABOVE and left <= low <= right:
            told += f"above d1 = {number(low)}"
            at, shape = low, "triangle-right"
        elif row.place == logistic.BELOW and left <= high <= right:
            told += f"below d1 = {number(high)}"
            at, shape = high, "triangle-left"
        else:
            continue
        inside = shape == "circle"
        ends = {"low": min(max(low, left), right), "high": min(max(high, left), right)} if inside else {}
        marks.append({"d0": float(row.d0), "d1": at, "shape": shape, "told": f"{told}, {row.runs} runs", **ends})
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
    known = {name for cell in cells for name in cell}
    fields = {
        name: title
        for name, title in {
            "cell": "cell", "converged": "converged", "share": "share", "other": "others", "proofs": "proofs",
        }.items()
        if name in known
    }  # fmt: skip
    layers: list[dict[str, Any]] = [
        {
            "data": {"values": cells},
            "mark": {"type": "rect", "invalid": None},
            "encoding": {
                "x": {**x, "field": "left", "axis": _axis("hidden width d1", d1)},
                "x2": {"field": "right"},
                "y": {**y, "field": "bottom", "axis": _axis("input dimension d0", d0)},
                "y2": {"field": "top"},
                "color": {
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
            for colour, width in (("black", 4), ("white", 1.5))
        ]
        layers.append(
            {
                "data": {"values": marks},
                "mark": {"type": "point", "filled": True, "fill": "white", "stroke": "black", "size": 45, "opacity": 1},
                "encoding": {
                    **place,
                    "shape": {"field": "shape", "type": "nominal", "scale": None, "legend": None},
                    **said,
                },
            }
        )
    return {
        "width": "container",
        "height": 340,
        "autosize": {"type": "fit", "contains": "padding"},
        "config": _CONFIG,
        "layer": layers,
    }


def _chart(title: str, frame: pandas.DataFrame) -> Chart:
    d0, d1 = (np.unique(frame[name].to_numpy(float)) for name in ("d0", "d1"))
    across, up = _edges(d1), _edges(d0)
    by_cell = {(float(row["d0"]), float(row["d1"])): row for row in frame.to_dict("records")}
    missing = {"runs": 0, "converged": 0, "probability": math.nan}
    cells = []
    rows: list[tuple[str, ...]] = []
    for i, size in enumerate(d0):
        line = [f"{size:g}"]
        for j, width in enumerate(d1):
            row: Any = by_cell.get((size, width), {**missing, "d0": size, "d1": width})
            cells.append(_cell(row, across[j], across[j + 1], up[i], up[i + 1]))
            line.append(f"{_whole(row, 'converged')}/{_whole(row, 'runs')}" if _whole(row, "runs") else "")
        rows.insert(0, tuple(line))
    marks = _boundaries(frame, across[-1], across[0])
    header = ("d0 \\ d1", *(f"{size:g}" for size in d1))
    return Chart(title, len(d1), _specification(cells, marks, d0, d1), header, tuple(rows))


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
    groups = summary.groupby(names, sort=False)
    return tuple(_chart(_title(names, values), frame) for values, frame in groups)
