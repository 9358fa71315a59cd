"""What the widths say: tables, a figure, and a text."""

from collections.abc import Sequence

import numpy as np
import pandas
import xarray as xr
from matplotlib.figure import Figure

from relu_sgd.theory import related_work
from sweeps.reporting import style
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results
from sweeps.width_bounds.study import MULTIPLES, SCALINGS, WidthBounds
from sweeps.width_bounds.tables import map_widths, printed_bounds, tables

__all__ = ["report"]


def _draw(
    summary: pandas.DataFrame,
    results: xr.Dataset,
    map_table: pandas.DataFrame | None,
    scalings: Sequence[str],
    caption: str,
) -> Figure:
    figure = Figure(figsize=(5.2 * (len(scalings) + 1), 6), layout="constrained")
    rows = figure.add_gridspec(2, len(scalings) + 1, height_ratios=(6, 1))
    panels = [figure.add_subplot(rows[0, column]) for column in range(len(scalings) + 1)]
    below = figure.add_subplot(rows[1, :])
    below.axis("off")
    figure.suptitle("Certified widths, and what else is asked of the width")
    style.add_caption(figure, caption)
    deltas = results["delta"].values
    colours = dict(zip(deltas, style.shades(len(deltas)), strict=True))
    N = results["num_samples"].values.astype(float)
    for axes, scaling in zip(panels[:-1], scalings, strict=True):
        for delta in deltas:
            for condition, line in (("(10)", "-"), ("sharp", ":"), ("path", "-.")):
                selected = (summary["delta"] == delta) & (summary["scaling"] == scaling)
                part = summary[selected & (summary["condition"] == condition) & np.isfinite(summary["width"])]
                axes.plot(part["num_samples"], part["width"], line, color=colours[delta])
                axes.fill_between(
                    part["num_samples"],
                    part["width_low"],
                    part["width_high"],
                    color=colours[delta],
                    alpha=0.2,
                    linewidth=0,
                )
                for source, face in (("measured", colours[delta]), ("expected", "white")):
                    dots = part[part["source"] == source]
                    axes.plot(
                        dots["num_samples"],
                        dots["width"],
                        "o",
                        color=colours[delta],
                        markerfacecolor=face,
                        markersize=5,
                    )
            axes.plot([], [], "-", color=colours[delta], label=rf"certified by (10), $d_0 = N^{{{delta:g}}}$")
        axes.plot([], [], "k:", label="certified by the sharp condition")
        axes.plot([], [], "k-.", label="certified by the path (Theorem B)")
        axes.plot([], [], "ko", label="measured")
        axes.plot([], [], "ko", markerfacecolor="white", label="expected (too large to measure)")
        for result in related_work.RESULTS:
            if (
                result.in_table
                and result.relu
                and result.sample_power <= 2
                and not result.dimension_power
                and not result.logarithm_power
            ):
                axes.plot(N, [result.width(n) for n in N], "--", color="0.55", linewidth=1)
                label = f"${result.scaling.replace('^', '^{')}}}$"
                axes.annotate(label, (N[0], 1.2 * result.width(N[0])), fontsize="x-small", color="0.35")
        axes.plot([], [], "--", color="0.55", label="Table 1's orders with unit constants")
        axes.plot(N, N, "-", color="tab:red", linewidth=1, label="$d_1 = N$: below it $\\alpha_0 = 0$")
        if map_table is not None:
            for index, (setup, part) in enumerate(map_table.groupby("setup")):
                part = part[np.isfinite(part["half_converge_at"])]
                axes.plot(
                    part["num_samples"],
                    part["half_converge_at"],
                    "^v"[index % 2],
                    color="tab:orange",
                    label=f"half of the networks converge ({setup}; a mark per $d_0$)",
                )
        style.set_log_x(axes, N, base=2)
        axes.set_yscale("log")
        axes.set_xlabel("samples $N$")
        axes.set_ylabel("width $d_1$")
        axes.set_title(SCALINGS[scaling], fontsize="medium")
    below.legend(*panels[0].get_legend_handles_labels(), loc="center", ncols=4, fontsize="x-small")
    last = panels[-1]
    for multiple, line in zip(MULTIPLES, ("o-", "s-", "^-", "d-"), strict=True):
        ratio = results[f"alpha_ratio_{multiple:g}N"].where(results["status"] != 0)
        middle = ratio.where(np.isfinite(ratio)).median(("delta", "seed"), skipna=True)
        last.plot(
            N,
            middle.values,
            line,
            color=style.shades(len(MULTIPLES))[MULTIPLES.index(multiple)],
            label=f"$d_1 = {multiple:g} N$",
        )
    last.axhline(0.5, color="tab:red", linewidth=1, label="Lemma C.1's bound")
    style.set_log_x(last, N, base=2)
    last.set_ylim(0, 1)
    last.set_xlabel("samples $N$")
    last.set_ylabel(r"$\alpha_0 \, / \, (\beta_w \sqrt{d_1 \lambda(X)})$ (median)")
    last.set_title(r"$\alpha_0$ at small multiples of $N$", fontsize="medium")
    last.legend(fontsize="x-small")
    return figure  # fmt: skip


def report(study: WidthBounds, all_results: Results) -> Report:
    """The tables, the figure, and the tables as text.

    Raises:
      UsageError: there is no map in the folder of --map.
    """
    (results,) = all_results.values()
    summary, exponents = tables(results, study)
    map_table = None if study.map is None else map_widths(study.map)
    covered = summary["coverage"].min()
    caption = (
        f"Rows from the {study.data_law}, balanced labels, V0 of variance d1^-{study.rho:g}, {study.num_seeds} seeds "
        "(median, and its interval from order statistics"
        f"{'' if np.isnan(covered) else f', which covers {covered:.0%}'}), "
        f"float64. Configuration {configuration_of(study.science())}."
    )
    figure = _draw(summary, results, map_table, study.scaling, caption)
    written = {
        "summary": summary,
        "table_1": printed_bounds(study.num_samples, study.delta),
        "exponents": exponents,
        **({} if map_table is None else {"map": map_table}),
    }
    lines: list[str] = []
    shown = summary[summary["condition"] != "(11)"].drop(columns=["measured_runs", "coverage"])
    lines.append(shown.to_string(index=False, float_format="%.4g"))
    lines.append("\nfitted exponents of N, 95 percent intervals:")
    lines.append(exponents.to_string(index=False, float_format="%.3g"))
    done = results.where(results["status"] != 0)
    for multiple in MULTIPLES:
        ratio = done[f"alpha_ratio_{multiple:g}N"]
        ratio = ratio.where(np.isfinite(ratio))
        if np.isfinite(ratio).any():
            lines.append(
                f"alpha_0 / (beta_w sqrt(d1 lambda(X))) at d1 = {multiple:g} N: "
                f"{float(ratio.min()):.3g} to {float(ratio.max()):.3g} "
                f"({int(np.isfinite(ratio).sum())} runs; Lemma C.1 promises 0.5 at its width)"
            )
    if map_table is not None:
        lines.append("\nwhere half of a map's networks converge, and where a start is certified:")
        lines.append(map_table.to_string(index=False, float_format="%.4g"))
    text = "\n".join([*lines, caption])
    return Report(written, {"width_bounds": figure}, (), text, {"exponents": "%.4g"})
