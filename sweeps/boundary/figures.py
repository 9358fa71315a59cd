"""Figures of the boundary, one of each kind for every set-up."""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps import logistic
from sweeps.boundary import law
from sweeps.boundary.certified import EXPECTED, EXTRAPOLATED, MEASURED
from sweeps.boundary.tables import stable
from sweeps.reporting import style
from sweeps.reporting.statistics import interval

__all__ = ["draw"]

_GROUP = ["condition", "trained_layers", "loss", "outcome"]
_MARKS = "osD^vP*X"
_RANKS = {"start": "_", "end": "x"}  # Of the moments.


def draw(cells: pandas.DataFrame, tables: Mapping[str, pandas.DataFrame], caption: str) -> dict[str, Figure]:
    """The boundary of every set-up and outcome, the first as "boundary"; and dead samples, where they were counted.

    Args:
      cells: with their outcomes.
      tables: of `sweeps.boundary.report.analyze`.
      caption: what was run.
    """
    figures: dict[str, Figure] = {}
    for values, part in cells.groupby(_GROUP, sort=False):
        group = dict(zip(_GROUP, map(str, values), strict=True))
        here = {}
        for name, table in tables.items():
            known = [column for column in _GROUP if column in table] if "loss" in table else []
            here[name] = table[(table[known] == pandas.Series(group)[known]).all(axis=1)] if known else table
        name = "_".join(["boundary", *group.values()]) if figures else "boundary"
        figures[name.replace(" ", "_")] = _boundary(group, part, here, caption)
        if "dead_samples" in here and len(here["dead_samples"]) and "dead_samples" not in figures:
            figures["dead_samples"] = _dead(group, here, caption)
    return figures


def _colours(sizes: np.ndarray) -> dict[float, object]:
    return dict(zip(sizes, style.shades(len(sizes)), strict=True))


def _boundary(
    group: dict[str, str], cells: pandas.DataFrame, tables: Mapping[str, pandas.DataFrame], caption: str
) -> Figure:
    figure = Figure(figsize=(13, 10), layout="constrained")
    panels = figure.subplots(2, 2)
    names = style.LAYERS_TITLES[group["trained_layers"]], group["condition"], f"{group['loss']} loss"
    figure.suptitle(f"{', '.join(names)}, success: {group['outcome']}")
    colours = _colours(np.unique(cells["num_samples"]))
    kept = stable(cells)[["num_samples", "d0"]].drop_duplicates()
    limits = tables["boundaries"].merge(kept, on=["num_samples", "d0"]) if len(kept) else tables["boundaries"]
    _collapse(panels[0, 0], cells, tables, colours)
    _widths(panels[0, 1], limits, tables, colours)
    _certified(panels[1, 0], limits, tables.get("certified"), colours)
    _steepness(panels[1, 1], limits, tables.get("steepness"), tables.get("transition"), colours)
    runs = ", ".join(f"{int(part['runs'].sum()):,} at N = {n}" for n, part in cells.groupby("num_samples"))
    style.add_caption(
        figure,
        f"{int(cells['runs'].sum()):,} runs in {len(cells)} cells: {runs}. Bars: 95 percent, of a share Wilson's, of "
        f"widths and steepness from a logistic curve a row (N, d0).\n{caption}",
    )
    return figure


