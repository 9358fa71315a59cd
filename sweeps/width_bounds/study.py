"""How wide must a network be for the theory, and how wide for training: certified widths, Table 1's bounds, and a map's.

python -m sweeps.width_bounds --out=DIR [--map=MAP]

For every N, delta and seed, with d0 = N^delta: the smallest width at which (11), (10), the sharp condition, the local criterion and the path certificates
(the inclusion's and descent's) certify a random start, from measured alpha_0 and initial loss where that is in reach and from their expectations always; the width of Appendix G; and alpha_0 at
small multiples of N beside Lemma C.1's bound. Table 1's orders are drawn with unit constants, and so are no widths. --map takes the folder of a
finished convergence map and adds the widths at which half of the trained networks converge. float64. DIR gets results.zarr, summary.csv, exponents.csv,
table_1.csv, map.csv and the figure; the same command goes on after an interruption.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas
import xarray as xr
from absl import flags
from matplotlib.figure import Figure

from relu_sgd.problem import balanced_labels, cube_rows, sphere_rows
from relu_sgd.theory import gram, hidden_layer, related_work, width_search, widths
from relu_sgd.theory.width_search import Scaling
from sweeps import arithmetic, figures, launch
from sweeps.runtime.engine import Timings
from sweeps.launch import Launcher, Sweep
from sweeps.plan import Tile
from sweeps.report import reporting
from sweeps.settings import (
    Execution,
    FlagTable,
    UsageError,
    choice,
    number,
    one_of,
    parse_all,
    parse_sizes,
    read_execution,
    several,
    whole,
)
from sweeps.store import Store
from sweeps.width_tables import (
    CONDITIONS,
    SCALINGS,
    dimension,
    half_convergence,
    map_widths,
    printed_bounds,
    tables,
)

__all__ = ["LAUNCHER", "Widths", "half_convergence", "map_widths", "read", "run", "tables"]

ROW_LAWS = {"sphere": sphere_rows, "cube": cube_rows}
MULTIPLES = (1.0, 1.25, 2.0, 4.0)


# Flag to parser, default and help.
_FLAGS: FlagTable = {
    "num_samples": (
        parse_sizes,
        "32,64,128,256,512,1024,2048,4096",
        "N, increasing and even: start:stop:step with both ends in, or a comma list",
    ),
    "delta": (
        several(number(0, 1, low_in=False, high_in=False)),
        "0.5,0.7,0.9",
        "d0 = N^delta, rounded; increasing, in (0, 1)",
    ),
    "num_seeds": (whole(1), "5", "data sets and starts per cell"),
    "base_seed": (whole(0, 2**32 - 1), "0", "random seed of the whole sweep"),
    "data_law": (choice("data_law"), "sphere", "law of the rows of X: sphere, or cube (normalized rows of a cube)"),
    "scaling": (
        several(one_of(SCALINGS)),
        "unit,lecun",
        f"a comma list of {', '.join(f'{name} ({text})' for name, text in SCALINGS.items())}",
    ),
    "rho": (number(0), "1", "the entries of V0 have variance d1^-rho"),
    "confidence": (number(0.5, 1, high_in=False), "0.9", "probability that the widths of Lemma C.1 and of summary.csv are to hold with"),
    "tolerance": (number(0, 1, low_in=False, high_in=False), "0.01", "relative, of the measured widths"),
    "max_operations": (
        number(0),
        "1e11",
        "measure where N^2 d1 at the expected width is at most this (1e11 take about half a minute on a core), and N^3 for alpha_0 at small widths",
    ),
    "map": (lambda text: Path(text) if text else None, "", "folder of a finished convergence map, to compare with"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Widths:
    """What the flags say; the fields are the flags."""

    num_samples: tuple[int, ...]
    delta: tuple[float, ...]
    num_seeds: int
    base_seed: int
    data_law: str
    scaling: tuple[str, ...]
    rho: float
    confidence: float
    tolerance: float
    max_operations: float

    @property
    def psi(self) -> float:
        """exp(-psi) is the probability with which Lemma C.1 may fail."""
        return max(1.0, -math.log(1 - self.confidence))


def read(values: flags.FlagValues) -> tuple[Widths, Execution, Path | None]:
    """The settings that the flags describe.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    execution = read_execution(values)
    found = parse_all(_FLAGS, values)
    map_folder = found.pop("map")
    chosen = Widths(**found)
    if odd := [size for size in chosen.num_samples if size % 2]:
        raise UsageError(f"--num_samples: {odd[0]} is odd, and balanced labels need an even number")
    if list(chosen.delta) != sorted(chosen.delta):
        raise UsageError("--delta: values must increase")
    for name in ("num_devices", "lanes", "steps_per_chunk", "interval"):
        if values[name].present:
            raise UsageError(f"--{name}: has no effect here, where nothing is trained")
    if dimension(min(chosen.num_samples), min(chosen.delta)) < 2:
        raise UsageError(
            f"--delta: {min(chosen.delta):g} gives d0 = 1 at N = {min(chosen.num_samples)}: rows are equal"
        )
    return chosen, execution, map_folder


