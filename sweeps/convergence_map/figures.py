"""The panels of a convergence map. Axes show d1 across and d0 up."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke

from relu_sgd.proofs import Verdict
from sweeps.reporting import boundary
from sweeps.reporting.style import add_caption, variant_title
from sweeps.study import Variant

__all__ = [
    "causes",
    "convergence_steps",
    "intervals",
    "numerical_zeros",
    "probability",
    "proved_errors",
    "verdicts",
]

VERDICTS = {"proved_global": "a global minimum", "proved_local": "a local minimum of positive loss"}
_MOST_NUMBERS = 16  # Cells in a row that have room for a number.
CAUSES = {"step_limit": "step limit", "dead": "dead samples", "diverged": "diverged"}
Summaries: TypeAlias = Mapping[Variant, xr.Dataset]


def _at_least_two(sizes: np.ndarray, values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """A single size as two halves of its cell: Matplotlib needs two centres to know how wide a cell is."""
    if len(sizes) > 1:
        return sizes, values
    return sizes + np.array([-0.25, 0.25]), np.repeat(values, 2, axis)


def _cells(axes: Axes, values: xr.DataArray, **kwargs: Any) -> Any:
    """The values as coloured cells over a hatched ground, which shows through where there is no value."""
    d0, shown = _at_least_two(np.asarray(values["d0"], float), values.values, 0)
    d1, shown = _at_least_two(np.asarray(values["d1"], float), shown, 1)
    mesh = axes.pcolormesh(d1, d0, np.ma.masked_invalid(shown), shading="nearest", **kwargs)
    corners: Any = mesh.get_coordinates()  # Matplotlib's own, half a cell beyond the outermost sizes.
    (left, bottom), (right, top) = (map(float, corners[at]) for at in ((0, 0), (-1, -1)))
    ground = Rectangle(
        (left, bottom),
        right - left,
        top - bottom,
        facecolor="0.95",
        edgecolor="0.6",
        hatch="////",
        linewidth=0,
        zorder=0,
    )
    axes.add_patch(ground)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_xlabel("hidden width $d_1$")
    axes.set_ylabel("input dimension $d_0$")
    return mesh


def _legend(axes: Axes, handles: Sequence[Any], values: xr.DataArray, missing: str) -> None:
    """Below the panel, where it hides no cell."""
    if np.isnan(values.values).any():
        handles = [*handles, Patch(facecolor="0.95", edgecolor="0.6", hatch="////", label=missing)]
    if handles:
        axes.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=len(handles), fontsize="small",
            frameon=False,
        )  # fmt: skip


def _panels(summaries: Summaries, title: str, caption: str, rows: int = 1) -> tuple[Figure, np.ndarray]:
    columns = len(summaries) if rows == 1 else len(_causes(summaries))
    figure = Figure(figsize=(4.6 * columns + 0.8, 4.1 * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title)
    add_caption(figure, caption)
    return figure, axes


def _over_setups(
    summaries: Summaries,
    title: str,
    caption: str,
    name: str,
    label: str,
    norm: Normalize,
    colours: str,
    missing: str = "no run yet",
) -> Figure:
    """A panel per variant, all on one scale."""
    figure, panels = _panels(summaries, title, caption)
    for axes, (variant, summary) in zip(panels[0], summaries.items(), strict=True):
        mesh = _cells(axes, summary[name], norm=norm, cmap=colours)
        axes.set_title(variant_title(variant), fontsize="medium")
        _legend(axes, [], summary[name], missing)
    figure.colorbar(mesh, ax=panels[0].tolist(), label=label)
    return figure


def _overparametrization_curves(axes: Axes, num_samples: int) -> list[Line2D]:
    """The curves d0 d1 = N and d1 = N, as far as they cross the panel; the handles of those that do."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    handles = []
    d1 = np.linspace(max(left, 1e-9), right, 400)
    curve = num_samples / d1
    if ((curve > bottom) & (curve < top)).any():
        handles += axes.plot(d1, curve, color="tab:red", linestyle="--", label="$d_0 d_1 = N$")
    if left < num_samples < right:
        handles.append(axes.axvline(num_samples, color="tab:red", linestyle=":", label="$d_1 = N$"))
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return handles


def _runs(axes: Axes, runs: xr.DataArray, norm: Normalize) -> Any:
    """How many runs every cell has: a colour, and the number where there is room."""
    mesh = _cells(axes, runs.where(runs > 0), norm=norm, cmap="cividis")
    if max(runs.shape) <= _MOST_NUMBERS:
        for (i, j), count in np.ndenumerate(runs.values):
            dark = norm(count) < 0.5
            axes.text(
                float(runs["d1"][j]), float(runs["d0"][i]), str(count), ha="center", va="center", fontsize="x-small",
                color="white" if dark else "black",
            )  # fmt: skip
    return mesh


