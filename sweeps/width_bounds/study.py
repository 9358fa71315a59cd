"""How wide must a network be for the theory, and how wide for training: certified widths, Table 1's bounds, and a
map's.

python -m sweeps.width_bounds --out=DIR [--map=MAP]

For every N, delta and seed, with d0 = N^delta: the smallest width at which (11), (10), the sharp condition, the local
criterion and the path certificates (the inclusion's and descent's) certify a random start, from measured alpha_0 and
initial loss where that is in reach and from their expectations always; the width of Appendix G; and alpha_0 at small
multiples of N beside Lemma C.1's bound. Table 1's orders are drawn with unit constants, and so are no widths. --map
takes the folder of a finished convergence map and adds the widths at which half of the trained networks converge.
float64. DIR gets results.zarr, summary.csv, exponents.csv, table_1.csv, map.csv and the figure; the same command goes
on after an interruption.
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Key

from relu_sgd.problem import balanced_labels, cube_rows, sphere_rows
from relu_sgd.theory import gram, hidden_layer, width_search, widths
from relu_sgd.theory.width_search import Scaling
from sweeps.command.parsers import Choice, Folder, Number, Several, Sizes, Whole
from sweeps.protocol import laws
from sweeps.protocol.presets import SIGNATURES
from sweeps.runtime import arithmetic
from sweeps.runtime.session import open_results
from sweeps.study import Execution, Metrics, Study, Tile, Timings, UsageError, Variant, flag

__all__ = ["CONDITION_OF_METRIC", "MULTIPLES", "SCALINGS", "WidthBounds", "dimension", "measure", "rows"]

ROW_LAWS = {"sphere": sphere_rows, "cube": cube_rows}
MULTIPLES = (1.0, 1.25, 2.0, 4.0)
# Rows of norm 1 with beta_w = 1, or of norm sqrt(d0) with beta_w = 1 / sqrt(d0): the same network at the start, but
# not the same flow.
SCALINGS = {"unit": "unit rows, beta_w = 1", "lecun": "rows of norm sqrt(d0), beta_w = 1 / sqrt(d0)"}
# Metrics are named after these: the conditions of the board that live on alpha_0.
CONDITION_OF_METRIC = {
    "11": "(11)",
    "10": "(10)",
    "sharp": "sharp",
    "local": "local criterion",
    "path": "path",
    "descent": "path, descent",
}


def dimension(num_samples: int, delta: float) -> int:
    """d0 = N^delta, rounded."""
    return round(num_samples**delta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WidthBounds(Study):
    """Certified widths for every N and delta; the fields are the flags."""

    name = "width_bounds"
    reporter = "sweeps.width_bounds.report:report"
    statuses: ClassVar = {1: "measured", 2: "some certified widths are expected ones only"}
    execution_groups = ("output", "tiles")

    num_samples: tuple[int, ...] = flag(
        Sizes(),
        "N, increasing and even: start:stop:step with both ends in, or a comma list",
        (32, 64, 128, 256, 512, 1024, 2048, 4096),
    )
    delta: tuple[float, ...] = flag(
        Several(Number(0, 1, low_in=False, high_in=False), "increasing"),
        "d0 = N^delta, rounded; increasing, in (0, 1)",
        (0.5, 0.7, 0.9),
    )
    num_seeds: int = flag(Whole(1), "data sets and starts per cell", 5)
    base_seed: int = flag(Whole(0, 2**32 - 1), "random seed of the whole sweep", 0)
    data_law: str = flag(
        laws.Law(ROW_LAWS, SIGNATURES["data_law"]),
        "law of the rows of X: sphere; cube (normalized rows of a cube); or module:function, of (key, num_samples, "
        "d0), to X with rows of norm 1",
        "sphere",
    )
    scaling: tuple[str, ...] = flag(
        Several(Choice(SCALINGS)),
        f"a comma list of {', '.join(f'{name} ({text})' for name, text in SCALINGS.items())}",
        ("unit", "lecun"),
    )
    rho: float = flag(Number(0), "the entries of V0 have variance d1^-rho", 1.0)
    confidence: float = flag(
        Number(0.5, 1, high_in=False),
        "probability that the widths of Lemma C.1 and of summary.csv are to hold with",
        0.9,
    )
    tolerance: float = flag(Number(0, 1, low_in=False, high_in=False), "relative, of the measured widths", 0.01)
    max_operations: float = flag(
        Number(0),
        "measure where N^2 d1 at the expected width is at most this (1e11 take about half a minute on a core), and N^3 "
        "for alpha_0 at small widths",
        1e11,
    )
    map: Path | None = flag(
        Folder(), "folder of a finished convergence map, to compare with", None, group="report", decides=False
    )

    @property
    def psi(self) -> float:
        """exp(-psi) is the probability with which Lemma C.1 may fail."""
        return max(1.0, -math.log(1 - self.confidence))

    def check(self) -> None:
        """Refuses values that do not fit each other, and a folder without a map, before hours are spent."""
        if odd := [size for size in self.num_samples if size % 2]:
            raise UsageError(f"--num_samples: {odd[0]} is odd, and balanced labels need an even number")
        if dimension(min(self.num_samples), min(self.delta)) < 2:
            raise UsageError(
                f"--delta: {min(self.delta):g} gives d0 = 1 at N = {min(self.num_samples)}: rows are equal"
            )
        if self.map is not None:
            open_results(self.map, flag="map")

    def check_code(self) -> None:
        """Draws once by an own law."""
        num_samples, delta = min(self.num_samples), min(self.delta)
        rows(self, arithmetic.key(self.base_seed), num_samples, dimension(num_samples, delta))

    def variants(self) -> tuple[Variant, ...]:
        """One."""
        return (Variant(name="widths"),)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """N and delta."""
        return {"num_samples": self.num_samples, "delta": self.delta}

    def cost(self, tile: Tile) -> float:
        """That of factorizing N x N matrices, and of measuring at widths of so many N where they are within reach."""
        widths = (1, 30, 300, 3_000)
        operations = (c * float(size) ** 3 for size in tile.axes["num_samples"] for c in widths)
        whole = sum(count for count in operations if count <= self.max_operations)
        return max(whole, 1.0) * len(tile.axes["delta"])

    @property
    def metrics(self) -> Metrics:
        """What is kept of a data set and start."""
        metrics: dict[str, tuple[Any, str]] = {
            "d0": (np.int32, "N^delta, rounded"),
            "lambda_X": (np.float64, "lambda(X) for rows of norm 1"),
            "lemma_c1_printed": (np.float64, "width (29) as printed, with psi = -log(1 - confidence), at least 1"),
            "lemma_c1_repaired": (np.float64, "the same, repaired (erratum E1)"),
            "hidden_layer": (
                np.float64,
                "width of Appendix G, (54) with its constants, in expectation; infinite for none",
            ),
            **{
                f"alpha_ratio_{multiple:g}N": (
                    np.float64,
                    f"alpha_0 / (beta_w sqrt(d1 lambda(X))) at d1 = {multiple:g} N, at least 1/2 by Lemma C.1; "
                    "infinite where not measured",
                )
                for multiple in MULTIPLES
            },
            "status": (np.int8, "0 pending, 1 measured, 2 some certified widths are expected ones only"),
        }
        for scaling in self.scaling:
            for name, text in CONDITION_OF_METRIC.items():
                metrics[f"{scaling}_expected_{name}"] = (
                    np.float64,
                    f"certified width by {text}, {SCALINGS[scaling]}, from expectations; infinite for none",
                )
                metrics[f"{scaling}_measured_{name}"] = (np.float64, "the same, measured; infinite where not measured")
        return metrics

    def run_tile(self, tile: Tile, execution: Execution) -> tuple[dict[str, np.ndarray], Timings]:
        """All runs of a tile, one after another."""
        del execution
        begun = time.perf_counter()
        records = [
            measure(self, cell["num_samples"], cell["delta"], seed) for cell in tile.cells() for seed in tile.seeds
        ]
        table = {name: np.array([record[name] for record in records]) for name in records[0]}
        return table, {"measuring": time.perf_counter() - begun}


def rows(study: WidthBounds, key: Key[Array, ""], num_samples: int, d0: int) -> np.ndarray:
    """X, with rows of norm 1.

    Raises:
      UsageError: an own law returns something else.
    """
    law = study.data_law
    if not laws.is_own(law):
        return np.asarray(ROW_LAWS[law](key, num_samples, d0), float)
    X = laws.array("data_law", law, "X", laws.call("data_law", law, key, num_samples, d0), (num_samples, d0), float)
    if not np.allclose(np.linalg.norm(X, axis=1), 1, atol=1e-5):
        raise UsageError(f"--data_law: {laws.plain_name(law)} must return rows of norm 1, which --scaling scales")
    return X


def measure(study: WidthBounds, num_samples: int, delta: float, seed: int) -> dict[str, float]:
    """One data set and start: every metric of the store."""
    d0 = dimension(num_samples, delta)
    key = arithmetic.key(study.base_seed)
    for part in (seed, num_samples, d0):
        key = jax.random.fold_in(key, part)
    data, labels = jax.random.split(key)
    X = rows(study, data, num_samples, d0)
    Y = np.asarray(balanced_labels(labels, num_samples), float)
    neurons = int(np.random.SeedSequence((study.base_seed, seed, num_samples, d0)).generate_state(1)[0])
    G = gram.gram(X)
    smallest = gram.least_eigenvalue(G)
    values: dict[str, float] = {
        "d0": d0,
        "lambda_X": smallest,
        "lemma_c1_printed": widths.lemma_c1_width(X, psi=study.psi, repaired=False, lambda_X=smallest),
        "lemma_c1_repaired": widths.lemma_c1_width(X, psi=study.psi, lambda_X=smallest),
        "hidden_layer": hidden_layer.population_width(X, Y[:, 0]),
        "status": 1,
    }
    ratios = dict.fromkeys(MULTIPLES, math.inf)
    if num_samples**3 <= study.max_operations:
        sizes = [round(multiple * num_samples) for multiple in MULTIPLES]
        starts = width_search.certificates(X, Y, sorted(set(sizes)), seed=neurons)  # Some are equal at N = 2.
        ratios = {m: starts[d1].alpha / math.sqrt(d1 * smallest) for m, d1 in zip(MULTIPLES, sizes, strict=True)}
    values |= {f"alpha_ratio_{multiple:g}N": ratio for multiple, ratio in ratios.items()}
    for scaling in study.scaling:
        radius = 1.0 if scaling == "unit" else math.sqrt(d0)
        law = Scaling(beta_w=1 / radius, rho=study.rho)
        expected = width_search.population_widths(radius * X, Y, scaling=law, gram_matrix=radius**2 * G)
        measured: dict[str, int | None] = dict.fromkeys(expected)
        reach = [name for name, width in expected.items() if num_samples**2 * width <= study.max_operations]
        if reach:
            # Twice the expected width, or 4 N, is more than a start can need; if not, it is said.
            limit = max(4 * num_samples, math.ceil(2 * max(expected[name] for name in reach)))
            measured |= width_search.certified_widths(
                radius * X, Y, scaling=law, seed=neurons, tolerance=study.tolerance, max_width=limit, conditions=reach
            )
        for name, text in CONDITION_OF_METRIC.items():
            values[f"{scaling}_expected_{name}"] = expected[text]
            values[f"{scaling}_measured_{name}"] = measured[text] or math.inf
            if measured[text] is None:
                values["status"] = 2
    return values
