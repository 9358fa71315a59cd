"""The scalar comparison problem (9): Figure 1 of the paper, as printed and as it must have been drawn.

python -m sweeps.comparison_ode --out=DIR

Every panel shows y(t) for many alpha, coloured by the left side of (10). As printed the exponent holds alpha t, and with the
figure's constants the solutions blow up below alpha = 1.7293; with 2 alpha t the threshold is 2.0441, inside the figure's range
[2.042, 2.045]. DIR gets figures, summary.csv and config.json; it takes seconds and is not resumed.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pandas
from absl import flags
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.optimize import brentq

from relu_sgd.theory.comparison import Outcome, blow_up_threshold, lemma_3_3, solve_comparison
from sweeps import figures, launch
from sweeps.launch import Launcher
from sweeps.protocol import fingerprint
from sweeps.settings import EXECUTION_FLAGS, FlagTable, UsageError, number, parse_all, whole

__all__ = ["LAUNCHER", "Comparison", "compute", "read", "run"]

_FLAGS: FlagTable = {
    "a": (number(0, low_in=False), "1", "a of (8), sqrt(L(theta(0)))"),
    "c": (number(0), "1", "c of (7)"),
    "c1": (number(0), "1", "c1 of (7)"),
    "c2": (number(0), "1", "c2 of (7)"),
    "alpha_low": (number(0, low_in=False), "2.042", "least alpha of the second panel, as in Figure 1"),
    "alpha_high": (number(0, low_in=False), "2.045", "largest alpha of the second panel"),
    "half_width": (
        number(0, low_in=False),
        "0.0015",
        "half of the first panel's range of alpha, about its own threshold",
    ),
    "num_alpha": (whole(2, 10_000), "61", "curves in a panel"),
    "t_max": (number(0, low_in=False), "20", "end of the time axis"),
    "num_times": (whole(2, 100_000), "801", "points on a curve"),
}

VARIANTS = {"as printed": 1.0, "with 2 alpha t": 2.0}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What the flags say; the fields are the flags."""

    out: Path
    a: float
    c: float
    c1: float
    c2: float
    alpha_low: float
    alpha_high: float
    half_width: float
    num_alpha: int
    t_max: float
    num_times: int


def read(values: flags.FlagValues) -> Comparison:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    if not values.out:
        raise UsageError("--out: say where the results go")
    for name in (*EXECUTION_FLAGS, "block", "compilation_cache", "interval", "figures_only"):
        if values[name].present:
            raise UsageError(f"--{name}: has no effect here, where everything takes seconds")
    found = parse_all(_FLAGS, values)
    if found["alpha_low"] >= found["alpha_high"]:
        raise UsageError(f"--alpha_low: {found['alpha_low']:g} is not below --alpha_high={found['alpha_high']:g}")
    if found["c1"] == 0 and found["c2"] == 0:
        raise UsageError("--c1: with c1 = c2 = 0 nothing can blow up")
    return Comparison(out=Path(values.out), **found)


def left_side_10(chosen: Comparison, alpha: float) -> float:
    """The left side of (10) for the chosen constants."""
    return lemma_3_3(alpha, a=chosen.a, c=chosen.c, c1=chosen.c1, c2=chosen.c2)


def compute(chosen: Comparison) -> Mapping[str, pandas.DataFrame]:
    """For every variant, a row per alpha and time: y, the outcome and the bound 2 a / alpha^2.

    Raises:
      UsageError: there is no threshold in reach.
    """
    times = jnp.linspace(0, chosen.t_max, chosen.num_times)
    constants = dict(a=chosen.a, c=chosen.c, c1=chosen.c1, c2=chosen.c2)
    tables = {}
    for name, factor in VARIANTS.items():
        try:
            threshold = blow_up_threshold(low=1e-2, high=100.0, factor=factor, **constants)
        except ValueError as error:
            raise UsageError(f"--a: {error}") from error
        low, high = chosen.alpha_low, chosen.alpha_high
        if factor == 1.0:
            if chosen.half_width >= threshold:
                raise UsageError(
                    f"--half_width: {chosen.half_width:g} is not below the threshold {threshold:.4f}, and alpha is positive"
                )
            low, high = threshold - chosen.half_width, threshold + chosen.half_width
        alphas = np.linspace(low, high, chosen.num_alpha)
        solve = jax.jit(jax.vmap(lambda alpha, f=factor: solve_comparison(alpha, times, factor=f, **constants)))
        solved = solve(jnp.asarray(alphas))
        tables[name] = pandas.DataFrame(
            {
                "variant": name,
                "alpha": np.repeat(alphas, len(times)),
                "t": np.tile(np.asarray(times), len(alphas)),
                "y": np.asarray(solved.y).ravel(),
                "outcome": np.repeat([Outcome(int(o)).name.lower() for o in solved.outcome], len(times)),
                "left_side_10": np.repeat([left_side_10(chosen, alpha) for alpha in alphas], len(times)),
                "bound": np.repeat(2 * chosen.a / alphas**2, len(times)),
                "threshold": threshold,
            }
        )
    return tables