def probability(
    summaries: Summaries, caption: str, boundaries: Mapping[Variant, pandas.DataFrame] | None = None
) -> Figure:
    """Figure 2a: the probability of convergence, with the boundary at which it is 1/2 (its contour 0.5 where there is
    none) and the curves d0 d1 = N and d1 = N; below, the runs of every cell where they have different numbers of them.
    """
    ragged = len(np.unique(np.concatenate([summary["runs"].values.ravel() for summary in summaries.values()]))) > 1
    ragged &= boundaries is not None
    columns, rows = len(summaries), 1 + ragged
    figure = Figure(figsize=(4.6 * columns + 0.8, 4.1 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle("Probability of convergence to a global minimum")
    add_caption(figure, caption)
    for axes, (variant, summary) in zip(panels[0], summaries.items(), strict=True):
        values = summary["probability"]
        mesh = _cells(axes, values, norm=Normalize(0, 1), cmap="cividis")
        handles: list[Any] = []
        known = values.values[~np.isnan(values.values)]
        if boundaries is not None:
            handles += boundary.draw(axes, boundaries[variant], "d0")
        elif min(values.shape) > 1 and known.size and known.min() < 0.5 < known.max():
            contour = axes.contour(
                values["d1"], values["d0"], np.ma.masked_invalid(values.values), [0.5], colors="white", linewidths=1.5
            )
            outline = [Stroke(linewidth=3, foreground="black"), Normal()]  # Visible on cells and paper alike.
            contour.set(path_effects=outline)
            handles.append(Line2D([], [], color="white", path_effects=outline, label="probability 0.5"))
        handles += _overparametrization_curves(axes, summary.attrs["science"]["num_samples"])
        axes.set_title(variant_title(variant), fontsize="medium")
        _legend(axes, handles, values, "no run yet")
    figure.colorbar(mesh, ax=panels[0].tolist(), label="share of runs that converged")
    if ragged:
        counts = [summary["runs"].values for summary in summaries.values()]
        norm = LogNorm(max(1, min(map(np.min, counts))), max(map(np.max, counts)))
        for axes, (variant, summary) in zip(panels[1], summaries.items(), strict=True):
            mesh = _runs(axes, summary["runs"], norm)
            axes.set_title(f"{variant_title(variant)}: {int(summary['runs'].sum()):,} runs", fontsize="medium")
        figure.colorbar(mesh, ax=panels[1].tolist(), label="runs of a cell")
    return figure


def intervals(summaries: Summaries, caption: str, method: str) -> Figure:
    """How sure the probabilities are: the width of their 95 percent intervals."""
    widths = {
        variant: summary.assign(width=summary["probability_high"] - summary["probability_low"])
        for variant, summary in summaries.items()
    }
    title = f"Width of the 95 percent interval of the probability ({method})"
    return _over_setups(widths, title, caption, "width", "high end - low end", Normalize(0, 1), "cividis")


def numerical_zeros(summaries: Summaries, caption: str) -> Figure:
    """Figures 2b and 2c: the average number of numerical zeros among the preactivations at the last step."""
    most = max([1.0, *(float(summary["mean_numerical_zeros"].max()) for summary in summaries.values())])
    threshold = next(iter(summaries.values())).attrs["science"]["zero_threshold"]
    norm = SymLogNorm(linthresh=1, vmin=0, vmax=most if most == most else 1)
    label = f"average number of $|Z_{{ij}}| < {threshold:g}$"
    return _over_setups(
        summaries,
        "Numerical zeros at the last step",
        caption,
        "mean_numerical_zeros",
        label,
        norm,
        "viridis",
        "no run ended",
    )


def convergence_steps(summaries: Summaries, caption: str) -> Figure:
    """The median number of steps to convergence, of the runs that converged."""
    values = np.concatenate([summary["median_steps"].values.ravel() for summary in summaries.values()])
    values = values[values > 0]
    norm = LogNorm(values.min(), max(values.max(), values.min() * 1.01)) if values.size else LogNorm(1, 10)
    label = "median of the runs that converged"
    return _over_setups(
        summaries, "Steps to convergence", caption, "median_steps", label, norm, "viridis", "no run converged"
    )


def _causes(summaries: Summaries) -> dict[str, str]:
    """Why runs fail: name in the summary to title."""
    stops = any("stopped" in summary for summary in summaries.values())
    return CAUSES | ({"stopped": "proved local minimum"} if stops else {})


def causes(summaries: Summaries, caption: str) -> Figure:
    """Why runs fail: the share of runs that ended for each reason; a row per variant."""
    figure, panels = _panels(summaries, "Why runs fail", caption, rows=max(2, len(summaries)))
    known = _causes(summaries)
    for row, (variant, summary) in zip(panels, summaries.items(), strict=False):
        for axes, (name, cause) in zip(row, known.items(), strict=True):
            values = summary[name] / summary["runs"].where(summary["runs"] > 0)
            mesh = _cells(axes, values, norm=Normalize(0, 1), cmap="cividis")
            axes.set_title(f"{variant_title(variant)}: {cause}", fontsize="medium")
    for row in panels[len(summaries) :]:
        for axes in row:
            axes.remove()
    figure.colorbar(mesh, ax=panels.ravel().tolist()[: len(known) * len(summaries)], label="share of runs")
    return figure


def verdicts(summaries: Summaries, caption: str) -> Figure:
    """What is proved of the runs: the shares with a global and with a local minimum nearby; the hatched part of a cell
    is the share of its runs that are undecided. A row per variant.
    """
    rows = max(2, len(summaries))
    figure = Figure(figsize=(10.0, 4.1 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, len(VERDICTS), squeeze=False)
    figure.suptitle("What is proved of the runs' ends")
    add_caption(figure, caption)
    for row, (variant, summary) in zip(panels, summaries.items(), strict=False):
        runs = summary["runs"].where(summary["runs"] > 0)
        undecided = np.nan_to_num((summary["undecided"] / runs).values)
        for axes, (name, verdict) in zip(row, VERDICTS.items(), strict=True):
            mesh = _cells(axes, summary[name] / runs, norm=Normalize(0, 1), cmap="cividis")
            axes.set_title(f"{variant_title(variant)}: {verdict}", fontsize="medium")
            corners = np.asarray(mesh.get_coordinates())
            repeats = [(corners.shape[k] - 1) // undecided.shape[k] for k in range(2)]  # A single size has two halves.
            for (i, j), share in np.ndenumerate(undecided.repeat(repeats[0], 0).repeat(repeats[1], 1)):
                (left, bottom), (right, top) = corners[i, j], corners[i + 1, j + 1]
                if share > 0:
                    axes.add_patch(_hatched(left, bottom, right - left, share * (top - bottom)))
            _legend(axes, [Patch(facecolor="0.95", edgecolor="0.3", hatch="//////", label="undecided")], runs, "no run")
    for row in panels[len(summaries) :]:
        for axes in row:
            axes.remove()
    figure.colorbar(mesh, ax=panels.ravel().tolist()[: len(VERDICTS) * len(summaries)], label="share of runs")
    return figure


def _hatched(left: float, bottom: float, width: float, height: float) -> Rectangle:
    return Rectangle((left, bottom), width, height, facecolor="0.95", edgecolor="0.3", hatch="//////", linewidth=0)


def proved_errors(results: Mapping[Variant, xr.Dataset], caption: str) -> Figure:
    """The relative errors of the local minima that are proved, with sqrt(k / N), which k dead samples leave."""
    num_samples = next(iter(results.values())).attrs["science"]["num_samples"]
    figure = Figure(figsize=(4.6 * max(2, len(results)) + 0.8, 4.6), layout="constrained")
    figure.suptitle("Relative error of the local minima that are proved (lower bound)")
    add_caption(figure, caption)
    for axes, (variant, data) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        errors = data["proved_error_low"].values[data["verdict"].values == Verdict.LOCAL_MINIMUM]
        largest = max(float(errors.max(initial=0.0)), np.sqrt(1 / num_samples))
        axes.hist(errors, bins=np.linspace(0, largest * 1.02, 61).tolist(), color="0.45")
        # As many as can be told apart; one dead sample is the first from the left.
        dead = [np.sqrt(k / num_samples) for k in range(1, num_samples + 1)]
        for error in [error for error in dead if error <= largest][:12]:
            line = axes.axvline(error, color="tab:red", linewidth=0.7, label=r"$\sqrt{k / N}$, $k = 1, 2, \ldots$")
        axes.set_title(f"{variant_title(variant)}: {len(errors)} local minima", fontsize="medium")
        axes.set_xlabel(r"$\|Y - \hat Y^*\|_F / \|Y\|_F$")
        axes.set_ylabel("runs")
        axes.legend(handles=[line], fontsize="small", frameon=False)
    return figure
