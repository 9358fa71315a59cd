"""What `statements` leaves: a row per statement with its counts and interval, a figure of margins, and a text."""

import numpy as np
import pandas
from matplotlib.figure import Figure

from sweeps.reporting import style
from sweeps.reporting.statistics import interval
from sweeps.reproduction.statements.registry import CHECKS
from sweeps.reproduction.statements.study import Statements
from sweeps.runtime.session import configuration_of
from sweeps.study import Report, Results

__all__ = ["report", "summarize"]


def summarize(study: Statements, results: Results) -> pandas.DataFrame:
    """A row per statement.

    Columns: statement; seeds that are done; trials and violated, their sums over the seeds; share of violated trials
    with its exact 95 percent interval, no interval for what algebra decides; allowed, the share that the statement
    allows; margin, value and bound, the least margin and what it belongs to.
    """
    (data,) = results.values()
    rows = []
    for statement in study.statement:
        runs = data.sel(statement=statement)
        runs = runs.isel(seed=runs["status"].values != 0)
        trials, violated = int(runs["trials"].sum()), int(runs["violated"].sum())
        low, high = interval(violated, trials, "exact") if trials else (float("nan"),) * 2
        if CHECKS[statement].is_arithmetic and trials:
            low = high = violated / trials
        row = {"statement": statement, "seeds": runs.sizes["seed"], "trials": trials, "violated": violated}
        row |= {"share": violated / trials if trials else float("nan"), "share_low": low, "share_high": high}
        names = ("allowed", "margin", "value", "bound")
        worst = int(np.argmin(runs["margin"].values)) if runs.sizes["seed"] else 0
        rows.append(row | {name: float(runs[name].values[worst]) if len(runs["seed"]) else np.nan for name in names})
    return pandas.DataFrame(rows)


def _draw(table: pandas.DataFrame, caption: str) -> Figure:
    """The least margin of every statement, on a scale that is linear near 0."""
    figure = Figure(figsize=(9, 1 + 0.19 * len(table)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    margins = np.clip(np.nan_to_num(table["margin"], posinf=1), -10, 10)
    none, more = table["violated"] == 0, table["share"] > table["allowed"]
    for which, marker, colour, label in (
        (none, "o", "C0", "no violation"),
        (~none & ~more, "s", "C2", "violated in some trials, not more often than it allows"),
        (more, "X", "C1", "violated beyond rounding, more often than it allows"),
    ):
        axes.plot(margins[which], places[which], marker, color=colour, label=label)
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_yticks(places, table["statement"], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("least relative margin over the seeds (cut at 10)")
    axes.legend(fontsize="small")
    axes.set_title("The paper's statements on random problems")
    style.add_caption(figure, caption)
    return figure


def report(study: Statements, results: Results) -> Report:
    """The table, the figure, and the table as text."""
    table = summarize(study, results)
    caption = (
        f"{study.num_seeds} seeds per statement, float64; a statement whose name ends in -repaired is the corrected "
        f"form of the one printed. Configuration {configuration_of(study.science())}."
    )
    text = table.drop(columns=["share_low", "share_high"]).to_string(index=False, float_format="%.3g")
    return Report({"summary": table}, {"statements": _draw(table, caption)}, (), f"{text}\n\n{caption}")