def _metrics(chosen: Widths) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {
        "d0": (np.int32, "N^delta, rounded"),
        "lambda_X": (np.float64, "lambda(X) for rows of norm 1"),
        "lemma_c1_printed": (np.float64, "width (29) as printed, with psi = -log(1 - confidence), at least 1"),
        "lemma_c1_repaired": (np.float64, "the same, repaired (erratum E1)"),
        "hidden_layer": (np.float64, "width of Appendix G, (54) with its constants, in expectation; infinite for none"),
        **{
            f"alpha_ratio_{multiple:g}N": (
                np.float64,
                f"alpha_0 / (beta_w sqrt(d1 lambda(X))) at d1 = {multiple:g} N, at least 1/2 by Lemma C.1; infinite where not measured",
            )
            for multiple in MULTIPLES
        },
        "status": (np.int8, "0 pending, 1 measured, 2 some certified widths are expected ones only"),
    }
    for scaling in chosen.scaling:
        for name, text in CONDITIONS.items():
            found[f"{scaling}_expected_{name}"] = (
                np.float64,
                f"certified width by {text}, {SCALINGS[scaling]}, from expectations; infinite for none",
            )
            found[f"{scaling}_measured_{name}"] = (np.float64, "the same, measured; infinite where not measured")
    return found


def measure(chosen: Widths, num_samples: int, delta: float, seed: int) -> dict[str, float]:
    """One data set and start: every metric of the store."""
    d0 = dimension(num_samples, delta)
    key = arithmetic.key(chosen.base_seed)
    for part in (seed, num_samples, d0):
        key = jax.random.fold_in(key, part)
    data, labels = jax.random.split(key)
    X = np.asarray(ROW_LAWS[chosen.data_law](data, num_samples, d0), float)
    Y = np.asarray(balanced_labels(labels, num_samples), float)
    neurons = int(np.random.SeedSequence((chosen.base_seed, seed, num_samples, d0)).generate_state(1)[0])
    G = gram.gram(X)
    smallest = gram.least_eigenvalue(G)
    found: dict[str, float] = {
        "d0": d0,
        "lambda_X": smallest,
        "lemma_c1_printed": widths.lemma_c1_width(X, psi=chosen.psi, repaired=False, lambda_X=smallest),
        "lemma_c1_repaired": widths.lemma_c1_width(X, psi=chosen.psi, lambda_X=smallest),
        "hidden_layer": hidden_layer.population_width(X, Y[:, 0]),
        "status": 1,
    }
    ratios = dict.fromkeys(MULTIPLES, math.inf)
    if num_samples**3 <= chosen.max_operations:
        sizes = [round(multiple * num_samples) for multiple in MULTIPLES]
        starts = width_search.certificates(X, Y, sorted(set(sizes)), seed=neurons)  # Some are equal at N = 2.
        ratios = {m: starts[d1].alpha / math.sqrt(d1 * smallest) for m, d1 in zip(MULTIPLES, sizes, strict=True)}
    found |= {f"alpha_ratio_{multiple:g}N": ratio for multiple, ratio in ratios.items()}
    for scaling in chosen.scaling:
        radius = 1.0 if scaling == "unit" else math.sqrt(d0)
        law = Scaling(beta_w=1 / radius, rho=chosen.rho)
        expected = width_search.population_widths(radius * X, Y, scaling=law, gram_matrix=radius**2 * G)
        measured: dict[str, int | None] = dict.fromkeys(expected)
        reach = [name for name, width in expected.items() if num_samples**2 * width <= chosen.max_operations]
        if reach:
            # Twice the expected width, or 4 N, is more than a start can need; if not, it is said.
            limit = max(4 * num_samples, math.ceil(2 * max(expected[name] for name in reach)))
            measured |= width_search.certified_widths(
                radius * X, Y, scaling=law, seed=neurons, tolerance=chosen.tolerance, max_width=limit, conditions=reach
            )
        for name, text in CONDITIONS.items():
            found[f"{scaling}_expected_{name}"] = expected[text]
            found[f"{scaling}_measured_{name}"] = measured[text] or math.inf
            if measured[text] is None:
                found["status"] = 2
    return found