def draw(chosen: Comparison, tables: Mapping[str, pandas.DataFrame], caption: str) -> Figure:
    """Figure 1, a panel a variant."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(tables))
    figure.suptitle("Solutions of the comparison problem (9)")
    figures.add_caption(figure, caption)
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


def run(chosen: Comparison) -> None:
    """Computes, draws and prints.

    Raises:
      UsageError: the output folder holds other things, or cannot be written.
    """
    science = {name: value for name, value in dataclasses.asdict(chosen).items() if name != "out"}
    text = json.dumps({"launcher": "comparison_ode", **science}, indent=2) + "\n"
    config = chosen.out / "config.json"
    try:
        there = config.read_text() if config.exists() else None
        if there is None and chosen.out.exists() and any(chosen.out.iterdir()):
            raise UsageError(f"--out: {chosen.out} holds other things; nothing was written")
    except OSError as error:
        raise UsageError(f"--out: cannot use {chosen.out}: {error.strerror or error}") from error
    if there not in (None, text):
        raise UsageError(f"--out: {chosen.out} holds results of other flags; nothing was written")
    launch.configure_jax("float64", "")
    tables = compute(chosen)
    configuration = fingerprint(science)
    caption = (
        f"a = {chosen.a:g}, c = {chosen.c:g}, c1 = {chosen.c1:g}, c2 = {chosen.c2:g}, float64. "
        f"As printed the exponent of (9) has alpha t; the paper's Figure 1 fits 2 alpha t. Configuration {configuration}."
    )
    try:
        chosen.out.mkdir(parents=True, exist_ok=True)
        figures.save(draw(chosen, tables, caption), chosen.out / "figures", "comparison_ode", configuration)
        rows = pandas.concat(tables.values(), ignore_index=True)
        rows.groupby(["variant", "alpha"], as_index=False, sort=False).agg(
            outcome=("outcome", "first"),
            largest_y=("y", "max"),
            bound=("bound", "first"),
            left_side_10=("left_side_10", "first"),
        ).to_csv(chosen.out / "summary.csv", index=False, float_format="%.9g")
        config.write_text(text)
    except OSError as error:
        raise UsageError(f"--out: cannot write to {chosen.out}: {error.strerror or error}") from error
    for name, table in tables.items():
        per_alpha = table.groupby("alpha")["outcome"].first()
        counts = ", ".join(f"{count} {outcome}" for outcome, count in per_alpha.value_counts().items())
        print(
            f"{name}: solutions blow up for alpha below {table['threshold'].iloc[0]:.4f}; of {len(per_alpha)} drawn, {counts}"
        )
    certified = brentq(lambda alpha: min(left_side_10(chosen, alpha), 1e300) - 1, 1e-3, 1e3)
    print(f"(10) certifies boundedness for alpha above {certified:.5f}\n{caption}")
    print(f"figure: {chosen.out / 'figures' / 'comparison_ode.png'}\nsummary: {chosen.out / 'summary.csv'}")


LAUNCHER = Launcher(
    "comparison_ode",
    f"{__doc__}\n--out: output folder, new, empty or of an earlier run with the same flags.",
    read,
    run,
    ("sweeps.comparison_ode",),
    _FLAGS,
)

if __name__ == "__main__":
    launch.main(LAUNCHER)
