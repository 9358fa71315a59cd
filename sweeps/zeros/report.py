"""What the count of zeros says: summary.csv, a figure, and what decides the count."""

import numpy as np
import pandas
from matplotlib.figure import Figure

from sweeps.reporting import style
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results, Variant
from sweeps.zeros.study import Zeros

__all__ = ["report", "sentence", "summarize"]


def summarize(study: Zeros, results: Results) -> pandas.DataFrame:
    """A row per variant, precision, step size, slope and threshold; means over the runs that did not diverge."""
    rows = []
    for variant, data in results.items():
        for i, rate in enumerate(data["learning_rate"].values):
            for j, slope in enumerate(data["relu_at_zero"].values):
                kept = data["status"].values[i, j] == 1
                mean = lambda name, k=kept, d=data, at=(i, j): (
                    float(d[name].values[at][k].mean()) if k.any() else np.nan
                )
                for index, threshold in enumerate(study.threshold):
                    counts = data[f"zeros_{index}"].values[i, j][kept]
                    rows.append(
                        {
                            "trained_layers": variant.trained_layers,
                            "precision": variant.precision,
                            "learning_rate": float(rate),
                            "relu_at_zero": float(slope),
                            "threshold": threshold,
                            "runs": int(kept.sum()),
                            "diverged": int((data["status"].values[i, j] == 3).sum()),
                            "mean_zeros": mean(f"zeros_{index}"),
                            "least_zeros": int(counts.min()) if len(counts) else -1,
                            "most_zeros": int(counts.max()) if len(counts) else -1,
                            "mean_zeros_at_rounding": mean("zeros_at_rounding"),
                            "relative_error": mean("relative_error"),
                        }
                    )
    return pandas.DataFrame(rows)


def sentence(table: pandas.DataFrame) -> str:
    """What decides the count, as the data say: the spread of the mean count over each of the four, the others at their
    middle value.

    The middle is a threshold of 1e-8 (or the nearest), float64, the middle step size and the least slope.
    """
    if table["mean_zeros"].isna().all():
        return "every run diverged"
    values = {name: sorted(set(table[name])) for name in ("threshold", "precision", "learning_rate", "relu_at_zero")}
    middle = {
        "threshold": min(values["threshold"], key=lambda t: abs(np.log(t / 1e-8))),
        "precision": "float64" if "float64" in values["precision"] else values["precision"][0],
        "learning_rate": values["learning_rate"][len(values["learning_rate"]) // 2],
        "relu_at_zero": values["relu_at_zero"][0],
    }
    lines = []
    for layers, part in table.groupby("trained_layers"):
        spread = []
        for name in middle:
            fixed = [part[other] == value for other, value in middle.items() if other != name]
            means = part[np.logical_and.reduce(fixed)].set_index(name)["mean_zeros"].dropna()
            if len(means):
                spread.append(f"{name} {', '.join(f'{at}: {mean:.3g}' for at, mean in means.items())}")
        lines.append(f"{layers}: mean zeros by {'; by '.join(spread)}")
    fixed_at = ", ".join(f"{name} {value}" for name, value in middle.items())
    return "\n".join([*lines, f"(one at a time, the others at {fixed_at})"])


def _draw(table: pandas.DataFrame, caption: str) -> Figure:
    layers = list(dict.fromkeys(table["trained_layers"]))
    figure = Figure(figsize=(5.4 * len(layers), 4.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(layers), sharey=False))
    figure.suptitle("Numerical zeros at the end of training")
    style.add_caption(figure, caption)
    rates, slopes = sorted(set(table["learning_rate"])), sorted(set(table["relu_at_zero"]))
    colours = style.shades(len(rates))
    for axes, name in zip(panels, layers, strict=True):
        for (precision, rate, slope), part in table[table["trained_layers"] == name].groupby(
            ["precision", "learning_rate", "relu_at_zero"]
        ):
            if part["mean_zeros"].notna().any():
                axes.plot(
                    part["threshold"],
                    part["mean_zeros"],
                    "-" if precision == "float64" else ":",
                    linewidth=1,
                    marker="osd^v"[slopes.index(slope) % 5],
                    markersize=4,
                    markerfacecolor="none",
                    color=colours[rates.index(rate)],
                )
        for index, rate in enumerate(rates):
            axes.plot([], [], "-", color=colours[index], label=f"learning rate {rate:g}")
        for index, slope in enumerate(slopes):
            axes.plot(
                [],
                [],
                "osd^v"[index % 5],
                color="k",
                markerfacecolor="none",
                markersize=4,
                label=f"relu'(0) = {slope:g}",
            )
        for precision, line in (("float64", "-"), ("float32", ":")):
            axes.plot([], [], line, color="k", label=precision)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=-0.1)
        axes.set_xlabel("threshold")
        axes.set_ylabel("preactivations below it (mean)")
        axes.set_title(style.variant_title(Variant(trained_layers=name)), fontsize="medium")
        axes.legend(fontsize="x-small")
    return figure  # fmt: skip


def report(study: Zeros, results: Results) -> Report:
    """summary.csv, the figure, and what decides the count."""
    table = summarize(study, results)
    caption = (
        f"{study.protocol}: N = {study.num_samples}, d0 = {study.d0}, d1 = {study.d1}, {study.num_seeds} seeds, "
        f"{study.num_steps:,} steps. Configuration {configuration_of(study.science())}."
    )
    return Report({"summary": table}, {"zeros": _draw(table, caption)}, (), f"{sentence(table)}\n{caption}")
