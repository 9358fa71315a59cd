"""Probabilities with their intervals and counts, and why runs fail."""

import functools

import numpy as np
import xarray as xr
from scipy import stats

from relu_sgd import Status
from relu_sgd.proofs import Verdict
from sweeps.protocol.presets import relative_tolerances

__all__ = ["fitted_slope", "interval", "mean_interval", "median_interval", "summarize", "summarize_proofs"]


@functools.cache
def interval(successes: int, runs: int, method: str = "wilson", level: float = 0.95) -> tuple[float, float]:
    """A confidence interval for a probability, from `successes` out of `runs`.

    Args:
      successes: 0 to `runs`.
      runs: at least 1.
      method: "wilson" or "exact", see `convergence_map.study.INTERVALS`.
      level: its coverage, exact methods cover at least this much.

    Returns:
      (low, high).

    Raises:
      ValueError: the counts or the method are not allowed.
    """
    bounds = stats.binomtest(successes, runs).proportion_ci(confidence_level=level, method=method)
    return float(bounds.low), float(bounds.high)


def _student_interval(
    estimate: float, standard_error: float, degrees_of_freedom: int, level: float
) -> tuple[float, float, float]:
    """An estimate with Student's confidence interval; NaN for its ends without degrees of freedom."""
    if degrees_of_freedom < 1:
        return float(estimate), float("nan"), float("nan")
    # By its quantile: `stats.t.interval` is NaN where the standard error is 0.
    half = float(stats.t.ppf(0.5 + level / 2, degrees_of_freedom) * standard_error)
    return float(estimate), float(estimate) - half, float(estimate) + half


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """The mean of the values that are finite, and Student's confidence interval for it: NaN where there are too few.

    Args:
      values: any number of them.
      level: the interval's coverage, for normal values.

    Returns:
      (mean, low, high).
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return (float("nan"),) * 3
    return _student_interval(values.mean(), stats.sem(values) if len(values) > 1 else 0.0, len(values) - 1, level)


@functools.cache
def _median_rank(count: int, level: float) -> tuple[int, float]:
    """The largest rank from either end whose values enclose the median with probability `level`, and their
    probability.
    """
    # The number of values below the true median is binomial(count, 1/2).
    covered = 1 - 2 * stats.binom.cdf(np.arange((count + 1) // 2), count, 0.5)
    rank = max(int(np.sum(covered >= level)) - 1, 0)
    return rank, max(float(covered[rank]), 0.0)


def median_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float, float]:
    """The median, and a confidence interval between two order statistics, for any continuous law.

    Args:
      values: any number of them; infinite ones count.
      level: the coverage that is asked for. Few values cannot give it: then the interval is from the least to the
        largest.

    Returns:
      (median, low, high, coverage); the coverage is exact. NaN without values.
    """
    count, ordered = len(values), np.sort(values)
    if not count:
        return (float("nan"),) * 4
    rank, covered = _median_rank(count, level)
    return float(np.median(ordered)), float(ordered[rank]), float(ordered[count - 1 - rank]), covered


def fitted_slope(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """The least-squares slope of y over x, with Student's interval; NaN where there are too few finite points.

    Returns:
      (slope, low, high).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    kept = np.isfinite(x) & np.isfinite(y)
    if kept.sum() < 2:
        return (float("nan"),) * 3
    fit = stats.linregress(x[kept], y[kept])
    return _student_interval(fit.slope, fit.stderr, int(kept.sum()) - 2, level)