def run_tile(chosen: Widths, tile: Tile) -> tuple[dict[str, np.ndarray], Timings]:
    """All runs of a tile, one after another."""
    begun = time.perf_counter()
    records = [
        measure(chosen, int(num_samples), delta, seed)
        for num_samples in tile.d0
        for delta in tile.d1
        for seed in range(tile.num_seeds)
    ]
    table = {name: np.array([record[name] for record in records]) for name in records[0]}
    return table, {"measuring": time.perf_counter() - begun}


def _cost(tile: Tile) -> float:
    return sum(float(size) ** 3 for size in tile.d0) * len(tile.d1)


def _draw(
    summary: pandas.DataFrame,
    results: xr.Dataset,
    found: pandas.DataFrame | None,
    scalings: Sequence[str],
    caption: str,
) -> Figure:
    figure = Figure(figsize=(5.2 * (len(scalings) + 1), 6), layout="constrained")
    rows = figure.add_gridspec(2, len(scalings) + 1, height_ratios=(6, 1))
    panels = [figure.add_subplot(rows[0, column]) for column in range(len(scalings) + 1)]
    below = figure.add_subplot(rows[1, :])
    below.axis("off")
    figure.suptitle("Certified widths, and what else is asked of the width")
    figures.add_caption(figure, caption)
    deltas = results["delta"].values
    colours = dict(zip(deltas, figures.shades(len(deltas)), strict=True))
    N = results["num_samples"].values.astype(float)
    for axes, scaling in zip(panels[:-1], scalings, strict=True):
        for delta in deltas:
            for condition, style in (("(10)", "-"), ("sharp", ":"), ("path", "-.")):
                chosen = (summary["delta"] == delta) & (summary["scaling"] == scaling)
                part = summary[chosen & (summary["condition"] == condition) & np.isfinite(summary["width"])]
                axes.plot(part["num_samples"], part["width"], style, color=colours[delta])
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
        if found is not None:
            for index, (setup, part) in enumerate(found.groupby("setup")):
                part = part[np.isfinite(part["half_converge_at"])]
                axes.plot(
                    part["num_samples"],
                    part["half_converge_at"],
                    "^v"[index % 2],
                    color="tab:orange",
                    label=f"half of the networks converge ({setup}; a mark per $d_0$)",
                )
        figures.set_log_x(axes, N, base=2)
        axes.set_yscale("log")
        axes.set_xlabel("samples $N$")
        axes.set_ylabel("width $d_1$")
        axes.set_title(SCALINGS[scaling], fontsize="medium")
    below.legend(*panels[0].get_legend_handles_labels(), loc="center", ncols=4, fontsize="x-small")
    last = panels[-1]
    for multiple, style in zip(MULTIPLES, ("o-", "s-", "^-", "d-"), strict=True):
        ratio = results[f"alpha_ratio_{multiple:g}N"].where(results["status"] != 0)
        middle = ratio.where(np.isfinite(ratio)).median(("delta", "seed"), skipna=True)
        last.plot(
            N,
            middle.values,
            style,
            color=figures.shades(len(MULTIPLES))[MULTIPLES.index(multiple)],
            label=f"$d_1 = {multiple:g} N$",
        )
    last.axhline(0.5, color="tab:red", linewidth=1, label="Lemma C.1's bound")
    figures.set_log_x(last, N, base=2)
    last.set_ylim(0, 1)
    last.set_xlabel("samples $N$")
    last.set_ylabel(r"$\alpha_0 \, / \, (\beta_w \sqrt{d_1 \lambda(X)})$ (median)")
    last.set_title(r"$\alpha_0$ at small multiples of $N$", fontsize="medium")
    last.legend(fontsize="x-small")
    return figure  # fmt: skip


