"""The comparison problem, solved and drawn: Figure 1."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.optimize import brentq

from relu_sgd.theory.comparison import Outcome, blow_up_threshold, lemma_3_3, solve_comparison
from sweeps.comparison_ode.study import FACTORS, Comparison
from sweeps.reporting import style
from sweeps.runtime.session import fingerprint
from sweeps.study import Report, Results, UsageError

__all__ = ["compute", "left_side_10", "report"]


def left_side_10(study: Comparison, alpha: float) -> float:
    """The left side of (10) for the study constants."""
    return lemma_3_3(alpha, a=study.a, c=study.c, c1=study.c1, c2=study.c2)


def compute(study: Comparison) -> Mapping[str, pandas.DataFrame]:
    """For every variant, a row per alpha and time: y, the outcome and the bound 2 a / alpha^2.

    Raises:
      UsageError: there is no threshold in reach.
    """
    times = jnp.linspace(0, study.t_max, study.num_times)
    constants = dict(a=study.a, c=study.c, c1=study.c1, c2=study.c2)
    tables = {}
    for name, factor in FACTORS.items():
        try:
            threshold = blow_up_threshold(low=1e-2, high=100.0, factor=factor, **constants)
        except ValueError as error:
            raise UsageError(f"--a: {error}") from error
        low, high = study.alpha_low, study.alpha_high
        if factor == 1.0:
            if study.half_width >= threshold:
                raise UsageError(
                    f"--half_width: {study.half_width:g} is not below the threshold {threshold:.4f}, and alpha is "
                    "positive"
                )
            low, high = threshold - study.half_width, threshold + study.half_width
        alphas = np.linspace(low, high, study.num_alpha)
        solve = jax.jit(jax.vmap(lambda alpha, f=factor: solve_comparison(alpha, times, factor=f, **constants)))
        solved = solve(jnp.asarray(alphas))
        tables[name] = pandas.DataFrame(
            {
                "variant": name,
                "alpha": np.repeat(alphas, len(times)),
                "t": np.tile(np.asarray(times), len(alphas)),
                "y": np.asarray(solved.y).ravel(),
                "outcome": np.repeat([Outcome(int(o)).name.lower() for o in solved.outcome], len(times)),
                "left_side_10": np.repeat([left_side_10(study, alpha) for alpha in alphas], len(times)),
                "bound": np.repeat(2 * study.a / alphas**2, len(times)),
                "threshold": threshold,
            }
        )
    return tables


def draw(study: Comparison, tables: Mapping[str, pandas.DataFrame], caption: str) -> Figure:
    """Figure 1, a panel a variant."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(tables))
    figure.suptitle("Solutions of the comparison problem (9)")
    style.add_caption(figure, caption)
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        colour = Normalize(table["left_side_10"].min(), table["left_side_10"].max())
        palette = matplotlib.colormaps["cividis"]
        bound = table["bound"].max()
        for _, curve in table.groupby("alpha"):
            axes.plot(curve["t"], curve["y"], color=palette(colour(curve["left_side_10"].iloc[0])), linewidth=0.8)
        axes.axhspan(table["bound"].min(), bound, color="tab:red", alpha=0.4, linewidth=0)
        axes.plot([], [], color="tab:red", alpha=0.6, linewidth=4, label=r"bound $2a/\alpha^2$")
        axes.set_ylim(0, 2 * bound)
        axes.set_xlabel("$t$")
        axes.set_ylabel("$y(t)$")
        low, high = table["alpha"].min(), table["alpha"].max()
        axes.set_title(
            f"{name}: $\\alpha$ in [{low:.4f}, {high:.4f}], threshold {table['threshold'].iloc[0]:.4f}",
            fontsize="medium",
        )
        axes.legend(loc="lower right", fontsize="small")
        figure.colorbar(ScalarMappable(colour, palette), ax=axes, label="left side of (10)")
    return figure


def report(study: Comparison, results: Results) -> Report:
    """Computes, and draws.

    Raises:
      UsageError: there is no threshold in reach.
    """
    del results  # There are none: it takes seconds.
    tables = compute(study)
    caption = (
        f"a = {study.a:g}, c = {study.c:g}, c1 = {study.c1:g}, c2 = {study.c2:g}, float64. "
        "As printed the exponent of (9) "
        f"has alpha t; the paper's Figure 1 fits 2 alpha t. Configuration {fingerprint(study.science())}."
    )
    rows = pandas.concat(tables.values(), ignore_index=True)
    summary = rows.groupby(["variant", "alpha"], as_index=False, sort=False).agg(
        outcome=("outcome", "first"),
        largest_y=("y", "max"),
        bound=("bound", "first"),
        left_side_10=("left_side_10", "first"),
    )
    lines = []
    for name, table in tables.items():
        per_alpha = table.groupby("alpha")["outcome"].first()
        counts = ", ".join(f"{count} {outcome}" for outcome, count in per_alpha.value_counts().items())
        lines.append(
            f"{name}: solutions blow up for alpha below {table['threshold'].iloc[0]:.4f}; "
            f"of {len(per_alpha)} drawn, {counts}"
        )
    certified = brentq(lambda alpha: min(left_side_10(study, alpha), 1e300) - 1, 1e-3, 1e3)
    lines += [f"(10) certifies boundedness for alpha above {certified:.5f}", caption]
    figures = {"comparison_ode": draw(study, tables, caption)}
    return Report({"summary": summary}, figures, (), "\n".join(lines), {"summary": "%.9g"})
