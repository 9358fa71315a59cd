"""What trajectories say: summary.csv, Figure 3, and whether training is lazy."""

import numpy as np
import pandas
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.reporting import style
from sweeps.runtime.session import configuration_of
from sweeps.study import Claim, Report, Results, Variant
from sweeps.trajectories import recording
from sweeps.trajectories.study import Trajectories

__all__ = ["distinct_regions", "pattern_freezes", "report", "sentences", "tables"]


def distinct_regions(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """How many linear regions the records up to each one lie in: seeds x steps, from the halves of their
    fingerprints.
    """
    words = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    counts = np.zeros(words.shape, int)
    for seed, row in enumerate(words):
        _, first = np.unique(row, return_index=True)
        counts[seed, first] = 1
    return np.cumsum(counts, axis=-1)


def pattern_freezes(steps: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """The first recorded step from which on every record lies in one linear region, a seed: the last step if it still
    moves then.
    """
    same = (high == high[:, -1:]) & (low == low[:, -1:])
    frozen = np.flip(np.logical_and.accumulate(np.flip(same, axis=-1), axis=-1), axis=-1)
    return steps[np.argmax(frozen, axis=-1)]


def _comparable(cell: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Relative loss changes and relative changes of `name`, at the records of the runs that did not diverge, while the
    error is above rounding.
    """
    loss_change, change, error = (cell[key].values for key in ("relative_loss_change", name, "relative_error"))
    kept = (cell["status"].values == 1)[:, None] & (error > 1000 * np.finfo(error.dtype).eps) & (loss_change > 0)
    return loss_change[kept], change[kept]


def _median_of_ratio(cell: xr.Dataset, name: str) -> float:
    """The median of relative change of `name` / relative loss change."""
    loss_change, change = _comparable(cell, name)
    return float(np.median(change / loss_change)) if len(change) else float("nan")


def tables(variant: Variant, results: xr.Dataset) -> pandas.DataFrame:
    """summary.csv: a row per width."""
    rows = []
    for j, d1 in enumerate(results["d1"].values):
        cell = results.isel(d0=0, d1=j)
        done = cell["status"].values != 0
        data = {name: cell[name].values[done] for name in recording.RECORDS}
        steps = cell["step"].values
        finished = np.isfinite(data["loss"][:, -1])
        end = lambda name, d=data, f=finished: float(d[name][f, -1].mean()) if f.any() else float("nan")
        fingerprints = data["pattern_fingerprint_high"], data["pattern_fingerprint_low"]
        rows.append(
            {
                "trained_layers": variant.group,
                "d1": int(d1),
                "runs": int(done.sum()),
                "diverged": int((~finished).sum()),
                "relative_error": end("relative_error"),
                "numerical_zeros": end("numerical_zeros"),
                "zeros_at_rounding": end("zeros_at_rounding"),
                "pattern_freezes_at": float(np.median(pattern_freezes(steps, *fingerprints)[finished]))
                if finished.any()
                else float("nan"),
                "last_step": int(steps[-1]),
                "regions_of_records": float(distinct_regions(*fingerprints)[finished, -1].mean())
                if finished.any()
                else float("nan"),
                "pattern_changes_from_start": end("pattern_changes_from_start"),
                "hidden_distance": end("hidden_distance"),
                "output_distance": end("output_distance"),
                "least_singular_value": end("least_singular_value"),
                "dead_neurons": end("dead_neurons"),
                "dead_samples": end("dead_samples"),
                "jacobian_over_loss_change": _median_of_ratio(cell, "relative_jacobian_change"),
                "gradient_over_loss_change": _median_of_ratio(cell, "relative_gradient_change"),
            }
        )
    return pandas.DataFrame(rows)


def sentences(table: pandas.DataFrame) -> list[str]:
    """Whether training is far from lazy, in each meaning of the differential, as the data say.

    Chizat et al. call training lazy where the loss changes relatively much more than the differential; the paper finds
    the opposite for moderate and large widths.
    """
    lines = []
    for name, meaning in (
        ("jacobian_over_loss_change", "the Jacobian DY, operator norm (the paper's text)"),
        ("gradient_over_loss_change", "the loss gradient (the released code)"),
    ):
        ratios = table[["trained_layers", "d1", name]].dropna()
        if not len(ratios):
            continue
        above = ratios[ratios[name] > 1]
        least, most = ratios[name].min(), ratios[name].max()
        verdict = (
            "so far from lazy in all of them" if len(above) == len(ratios)
            else "so lazy in all of them" if not len(above)
            else f"so far from lazy in {len(above)} of {len(ratios)} networks"
        )  # fmt: skip
        lines.append(
            f"{meaning}: the median of relative differential change / relative loss change is "
            f"{least:.2g} to {most:.2g}, {verdict}"
        )
    return lines


_PANELS = {
    "relative_error": r"$\|\hat Y - Y\| / \|Y\|$",
    "numerical_zeros": "numerical zeros",
    "pattern_changes": "pattern changes in a step",
    "regions": "linear regions among the records",
    "relative_loss_change": r"relative loss change $\Delta L$",
    "relative_jacobian_change": r"relative change of $DY$",
    "relative_gradient_change": "relative change of the gradient",
}


def _honest_log(axes: Axes, curves: list[np.ndarray]) -> None:
    """A log axis where the data span decades, linear below the least positive value, so that zero is on it."""
    positive = np.concatenate([curve[np.isfinite(curve) & (curve > 0)] for curve in curves] or [np.empty(0)])
    zero = any((curve == 0).any() for curve in curves)
    if len(positive) and positive.max() / positive.min() > 100:
        if zero:
            linear = 10 ** np.floor(np.log10(max(positive.min(), positive.max() * 1e-14)))
            axes.set_yscale("symlog", linthresh=linear)
            axes.set_ylim(bottom=-0.3 * linear)
            axes.axhline(0, color="0.8", linewidth=0.6)
        else:
            axes.set_yscale("log")
    elif zero:
        axes.set_ylim(bottom=0 if not len(positive) else -0.02 * positive.max())


def draw(results: Results, caption: str) -> Figure:
    """Figure 3: a row a variant, a column a quantity, a colour a width; mean and standard deviation over the seeds."""
    figure = Figure(figsize=(3.1 * len(_PANELS), 3.3 * len(results) + 0.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(results), len(_PANELS), sharex=True))
    figure.suptitle("Training trajectories")
    style.add_caption(figure, caption)
    for row, (variant, data) in zip(grid, results.items(), strict=True):
        widths, steps = data["d1"].values, data["step"].values
        for axes, (name, label) in zip(row, _PANELS.items(), strict=True):
            curves = []
            for j, d1 in enumerate(widths):
                cell = data.isel(d0=0, d1=j)
                cell = cell.isel(seed=np.flatnonzero(cell["status"].values != 0))
                if not cell.sizes["seed"]:
                    continue
                colour = style.shades(len(widths))[j]
                high, low = (cell[f"pattern_fingerprint_{half}"].values for half in ("high", "low"))
                values = distinct_regions(high, low) if name == "regions" else cell[name].values
                alive = np.isfinite(cell["loss"].values)
                values = np.where(alive, values, np.nan).astype(float)
                kept = alive.any(axis=0)
                mean, spread = np.nanmean(values[:, kept], axis=0), np.nanstd(values[:, kept], axis=0)
                axes.plot(steps[kept], mean, color=colour, linewidth=1, label=f"$d_1 = {d1}$")
                axes.fill_between(
                    steps[kept], np.maximum(mean - spread, 0), mean + spread, color=colour, alpha=0.2, linewidth=0
                )
                curves.append(mean)
                if not alive[:, -1].all() and kept.any():
                    axes.plot(steps[kept][-1], mean[-1], "x", color="tab:red", markersize=8)
                if alive[:, -1].any():
                    freeze = np.median(pattern_freezes(steps, high, low)[alive[:, -1]])
                    if freeze < steps[-1]:
                        axes.axvline(freeze, color=colour, linestyle=":", linewidth=1)
            _honest_log(axes, curves)
            axes.set_title(label, fontsize="medium")
            style.set_log_x(axes, steps)
        row[0].set_ylabel(style.variant_title(variant))
        if row[0].lines:
            row[0].legend(fontsize="x-small")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    return figure


def draw_lazy(results: Results, caption: str) -> Figure:
    """Relative loss change against relative differential change, in both meanings: lazy lies below the diagonal."""
    names = {"relative_jacobian_change": "the Jacobian $DY$", "relative_gradient_change": "the loss gradient"}
    figure = Figure(figsize=(9, 4.2 * len(results)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(results), 2))
    figure.suptitle("Is training lazy? (below the line the loss changes more than the differential)")
    style.add_caption(figure, caption)
    for row, (variant, data) in zip(grid, results.items(), strict=True):
        for axes, (name, label) in zip(row, names.items(), strict=True):
            shown = []
            for j, d1 in enumerate(data["d1"].values):
                cell = data.isel(d0=0, d1=j)
                x, y = _comparable(cell, name)
                kept = y > 0
                colour = style.shades(data.sizes["d1"])[j]
                label_of = f"$d_1 = {d1}$" if kept.all() else f"$d_1 = {d1}$ ({(~kept).sum()} of {len(y)} at 0)"
                axes.plot(x[kept], y[kept], ".", color=colour, markersize=3, alpha=0.5, label=label_of)
                shown.append(np.concatenate([x[kept], y[kept]]))
            values = np.concatenate(shown)
            if len(values):
                ends = [values.min(), values.max()]
                axes.plot(ends, ends, "k-", linewidth=0.8)
                axes.set_xscale("log")
                axes.set_yscale("log")
            axes.set_xlabel(r"relative loss change $\Delta L$")
            axes.set_ylabel(f"relative change of {label}")
            axes.set_title(style.variant_title(variant), fontsize="medium")
            axes.legend(fontsize="x-small", markerscale=3)
    return figure


def report(study: Trajectories, results: Results) -> Report:
    """summary.csv, the figures, and what they say."""
    caption = (
        f"{study.protocol}: N = {study.num_samples}, d0 = {study.d0[0]}, {study.num_seeds} seeds (mean and standard "
        f"deviation), {study.num_steps:,} steps, recorded every {study.measure_every}, {study.precision}. Dotted: the "
        f"pattern changes no more (median). Red cross: diverged. Configuration {configuration_of(study.science())}."
    )
    table = pandas.concat([tables(variant, data) for variant, data in results.items()], ignore_index=True)
    figures = {"trajectories": draw(results, caption), "lazy": draw_lazy(results, caption)}
    said = sentences(table)
    claims = tuple(
        Claim("Section 6", "training is far from lazy", line, None if "networks" in line else "far from lazy" in line)
        for line in said
    )
    text = "\n".join([table.to_string(index=False, float_format="%.3g"), "", *said, caption])
    return Report({"summary": table}, figures, claims, text)