def report(store: Store, out: Path, map_folder: Path | None) -> None:
    """Writes the tables and the figure from the store, and prints the tables.

    Raises:
      UsageError: the store is damaged or of another launcher, the map is none, or the folder cannot be written.
    """
    with reporting(out):
        store.verify()
        science, configuration = store.attributes["science"], store.attributes["configuration"]
        results = store.read("widths")
        summary, exponents = tables(results, science)
        found = None if map_folder is None else map_widths(map_folder)
        covered = summary["coverage"].min()
        caption = (
            f"Rows from the {science['data_law']}, balanced labels, V0 of variance d1^-{science['rho']:g}, {science['num_seeds']} seeds (median, and its "
            f"interval from order statistics{'' if np.isnan(covered) else f', which covers {covered:.0%}'}), float64. Configuration {configuration}."
        )
        drawn = _draw(summary, results, found, science["scaling"], caption)
        figures.save(drawn, out / "figures", "width_bounds", configuration)
        summary.to_csv(out / "summary.csv", index=False, float_format="%.6g")
        bounds = printed_bounds(science["num_samples"], science["delta"])
        bounds.to_csv(out / "table_1.csv", index=False, float_format="%.6g")
        exponents.to_csv(out / "exponents.csv", index=False, float_format="%.4g")
        if found is not None:
            found.to_csv(out / "map.csv", index=False, float_format="%.6g")
    shown = summary[summary["condition"] != "(11)"].drop(columns=["measured_runs", "coverage"])
    print(shown.to_string(index=False, float_format="%.4g"))
    print("\nfitted exponents of N, 95 percent intervals:")
    print(exponents.to_string(index=False, float_format="%.3g"))
    done = results.where(results["status"] != 0)
    for multiple in MULTIPLES:
        ratio = done[f"alpha_ratio_{multiple:g}N"]
        ratio = ratio.where(np.isfinite(ratio))
        if np.isfinite(ratio).any():
            print(
                f"alpha_0 / (beta_w sqrt(d1 lambda(X))) at d1 = {multiple:g} N: {float(ratio.min()):.3g} to {float(ratio.max()):.3g} "
                f"({int(np.isfinite(ratio).sum())} runs; Lemma C.1 promises 0.5 at its width)"
            )
    if found is not None:
        print("\nwhere half of a map's networks converge, and where a start is certified:")
        print(found.to_string(index=False, float_format="%.4g"))
    print(
        f"{caption}\nfigure: {out / 'figures' / 'width_bounds.png'}\nsummary: {out / 'summary.csv'} ({len(summary)} rows)"
    )


def run(chosen: tuple[Widths, Execution, Path | None]) -> None:
    """The whole: what is pending is computed, then the tables and the figure are written."""
    asked, execution, map_folder = chosen
    if map_folder is not None:
        launch.open_results(map_folder)  # Refused before hours are spent.
    science, lines = launch.science_of(asked)
    sweep = Sweep(
        protocol_name="",
        flags=lines,
        science=science,
        setups=("widths",),
        d0=asked.num_samples,
        d1=asked.delta,
        num_seeds=asked.num_seeds,
        precision="float64",
        metrics=_metrics(asked),
        run_tile=functools.partial(run_tile, asked),
        axes=("num_samples", "delta"),
        cost=_cost,
    )
    launch.complete(sweep, execution, lambda store: report(store, execution.out, map_folder))


LAUNCHER = Launcher("width_bounds", __doc__, read, run, ("sweeps.width_bounds", "sweeps.settings"), _FLAGS)

if __name__ == "__main__":
    launch.main(LAUNCHER)