def summarize(results: xr.Dataset, method: str = "wilson") -> xr.Dataset:
    """Per (d0, d1) cell of one variant: counts, probability and interval, causes of failure, averages.

    Only finished runs count; a cell without any has NaN for everything but its counts.

    Args:
      results: a group of the store, see `sweeps.runtime.store`.
      method: the intervals' method.

    Returns:
      A dataset over (d0, d1). `converged`, `diverged`, `dead` and `step_limit` (and `stopped`, where a theorem may end
      runs: --stop=decided) count runs and add up to `runs`: a run is `dead` when it met the step limit with a dead
      sample, so the causes exclude each other. `within_<protocol>` counts the runs whose last network meets that
      protocol's criterion, whatever the criterion of the sweep (labels +-1 only, NaN otherwise). Step counts are of
      converged runs; zeros and errors of those that did not diverge.
    """
    status = results["status"]
    converged = (status == Status.CONVERGED).sum("seed")
    runs = (status != Status.PENDING).sum("seed")
    limit = status == Status.MAX_STEPS_REACHED
    dead = (limit & (results["dead_samples"] > 0)).sum("seed")
    bounds = np.full((*runs.shape, 2), np.nan)
    for cell, count in np.ndenumerate(runs.values):
        if count:
            bounds[cell] = interval(int(converged.values[cell]), int(count), method)
    stopped = status == Status.STOPPED
    finite = (status == Status.CONVERGED) | limit | stopped
    science = results.attrs["science"]
    within = {
        f"within_{name}": (results["relative_error"].where(status != Status.PENDING) < tolerance).sum("seed")
        if science["label_law"] in ("balanced", "random_signs")
        else runs * np.nan
        for name, tolerance in relative_tolerances(science["num_samples"]).items()
    }
    steps = results["converged_at"].where(status == Status.CONVERGED)
    return xr.Dataset(
        {
            "runs": runs,
            "converged": converged,
            "step_limit": limit.sum("seed") - dead,
            "dead": dead,
            "diverged": (status == Status.DIVERGED).sum("seed"),
            **({"stopped": stopped.sum("seed")} if science.get("stop") == "decided" else {}),
            **within,
            "probability": converged / runs.where(runs > 0),
            "probability_low": (runs.dims, bounds[..., 0]),
            "probability_high": (runs.dims, bounds[..., 1]),
            "median_steps": steps.median("seed"),
            "least_steps": steps.min("seed"),
            "most_steps": steps.max("seed"),
            "mean_numerical_zeros": results["numerical_zeros"].where(finite).mean("seed"),
            "standard_deviation_numerical_zeros": results["numerical_zeros"].where(finite).std("seed", ddof=1),
            "mean_zeros_at_rounding": results["zeros_at_rounding"].where(finite).mean("seed"),
            "mean_dead_samples": results["dead_samples"].where(finite).mean("seed"),
            "median_relative_error": results["relative_error"].where(finite).median("seed"),
        },
        attrs=results.attrs,
    )


def summarize_proofs(results: xr.Dataset) -> xr.Dataset:
    """Per (d0, d1) cell of one set-up: what is proved of its runs, and how that agrees with the criterion.

    Args:
      results: a group of a store with the metrics of `sweeps.proving`.

    Returns:
      A dataset over (d0, d1). `proved_global`, `proved_local`, `undecided` and `not_tried` (diverged) count the
      finished runs and add up to `runs` of `summarize`. `converged_at_local` counts runs that meet the criterion with
      a local minimum of positive loss proved nearby, `missed_at_global` those that do not, with a global one;
      `converged_undecided` and `missed_undecided` those of either kind without a proof. Medians are of the runs with a
      proof (distance) and of the proved local minima (error, its lower bound).
    """
    finished, converged = results["status"] != Status.PENDING, results["status"] == Status.CONVERGED
    tried = finished & (results["status"] != Status.DIVERGED)
    is_global, is_local = (
        finished & (results["verdict"] == verdict) for verdict in (Verdict.GLOBAL_MINIMUM, Verdict.LOCAL_MINIMUM)
    )
    undecided = tried & ~is_global & ~is_local
    counted = {
        "proved_global": is_global,
        "proved_local": is_local,
        "undecided": undecided,
        "not_tried": finished & ~tried,
        "converged_at_local": converged & is_local,
        "converged_undecided": converged & undecided,
        "missed_at_global": ~converged & is_global,
        "missed_undecided": ~converged & undecided,
    }
    return xr.Dataset(
        {
            **{name: runs.sum("seed") for name, runs in counted.items()},
            "median_distance": results["distance"].where(is_global | is_local).median("seed"),
            "median_proved_error": results["proved_error_low"].where(is_local).median("seed"),
        },
        attrs=results.attrs,
    )
