"""What the step counts say: summary.csv, fits.csv, a figure, and the fitted shapes."""

import numpy as np
import pandas
from matplotlib.figure import Figure

from sweeps.reporting import style
from sweeps.reporting.statistics import fitted_slope, median_interval
from sweeps.runtime.session import configuration_of
from sweeps.step_counts.study import StepCounts
from sweeps.study import Claim, Report, Results, Variant

__all__ = ["fits", "report", "summarize"]


def summarize(study: StepCounts, results: Results) -> pandas.DataFrame:
    """A row per variant, learning rate, batch size and epsilon."""
    rows = []
    for variant, data in results.items():
        for i, rate in enumerate(data["learning_rate"].values):
            for j, size in enumerate(data["batch_size"].values):
                done = data["status"].values[i, j] != 0
                for k, epsilon in enumerate(study.epsilon):
                    steps = data[f"steps_{k}"].values[i, j][done]
                    reached = steps >= 0
                    # A run that never got there took longer than any that did.
                    median, low, high, coverage = median_interval(np.where(reached, steps, np.inf))
                    rows.append(
                        {
                            "trained_layers": variant.trained_layers,
                            "learning_rate": float(rate),
                            "batch_size": int(size),
                            "epsilon": epsilon,
                            "runs": int(done.sum()),
                            "reached": int(reached.sum()),
                            "diverged": int((data["status"].values[i, j] == 3).sum()),
                            "steps": median,
                            "steps_low": low,
                            "steps_high": high,
                            "coverage": coverage,
                            "flow_time": median * float(rate) * int(size) / study.num_samples,
                        }
                    )
    return pandas.DataFrame(rows)


def fits(table: pandas.DataFrame) -> pandas.DataFrame:
    """The two shapes of (15): a row per variant and epsilon for the exponent of eta b, a row per cell for log(1 /
    epsilon).
    """
    rows = []
    finite = table[np.isfinite(table["steps"]) & (table["steps"] > 0)]
    for (layers, epsilon), part in finite.groupby(["trained_layers", "epsilon"]):
        size = np.log(part["learning_rate"] * part["batch_size"])
        slope, low, high = fitted_slope(size.to_numpy(), np.log(part["steps"]).to_numpy())
        fitted = dict(value=slope, low=low, high=high, points=len(part))
        rows.append(dict(trained_layers=layers, shape="steps ~ (eta b)^p", at=f"epsilon = {epsilon:g}", **fitted))
    for (layers, rate, size), part in finite.groupby(["trained_layers", "learning_rate", "batch_size"]):
        slope, low, high = fitted_slope(-np.log(part["epsilon"]).to_numpy(), part["flow_time"].to_numpy())
        fitted = dict(value=slope, low=low, high=high, points=len(part))
        cell = f"eta = {rate:g}, b = {size}"
        rows.append(dict(trained_layers=layers, shape="flow time / log(1/epsilon)", at=cell, **fitted))
    return pandas.DataFrame(rows, columns=["trained_layers", "shape", "at", "value", "low", "high", "points"])


def _draw(table: pandas.DataFrame, caption: str) -> Figure:
    variants = list(dict.fromkeys(table["trained_layers"]))
    figure = Figure(figsize=(10, 4.6 * len(variants)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(variants), 2))
    figure.suptitle("Steps of mini-batch SGD to a loss below epsilon")
    style.add_caption(figure, caption)
    for (left, right), layers in zip(grid, variants, strict=True):
        # No log axis shows the 0 steps of a start that is there already.
        part = table[(table["trained_layers"] == layers) & np.isfinite(table["steps"]) & (table["steps"] > 0)]
        epsilons = sorted(set(part["epsilon"]), reverse=True)
        colours = style.shades(len(epsilons))
        cells = part.groupby(["learning_rate", "batch_size"])
        for index, epsilon in enumerate(epsilons):
            rows = part[part["epsilon"] == epsilon]
            x, colour = rows["learning_rate"] * rows["batch_size"], colours[index]
            high = np.where(np.isfinite(rows["steps_high"]), rows["steps_high"], rows["steps"])
            spread = np.stack([rows["steps"] - rows["steps_low"], high - rows["steps"]])
            left.errorbar(
                x, rows["steps"], spread, fmt="o", color=colour, markersize=4, label=rf"$\epsilon = {epsilon:g}$"
            )
            if len(rows):
                ends = np.array([x.min(), x.max()])
                left.plot(ends, np.exp(np.mean(np.log(rows["steps"] * x))) / ends, "-", color=colour, linewidth=0.8)
        for index, ((rate, size), rows) in enumerate(cells):
            right.plot(
                1 / rows["epsilon"],
                rows["flow_time"],
                "o-",
                markersize=3,
                linewidth=0.8,
                color=style.shades(len(cells))[index],
                label=rf"$\eta = {rate:g}, b = {size}$",
            )
        style.set_log_x(left, np.outer(sorted(set(table["learning_rate"])), sorted(set(table["batch_size"]))).ravel())
        if len(part):
            left.set_yscale("log")
        left.set_xlabel(r"$\eta b$ (lines: slope $-1$)")
        left.set_ylabel("steps (median and interval)")
        style.set_log_x(right, 1 / table["epsilon"].to_numpy())
        right.set_xlabel(r"$1 / \epsilon$")
        right.set_ylabel(r"flow time $k \eta b / N$ (median)")
        left.set_title(style.variant_title(Variant(trained_layers=layers)), fontsize="medium")
        if len(part):
            left.legend(fontsize="x-small")
            right.legend(fontsize="xx-small", ncols=2)
    return figure  # fmt: skip


def report(study: StepCounts, results: Results) -> Report:
    """The tables, the figure, and the fitted shapes."""
    table = summarize(study, results)
    shapes = fits(table)
    caption = (
        f"N = {study.num_samples}, d0 = {study.d0}, d1 = {study.d1}, {study.num_seeds} seeds, no momentum, float64. "
        f"Configuration {configuration_of(study.science())}."
    )
    shown = (
        shapes.to_string(index=False, float_format="%.3g")
        if len(shapes)
        else "no loss was reached, so nothing is fitted"
    )
    exponents = shapes[shapes["shape"].str.startswith("steps")]
    times = shapes[shapes["shape"].str.startswith("flow")]
    claims: tuple[Claim, ...] = ()
    if exponents["value"].notna().any() and times["value"].notna().any():
        low, high = exponents["value"].min(), exponents["value"].max()
        result = (
            f"steps are proportional to (eta b)^p with p from {low:.3f} to {high:.3f} (Theorem 5.1: -1); an e-fold of "
            f"epsilon costs a flow time of {times['value'].min():.3g} to {times['value'].max():.3g} over all eta and b"
        )
        inside = (exponents["low"] <= -1) & (exponents["high"] >= -1)
        decided = exponents["low"].notna()
        holds = bool(inside[decided].all()) if decided.any() else None
        claims = (Claim("Theorem 5.1", "k* is proportional to 1 / (eta b)", result, holds),)
    text = "\n".join([shown, *(f"\n{claim.result}" for claim in claims), caption])
    figures = {"step_counts": _draw(table, caption)}
    return Report({"summary": table, "fits": shapes}, figures, claims, text, {"fits": "%.4g"})
