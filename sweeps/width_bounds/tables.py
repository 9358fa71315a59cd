"""The tables of width_bounds: widths and their exponents by condition, Table 1's orders, and a map's widths beside
certified ones.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pandas
import xarray as xr

from relu_sgd.problem import sphere_rows
from relu_sgd.theory import related_work, width_search
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.reporting.statistics import fitted_slope, median_interval, summarize
from sweeps.runtime import arithmetic
from sweeps.runtime.session import open_results
from sweeps.runtime.store import StoreError
from sweeps.study import UsageError
from sweeps.width_bounds.study import CONDITION_OF_METRIC, WidthBounds, dimension

__all__ = ["AGREE", "half_convergence", "map_widths", "printed_bounds", "tables"]

# By which factor measured and expected widths may differ where expected ones are to stand for them.
AGREE = 1.25


def exponent_of_theory(condition: str, scaling: str, delta: float, rho: float) -> float:
    """The power of N in the width, with ||X||^2 of order N / d0 (unit) or N (LeCun), lambda(X) of order 1, and L(0)
    of order N max(1, d1^(1 - rho)).

    (10), (11) and the sharp condition: the second term of F, as in Corollary 4.5. The others: ||X|| sqrt(L(0)) /
    alpha_0^2.
    """
    dimension_power = 0.0 if scaling == "lecun" else delta
    if condition in ("(10)", "(11)", "sharp"):
        return (2.5 - dimension_power) / (1 + rho)
    return (2 - dimension_power) / (1 + min(rho, 1.0))


def tables(results: xr.Dataset, study: WidthBounds) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """summary.csv, a row per (N, delta, scaling, condition), and exponents.csv, a row per (delta, scaling,
    condition).

    Where widths are too large to measure those from expectations stand for them, if they did at the last N that was
    measured, within `AGREE`; else the width is not known there, and is not fitted. (Near d1 = N alpha_0 is far below
    its expectation, and what the path certificate asks for is more.)
    """
    rows, exponents = [], []
    for j, delta in enumerate(results["delta"].values):
        for scaling in study.scaling:
            for name, text in CONDITION_OF_METRIC.items():
                medians, agreement = [], float("nan")
                for i, num_samples in enumerate(results["num_samples"].values):
                    cell = results.isel(num_samples=i, delta=j)
                    done = cell["status"].values != 0
                    expected, measured = (
                        cell[f"{scaling}_{kind}_{name}"].values[done] for kind in ("expected", "measured")
                    )
                    measured = measured[np.isfinite(measured)]
                    used = measured if len(measured) == done.sum() else expected
                    source = "measured" if used is measured else "expected"
                    if used is measured and len(used):
                        agreement = float(np.median(measured / expected))
                    elif not 1 / AGREE <= agreement <= AGREE:
                        used, source = np.full(len(used), np.nan), "unknown"
                    median, low, high, coverage = median_interval(used)
                    rank = max(math.ceil(study.confidence * len(used)), 1) - 1
                    medians.append(median)
                    rows.append(
                        {
                            "num_samples": int(num_samples),
                            "delta": float(delta),
                            "d0": dimension(int(num_samples), float(delta)),
                            "scaling": scaling,
                            "condition": text,
                            "runs": int(done.sum()),
                            "measured_runs": len(measured),
                            "source": source,
                            "width": median,
                            "width_low": low,
                            "width_high": high,
                            "coverage": coverage,
                            "width_at_confidence": float(np.sort(used)[rank]) if len(used) else float("nan"),
                            "measured_over_expected": float(np.median(measured / expected[: len(measured)]))
                            if used is measured and len(used)
                            else float("nan"),
                        }
                    )
                sizes = results["num_samples"].values
                slope, low, high = fitted_slope(np.log(sizes), np.log(medians))
                exponents.append(
                    {
                        "delta": float(delta),
                        "scaling": scaling,
                        "condition": text,
                        "largest_num_samples": int(max(sizes[np.isfinite(medians)], default=0)),
                        "exponent": slope,
                        "exponent_low": low,
                        "exponent_high": high,
                        "exponent_of_theory": exponent_of_theory(text, scaling, float(delta), study.rho),
                    }
                )  # fmt: skip
    return pandas.DataFrame(rows), pandas.DataFrame(exponents)


def printed_bounds(num_samples: Sequence[int], deltas: Sequence[float]) -> pandas.DataFrame:
    """table_1.csv: what the literature asks for, with unit constants and without logarithms, a row per (N, delta,
    result).
    """
    return pandas.DataFrame(
        [
            {
                "num_samples": size,
                "delta": delta,
                "d0": dimension(size, delta),
                "result": result.name,
                "algorithm": result.algorithm,
                "trained_layers": result.trained_layers,
                "relu": result.relu,
                "deep": result.deep,
                "data": result.data,
                "scaling": result.scaling,
                "width_with_unit_constant": result.width(size, dimension(size, delta)),
                "in_table_1": result.in_table,
                "note": result.note,
            }
            for size in num_samples
            for delta in deltas
            for result in related_work.RESULTS
        ]
    )


def half_convergence(d1: np.ndarray, probability: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, ...]:
    """The least width at which at least half of the networks converge, with the widths that its interval allows.

    Beyond it the probability may fall again, for other reasons: both layers with a step that is too long for their
    width diverge.

    Args:
      d1: widths, increasing.
      probability, low, high: the probability of convergence and its interval; NaN where nothing ran.

    Returns:
      (width, low, high): the least d1 at which the probability, its upper and its lower limit reach 1/2; inf for
        none.
    """

    def first(values: np.ndarray) -> float:
        reached = np.flatnonzero(values >= 0.5)
        return float(d1[reached[0]]) if len(reached) else math.inf

    return first(probability), first(high), first(low)


def map_widths(folder: Path) -> pandas.DataFrame:
    """The widths at which half of a map's networks converge, beside the expected certified ones: a row per variant and
    d0.

    Raises:
      UsageError: there is no map in the folder.
    """
    store = open_results(folder, flag="map")
    try:
        study = ConvergenceMap.from_science(store.attributes)
        num_samples, base_seed = study.num_samples, study.base_seed
        groups = {variant.group: summarize(store.read(variant.group)) for variant in study.variants()}
        sizes = {setup: (group["d0"].values, group["d1"].values) for setup, group in groups.items()}
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"--map: {folder} holds no convergence map ({error})") from error
    largest = max(int(d0s.max()) for d0s, _ in sizes.values())
    draw = jax.jit(lambda key, d0: sphere_rows(key, num_samples, d0, padded_d0=largest))
    rows = []
    expected: dict[int, dict[str, float]] = {}
    for setup, (d0s, d1s) in sizes.items():
        for i, d0 in enumerate(map(int, d0s)):
            if d0 not in expected:
                X = np.asarray(draw(jax.random.fold_in(arithmetic.key(base_seed), d0), d0), float)[:, :d0]
                Y = np.ones((num_samples, 1))
                try:
                    expected[d0] = width_search.population_widths(X, Y)
                except ValueError:  # lambda(X) is 0 up to rounding: in the plane there are too many samples.
                    expected[d0] = dict.fromkeys(width_search.CONDITIONS, math.inf)
            cell = groups[setup].isel(d0=i)
            width, low, high = half_convergence(
                d1s, *(cell[name].values for name in ("probability", "probability_low", "probability_high"))
            )
            rows.append(
                {
                    "setup": setup,
                    "num_samples": num_samples,
                    "d0": d0,
                    "runs_per_cell": int(cell["runs"].values.max()),
                    "half_converge_at": width,
                    "half_converge_low": low,
                    "half_converge_high": high,
                    "certified_10_unit_rows": expected[d0]["(10)"],
                    "certified_sharp_unit_rows": expected[d0]["sharp"],
                    "certified_path_unit_rows": expected[d0]["path"],
                }
            )
    return pandas.DataFrame(rows)