def _collapse(
    axes: Axes, cells: pandas.DataFrame, tables: Mapping[str, pandas.DataFrame], colours: dict[float, object]
) -> None:
    """Cells of near x together, those of rows whose width is decided by N / d0 filled; rows that diverge are left out.
    x is d1 over the boundary of the law that foresees best, where there is one.
    """
    cells = stable(cells)
    if not len(cells):
        axes.set_title("all rows diverge", fontsize="x-small")
        return
    n, d0, d1 = (cells[name].to_numpy(float) for name in ("num_samples", "d0", "d1"))
    laws = tables.get("laws")
    coordinate, x = "$d_0 d_1 / N$", d0 * d1 / n
    if laws is not None and len(laws):
        chosen = laws[laws["chosen"]]
        extra = float((chosen["trained_layers"] == "both").any())
        coordinate, x = "$d_1 / d_1^*$ of the law", d1 / _law_of(chosen).boundary(n, d0, d0 + extra)
    bins = np.round(np.log2(x) * 16) / 16
    kinds = law.regime(n, d0)
    for face in (True, False):
        chosen_cells = (kinds == "counting") == face
        by = [cells.loc[chosen_cells, "num_samples"], bins[chosen_cells]]
        sums = cells[chosen_cells].groupby(by)[["runs", "converged"]].sum()
        for (size, colour), mark in zip(colours.items(), itertools.cycle(_MARKS)):
            if size not in sums.index.get_level_values(0):
                continue
            part = sums.loc[size]
            ends = np.array([interval(int(c), int(r)) for r, c in part.itertuples(index=False)]).T
            share = (part["converged"] / part["runs"]).to_numpy()
            axes.errorbar(
                2.0 ** part.index.to_numpy(float), share, np.maximum([share - ends[0], ends[1] - share], 0),
                color=colour, marker=mark, markersize=4, linestyle="", elinewidth=0.6,
                markerfacecolor=colour if face else "white", zorder=2 + face,
            )  # fmt: skip
    for (size, colour), mark in zip(colours.items(), itertools.cycle(_MARKS)):
        axes.plot([], [], marker=mark, color=colour, linestyle="", markersize=4, label=f"N = {size}")
    axes.plot([], [], "ko", markerfacecolor="white", label="rows with $N / d_0 < 2 \\log_2 N$")
    axes.axvline(1, color="0.8", linewidth=0.8, zorder=0)
    axes.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
    style.set_log_x(axes, np.clip(x, 0.4, 2.5), base=2)
    axes.set_xlabel(coordinate)
    axes.set_ylabel("share of runs that succeed")
    title = "collapse"
    if "collapse" in tables:
        table = tables["collapse"]
        rows = table[(table["regime"] == "all") & (table["coordinate"] != "d1 / log2 N")]
        said = [f"over {row.coordinate} {row.share_of_rows:.2f}" for row in rows.itertuples()]
        title = "explained by one curve, of what a curve a row explains: " + ", ".join(said) if said else title
    axes.set_title(title, fontsize="x-small")
    axes.legend(fontsize="x-small")


def _bars(axes: Axes, part: pandas.DataFrame, colour: object, label: str | None, mark: str = "o") -> None:
    """Boundaries over N / d0, with arrows for bounds on one side."""
    ratio = part["num_samples"] / part["d0"]
    inside = part["place"] == logistic.INSIDE
    size, low, high = (part.loc[inside, f"boundary{end}"] for end in ("", "_low", "_high"))
    ends = np.array([size - np.maximum(low, size / 1e3), np.minimum(high, size * 1e3) - size])
    axes.errorbar(ratio[inside], size, ends, color=colour, marker=mark, markersize=4, linestyle="", label=label)
    for place, arrow, end in ((logistic.ABOVE, "^", "low"), (logistic.BELOW, "v", "high")):
        known = part[(part["place"] == place) & part[f"boundary_{end}"].between(1e-9, 1e9)]
        axes.plot(known["num_samples"] / known["d0"], known[f"boundary_{end}"], arrow, color=colour, markersize=7,
                  markerfacecolor="white")  # fmt: skip


