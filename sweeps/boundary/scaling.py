"""What is measured of the boundary without a law: collapse, how steep the transition is, and dead samples."""

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from sweeps.boundary.law import (
    REFERENCE_SIZE,
    Counts,
    crossing,
    expected_deviance,
    leave_out_rows,
    log_likelihood,
    saturated,
)

__all__ = ["Collapse", "WidthExponent", "collapse", "expected_dead", "probability_of_dead", "transition_exponent"]


class Collapse(NamedTuple):
    """Whether the counts lie on one curve over a coordinate, whatever N and d0.

    Attributes:
      one, each_size, each_row, none: deviance of the counts from one curve, from one for each N, from a logistic curve
        for each row (N, d0), and from a constant.
      degrees_of_freedom: of what each N, and each row, has more than one curve.
      share_of_sizes, share_of_rows: of what curves for each N, or row, explain, how much one curve does: 1 where the
        counts collapse.
      dispersion: deviance from the rows' curves over what it would be if they were true; about 1 where they fit.
      p_sizes, p_rows: of one curve against those, by the F test of the deviances.
    """

    one: float
    each_size: float
    each_row: float
    none: float
    degrees_of_freedom: tuple[int, int]
    share_of_sizes: float
    share_of_rows: float
    dispersion: float
    p_sizes: float
    p_rows: float


def _spline(u: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """A basis of natural cubic splines, the constant first: cells x knots."""
    cubes = np.maximum(u[:, None] - knots, 0.0) ** 3
    last = (cubes[:, :-1] - cubes[:, -1:]) / (knots[-1] - knots[:-1])
    return np.column_stack([np.ones_like(u), u, last[:, :-1] - last[:, -1:]])


def _curve(u: np.ndarray, knots: np.ndarray, counts: Counts) -> tuple[float, float]:
    """The deviance of the counts from a logistic curve in a natural spline of u, and what is expected of it.

    A slight ridge keeps the curve finite.
    """
    basis = _spline(u, knots)
    ridge = 1e-3 * np.eye(basis.shape[1])

    def value(beta: np.ndarray) -> float:
        return float(-log_likelihood(basis @ beta, counts).sum() + 0.5 * beta @ ridge @ beta)

    def gradient(beta: np.ndarray) -> np.ndarray:
        return -basis.T @ (counts.successes - counts.runs * special.expit(basis @ beta)) + ridge @ beta

    def hessian(beta: np.ndarray) -> np.ndarray:
        p = special.expit(basis @ beta)
        return (basis.T * (counts.runs * p * (1 - p))) @ basis + ridge

    begin = np.zeros(basis.shape[1])
    found = optimize.minimize(value, begin, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-4})
    eta = basis @ found.x
    deviance = 2 * float((saturated(counts) - log_likelihood(eta, counts)).sum())
    return deviance, expected_deviance(special.expit(eta), counts)


def collapse(coordinate: np.ndarray, counts: Counts, *, num_knots: int = 4) -> Collapse:
    """One curve over a coordinate against one for each N, splines in its logarithm on the same knots, and for each row.

    Args:
      coordinate: positive, of every cell; d0 d1 / N, say.
      counts: the cells.
      num_knots: of the splines, at quantiles of the cells that have both successes and failures.

    Raises:
      ValueError: too few cells have both successes and failures.
    """
    u = np.log(coordinate)
    mixed = (counts.successes > 0) & (counts.successes < counts.runs)
    knots = np.unique(np.quantile(u[mixed], np.linspace(0.05, 0.95, num_knots))) if mixed.any() else np.zeros(0)
    if len(knots) < num_knots:
        raise ValueError(f"a curve with {num_knots} knots needs cells with successes and failures at as many places")
    u = (u - knots.mean()) / (knots[-1] - knots[0])
    knots = (knots - knots.mean()) / (knots[-1] - knots[0])
    groups = [counts.num_samples == size for size in np.unique(counts.num_samples)]
    rows = leave_out_rows(counts)
    one, _ = _curve(u, knots, counts)
    each_size = sum(_curve(u[group], knots, counts.take(group))[0] for group in groups)
    each_row, expected = np.sum([_curve(u[row], knots[[0, -1]], counts.take(row)) for row in rows], axis=0).tolist()
    share = counts.successes.sum() / counts.runs.sum()
    none = 2 * float((saturated(counts) - log_likelihood(special.logit(np.full(len(u), share)), counts)).sum())
    curves = sum(bool(mixed[row].any()) for row in rows)
    rest = max(expected - 2 * curves, 1.0)
    dispersion = each_row / rest
    more = num_knots * (len(groups) - 1), max(2 * curves - num_knots, 0)
    p_sizes, p_rows = (
        float(stats.f.sf(max(one - each, 0.0) / count / max(dispersion, 1.0), count, rest)) if count else float("nan")
        for each, count in zip((each_size, each_row), more, strict=True)
    )
    shares = [1 - (one - each) / (none - each) for each in (each_size, each_row)]
    return Collapse(one, each_size, each_row, none, more, shares[0], shares[1], dispersion, p_sizes, p_rows)