def _widths(
    axes: Axes, limits: pandas.DataFrame, tables: Mapping[str, pandas.DataFrame], colours: dict[float, object]
) -> None:
    rank = tables.get("rank")
    laws = tables.get("laws")
    for (n, colour), mark in zip(colours.items(), itertools.cycle(_MARKS)):
        _bars(axes, limits[limits["num_samples"] == n], colour, f"N = {n}", mark)
        axes.axhline(np.log2(float(n)), color=colour, linestyle=":", linewidth=1)
        if rank is not None and len(rank):
            inside = rank[(rank["num_samples"] == n) & (rank["place"] == logistic.INSIDE)]
            for moment, sign in _RANKS.items():
                part = inside[inside["moment"] == moment]
                axes.plot(part["num_samples"] / part["d0"], part["boundary"], sign, color=colour, markersize=9)
        if laws is not None and len(laws):
            chosen = laws[laws["chosen"]]
            found = _law_of(chosen)
            d0 = np.geomspace(float(limits["d0"].min()), float(n) / 2, 60)
            extra = float((chosen["trained_layers"] == "both").any())
            axes.plot(float(n) / d0, found.boundary(float(n), d0, d0 + extra), "-", color=colour, linewidth=1)
    ratio = np.geomspace(2, float((limits["num_samples"] / limits["d0"]).max()), 50)
    axes.plot(ratio, ratio, "-", color="tab:red", linewidth=1, label="counting: $d_0 d_1 = N$")
    axes.plot([], [], "k:", label="$\\log_2 N$ (order of Dana et al. 2025)")
    for moment, sign in _RANKS.items():
        if rank is not None and (rank["moment"] == moment).any():
            axes.plot([], [], f"k{sign}", markersize=9, label=f"half of the Jacobians have rank N ({moment})")
    if laws is not None and len(laws):
        chosen = laws[laws["chosen"]]
        values = ", ".join(
            f"{p.parameter} = {p.value:.3g} ({p.low:.3g} to {p.high:.3g})"
            for p in chosen.itertuples()
            if p.parameter not in "swv"
        )
        axes.plot(
            [], [], "k-", linewidth=1, label=f"law: {chosen['model'].iloc[0]}" + (f"\n{values}" if values else "")
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    known = np.concatenate([limits[f"boundary{end}"] for end in ("", "_low")])
    known = known[np.isfinite(known) & (known > 0)]
    axes.set_ylim(1.5, 2 * max([16, ratio[-1], *known]))
    axes.set_xlabel("$N / d_0$")
    axes.set_ylabel("width $d_1^*$ at which half succeed")
    axes.set_title("the boundary (bars that leave the frame have no end)", fontsize="small")
    axes.legend(fontsize="x-small")


def _law_of(chosen: pandas.DataFrame) -> law.Fit:
    """The fit whose parameters stand in the table."""
    model = next(model for model in law.MODELS if model.name == chosen["model"].iloc[0])
    transition = law.TRANSITIONS["powers of N and d1*"]
    values = dict(zip(chosen["parameter"], chosen["value"], strict=True))
    inner = np.array([p.inner(values[p.name]) for p in model.parameters + transition])
    return law.Fit(model, transition, inner, np.eye(len(inner)), 0.0, 0.0, 0.0)


def _certified(
    axes: Axes, limits: pandas.DataFrame, certified: pandas.DataFrame | None, colours: dict[float, object]
) -> None:
    for n, colour in colours.items():
        _bars(axes, limits[limits["num_samples"] == n], colour, None)
        if certified is None:
            continue
        for condition, mark, line in (
            ("path", "s", "-"),
            ("(10)", "D", "--"),
            ("(54)", "P", ":"),
            ("flips", "v", "-."),
        ):
            part = certified[(certified["num_samples"] == n) & (certified["certificate"] == condition)]
            for sources, face in (((EXPECTED, EXTRAPOLATED), "white"), ((MEASURED,), colour)):
                known = part[part["source"].isin(sources) & np.isfinite(part["width"])]
                axes.plot(
                    known["num_samples"] / known["d0"], known["width"], mark, color=colour, markersize=5,
                    markerfacecolor=face, linestyle="" if MEASURED in sources else line, linewidth=0.7,
                )  # fmt: skip
    names = {
        "s-": "path certificate (both layers)",
        "D--": "(10) (both layers)",
        "P:": "(54), Appendix G (hidden layer)",
        "v-.": "flip certificate (hidden layer)",
    }
    for mark, name in names.items():
        axes.plot(
            [],
            [],
            mark,
            color="k",
            markerfacecolor="white",
            label=f"certified by the {name}" if "certificate" in name else f"certified by {name}",
        )
    axes.plot([], [], "ko", label="$d_1^*$, measured")
    ratio = np.geomspace(2, float((limits["num_samples"] / limits["d0"]).max()), 50)
    axes.plot(ratio, ratio, "-", color="tab:red", linewidth=1, label="counting")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1)
    axes.set_xlabel("$N / d_0$")
    axes.set_ylabel("width $d_1$")
    note = "filled: of a drawn start; open: by expectations, for flips extrapolated"
    axes.set_title(f"what is certified ({note})", fontsize="small")
    axes.legend(fontsize="x-small")


def _steepness(
    axes: Axes,
    limits: pandas.DataFrame,
    steepness: pandas.DataFrame | None,
    transition: pandas.DataFrame | None,
    colours: dict[float, object],
) -> None:
    inside = limits[limits["place"] == logistic.INSIDE]
    axes.plot(inside["num_samples"], inside["slope"], "_", color="0.7", markersize=9, label="of a row $(N, d_0)$")
    if steepness is not None:
        for row, mark in zip(steepness.itertuples(), itertools.cycle(_MARKS)):
            ends = np.array([[row.steepness - row.low], [min(row.high, 1e3 * row.steepness) - row.steepness]])
            axes.errorbar(
                row.num_samples, row.steepness, ends, color=colours[row.num_samples], marker=mark, markersize=6
            )
        axes.plot([], [], "ko", label="common to all rows of $N$")
    if transition is not None and len(transition):
        row = transition[(transition["regime"] == "all") & (transition["powers"] == "w")]
        said = [f"{each.estimate:.2f} ({each.low:.2f} to {each.high:.2f})" for each in row.itertuples()]
        if said:
            axes.set_title(f"steepness grows as N to the power {said[0]}", fontsize="small")
    style.set_log_x(axes, list(colours), base=2)
    if len(inside):
        axes.set_yscale("log", base=2)
    axes.set_xlabel("samples $N$")
    axes.set_ylabel("steepness $b$: logit $P = b \\, (\\log d_1 - \\log d_1^*)$")
    axes.legend(fontsize="x-small")


def _dead(group: dict[str, str], tables: Mapping[str, pandas.DataFrame], caption: str) -> Figure:
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle("dead samples at the start, and at the boundary")
    dead = tables["dead_samples"]
    colours = _colours(np.unique(dead["num_samples"]))
    for (n, colour), mark in zip(colours.items(), itertools.cycle(_MARKS)):
        part = dead[dead["num_samples"] == n].groupby("d1")[["runs", "runs_with_dead"]].sum()
        share = (part["runs_with_dead"] / part["runs"]).to_numpy()
        ends = np.array([interval(int(c), int(r)) for r, c in part.itertuples(index=False)]).T
        left.errorbar(part.index, share, np.maximum([share - ends[0], ends[1] - share], 0), color=colour, marker=mark,
                      markersize=4, linestyle="", label=f"N = {n}")  # fmt: skip
        d1 = np.linspace(1, max(30, 2 * np.log2(float(n))), 200)
        left.plot(d1, -np.expm1(float(n) * np.log1p(-(2.0**-d1))), color=colour, linewidth=1)
        limits = tables["boundaries"]
        row = limits[(limits["num_samples"] == n) & (limits["place"] == logistic.INSIDE)]
        size, low, high = row["expected_dead"], row["expected_dead_low"], row["expected_dead_high"]
        right.errorbar(row["d0"] / row["num_samples"], size, [size - low, high - size], color=colour, marker=mark,
                       markersize=4, linestyle="", label=f"N = {n}")  # fmt: skip
    left.plot([], [], "k-", linewidth=1, label="independent samples: $1 - (1 - 2^{-d_1})^N$")
    left.set_xlim(0, 32)
    left.set_xlabel("width $d_1$")
    left.set_ylabel("share of starts with a dead sample")
    left.legend(fontsize="x-small")
    right.axhline(np.log(2), color="tab:red", linewidth=1, label="log 2: half of the starts have none")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_ylim(1e-6, 10)
    right.set_xlabel("$d_0 / N$")
    right.set_ylabel("dead samples expected at the boundary, $N 2^{-d_1^*}$")
    right.set_title(", ".join(group.values()), fontsize="small")
    right.legend(fontsize="x-small")
    style.add_caption(figure, f"{int(dead['runs'].sum()):,} starts in {len(dead)} cells; bars: 95 percent.\n{caption}")
    return figure