class WidthExponent(NamedTuple):
    """How the steepness of the transition grows: b = exp(s) (N / 200)^w d1*^v, every row with a boundary of its own.

    Attributes:
      names: of the powers: w alone, or w and v.
      estimate, low, high: of these; intervals from the profile.
      rows_low, rows_high: percentiles from whole rows drawn anew.
      slope: exp(s).
      rows: how many have both successes and failures.
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows_low: np.ndarray
    rows_high: np.ndarray
    slope: float
    rows: int


def transition_exponent(
    counts: Counts, *, with_width: bool = False, level: float = 0.95, num_resamples: int = 200, seed: int = 0
) -> WidthExponent:
    """The finite-size exponent of the transition, without a law of the boundary.

    In every row (N, d0) logit P = b (log d1 - m), m free; b is common up to powers. The likelihood is that of b with
    every m at its best, times the root of 1 / information of m (D. R. Cox and N. Reid, Parameter orthogonality and
    approximate conditional inference, Journal of the Royal Statistical Society B 49, 1987), without which many rows
    with few runs each would make b too large.

    Args:
      counts: cells.
      with_width: whether b has a power of the row's d1* too.
      level: coverage of the intervals.
      num_resamples: of the rows.
      seed: of the resamples.

    Raises:
      ValueError: fewer than two N have rows with both successes and failures.
    """
    rows, x = counts.rows, np.log(counts.d1)
    sums = lambda values: np.bincount(rows, values, minlength=rows.max() + 1)
    mixed = (sums(counts.successes) > 0) & (sums(counts.successes) < sums(counts.runs))
    kept = counts.take(mixed[rows])
    if len(np.unique(kept.num_samples)) < 2:
        raise ValueError("an exponent of N needs two N with both successes and failures")
    rows, x = kept.rows, np.log(kept.d1)
    count = int(rows.max()) + 1
    first = np.unique(rows, return_index=True)[1]
    sums = lambda values: np.bincount(rows, values, minlength=count)
    total = sums(kept.successes)

    def located(slopes: np.ndarray) -> np.ndarray:
        """The best m of every row: the number of successes is what is expected."""
        low, high = np.full(count, x.min() - 20.0), np.full(count, x.max() + 20.0)
        for _ in range(50):
            middle = (low + high) / 2
            more = sums(kept.runs * special.expit(slopes[rows] * (x - middle[rows]))) > total
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return (low + high) / 2

    def likelihood(slopes: np.ndarray) -> np.ndarray:
        """Of every row."""
        eta = slopes[rows] * (x - located(slopes)[rows])
        p = special.expit(eta)
        information = slopes**2 * sums(kept.runs * p * (1 - p))
        return sums(log_likelihood(eta, kept)) - 0.5 * np.log(np.maximum(information, 1e-300))

    regressors = [np.ones(count), np.log(kept.num_samples[first] / REFERENCE_SIZE)]
    if with_width:
        m = located(np.full(count, 5.0))
        regressors.append(m - m.mean())
    Z = np.stack(regressors, axis=1)
    # Each row's likelihood over log b, once, on a grid: fits and resamples then interpolate.
    grid = np.linspace(-1.5, 6.0, 151)
    table = np.stack([likelihood(np.full(count, np.exp(point))) for point in grid])

    def values(beta: np.ndarray) -> np.ndarray:
        """Of every row, interpolated; constant beyond the grid."""
        place = np.clip((Z @ beta - grid[0]) / (grid[1] - grid[0]), 1, len(grid) - 2.001)
        whole, part = place.astype(int), place % 1
        each = np.arange(count)
        # Quadratic, so that maxima are not at grid points.
        left, middle, right = (table[whole + shift, each] for shift in (-1, 0, 1))
        return middle + part * (right - left) / 2 + part**2 * (right - 2 * middle + left) / 2

    def best(multiplicity: np.ndarray, fixed: tuple[int, float] | None, begin: np.ndarray) -> tuple[np.ndarray, float]:
        free = [place for place in range(Z.shape[1]) if fixed is None or place != fixed[0]]

        def whole(numbers: np.ndarray) -> np.ndarray:
            beta = begin.copy()
            beta[free] = numbers
            if fixed is not None:
                beta[fixed[0]] = fixed[1]
            return beta

        found = optimize.minimize(
            lambda numbers: -float(multiplicity @ values(whole(numbers))),
            begin[free],
            method="Nelder-Mead",
            options={"xatol": 1e-4, "fatol": 1e-5, "maxiter": 2000},
        )
        return whole(found.x), -float(found.fun)

    ones = np.ones(count)
    beta, top = best(ones, None, np.array([2.0, *np.zeros(Z.shape[1] - 1)]))
    drop = float(stats.chi2.ppf(level, 1))

    def fall(place: int, number: float) -> float:
        return 2 * (top - best(ones, (place, number), beta)[1]) - drop

    ends = [
        [crossing(functools.partial(fall, place), beta[place], side * 0.1) for place in range(1, Z.shape[1])]
        for side in (-1, 1)
    ]
    generator = np.random.default_rng(seed)
    drawn = np.array(
        [
            best(np.bincount(generator.integers(count, size=count), minlength=count).astype(float), None, beta)[0][1:]
            for _ in range(num_resamples)
        ]
    ).reshape(num_resamples, Z.shape[1] - 1)
    tail = (1 - level) / 2
    around = np.quantile(drawn, [tail, 1 - tail], axis=0) if num_resamples else np.full((2, Z.shape[1] - 1), np.nan)
    names = ("w", "v")[: Z.shape[1] - 1]
    return WidthExponent(
        names, beta[1:], np.array(ends[0]), np.array(ends[1]), around[0], around[1], float(np.exp(beta[0])), count
    )


def expected_dead(num_samples: Any, d1: Any) -> np.ndarray:
    """The mean number of samples on which all d1 neurons are inactive at the start, N 2^(-d1).

    Exact for neurons that are independent and of a law that is symmetric about 0, whatever the samples.
    """
    return np.asarray(num_samples, float) * 2.0 ** -np.asarray(d1, float)


def probability_of_dead(num_samples: Any, d0: Any, d1: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probability that a start has a dead sample: for samples that are dead independently, 1 - (1 - 2^(-d1))^N; and
    bounds from below and above that need no independence.

    From above: the expected number, and the probability that the d1 neurons leave any direction of R^d0 uncovered
    (J. G. Wendel, A problem in geometric probability, Mathematica Scandinavica 11, 1962), 2^(1 - d1) times the sum of
    binom(d1 - 1, k) over k < d0. From below: that of one sample.

    Returns:
      (independent, low, high).
    """
    n, d0, d1 = np.broadcast_arrays(*(np.asarray(values, float) for values in (num_samples, d0, d1)))
    independent = -np.expm1(n * np.log1p(-(2.0**-d1)))
    uncovered = stats.binom.cdf(d0 - 1, d1 - 1, 0.5)
    return independent, 2.0**-d1, np.minimum(np.minimum(expected_dead(n, d1), uncovered), 1.0)
