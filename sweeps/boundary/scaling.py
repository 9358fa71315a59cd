"""What is measured of the boundary without a law: collapse, how steep the transition is, and dead samples."""

import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import interpolate, optimize, special, stats

from sweeps.boundary.law import (
    REFERENCE_SIZE,
    Counts,
    crossing,
    expected_deviance,
    leave_out_rows,
    log_likelihood,
    saturated,
)

__all__ = [
    "Collapse",
    "WidthExponent",
    "collapse",
    "expected_dead",
    "probability_of_dead",
    "steepness",
    "transition_exponent",
]


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

    A ridge, far below what the counts say of any coefficient, keeps the curve finite.
    """
    basis = _spline(u, knots)
    ridge = 1e-7 * np.eye(basis.shape[1])

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


class _Steepness:
    """The likelihood of every row's steepness b, the row's boundary at its best.

    It is multiplied by the root of 1 / information of that boundary (D. R. Cox and N. Reid, Parameter orthogonality and
    approximate conditional inference, Journal of the Royal Statistical Society B 49, 1987), without which many rows
    with few runs each would make b too large. It is computed once, on a grid of log b, and interpolated.

    Attributes:
      num_samples, log_width: N and log d1*, of the rows that have both successes and failures.
    """

    def __init__(self, counts: Counts) -> None:
        rows = counts.rows
        by_row = lambda values: np.bincount(rows, values, minlength=rows.max() + 1)
        mixed = (by_row(counts.successes) > 0) & (by_row(counts.successes) < by_row(counts.runs))
        kept = counts.take(mixed[rows])
        self._kept, self._rows = kept, kept.rows
        self.count = len(np.unique(self._rows))
        self.num_samples = kept.num_samples[np.unique(self._rows, return_index=True)[1]]
        if self.count:
            self.log_width = self._located(5.0)
            self._grid = np.linspace(-1.5, 6.0, 76)
            table = np.stack([self._likelihoods(float(np.exp(point))) for point in self._grid])
            self._coefficients = interpolate.CubicSpline(self._grid, table).c

    def _sums(self, values: np.ndarray) -> np.ndarray:
        return np.bincount(self._rows, values, minlength=self.count)

    def _located(self, slope: float) -> np.ndarray:
        """The best log d1* of every row: the number of successes is what is expected."""
        x, runs, total = np.log(self._kept.d1), self._kept.runs, self._sums(self._kept.successes)
        low, high = np.full(self.count, x.min() - 20.0), np.full(self.count, x.max() + 20.0)
        for _ in range(50):
            middle = (low + high) / 2
            more = self._sums(runs * special.expit(slope * (x - middle[self._rows]))) > total
            low, high = np.where(more, middle, low), np.where(more, high, middle)
        return (low + high) / 2

    def _likelihoods(self, slope: float) -> np.ndarray:
        eta = slope * (np.log(self._kept.d1) - self._located(slope)[self._rows])
        p = special.expit(eta)
        information = slope**2 * self._sums(self._kept.runs * p * (1 - p))
        return self._sums(log_likelihood(eta, self._kept)) - 0.5 * np.log(np.maximum(information, 1e-300))

    def at(self, log_slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The logarithm of every row's likelihood, and its derivative; flat beyond the grid."""
        inside = np.clip(log_slopes, self._grid[0], self._grid[-1] - 1e-9)
        place = ((inside - self._grid[0]) / (self._grid[1] - self._grid[0])).astype(int)
        a, b, c, d = self._coefficients[:, place, np.arange(self.count)]
        x = inside - self._grid[place]
        return ((a * x + b) * x + c) * x + d, np.where(inside == log_slopes, (3 * a * x + 2 * b) * x + c, 0.0)

    def best(
        self, regressors: np.ndarray, weights: np.ndarray, begin: np.ndarray, fixed: tuple[int, float] | None = None
    ) -> tuple[np.ndarray, float]:
        """The powers of the largest likelihood, and its logarithm; rows count as often as `weights` says."""
        begin = begin.copy()
        if fixed is not None:
            begin[fixed[0]] = fixed[1]
        free = [place for place in range(len(begin)) if fixed is None or place != fixed[0]]

        def whole(numbers: np.ndarray) -> np.ndarray:
            beta = begin.copy()
            beta[free] = numbers
            return beta

        def fall(numbers: np.ndarray) -> tuple[float, np.ndarray]:
            value, derivative = self.at(regressors @ whole(numbers))
            return -float(weights @ value), -((weights * derivative) @ regressors)[free]

        if not free:
            return begin, -fall(begin[free])[0]
        found = optimize.minimize(fall, begin[free], jac=True, method="BFGS", options={"gtol": 1e-4})
        return whole(found.x), -float(found.fun)


def transition_exponent(
    counts: Counts, *, with_width: bool = False, level: float = 0.95, num_resamples: int = 200, seed: int = 0
) -> WidthExponent:
    """The finite-size exponent of the transition, without a law of the boundary.

    In every row (N, d0) logit P = b (log d1 - m), m free; b is common up to powers.

    Args:
      counts: cells.
      with_width: whether b has a power of the row's d1* too.
      level: coverage of the intervals.
      num_resamples: of the rows.
      seed: of the resamples.

    Raises:
      ValueError: fewer than two N have rows with both successes and failures.
    """
    rows = _Steepness(counts)
    if len(np.unique(rows.num_samples)) < 2:
        raise ValueError("an exponent of N needs two N with both successes and failures")
    regressors = [np.ones(rows.count), np.log(rows.num_samples / REFERENCE_SIZE)]
    if with_width:
        regressors.append(rows.log_width - rows.log_width.mean())
    Z = np.stack(regressors, axis=1)
    ones = np.ones(rows.count)
    beta, top = rows.best(Z, ones, np.array([2.0, *np.zeros(Z.shape[1] - 1)]))
    drop = float(stats.chi2.ppf(level, 1))

    def fall(place: int, number: float) -> float:
        return 2 * (top - rows.best(Z, ones, beta, (place, number))[1]) - drop

    ends = [
        [crossing(functools.partial(fall, place), beta[place], side * 0.1) for place in range(1, Z.shape[1])]
        for side in (-1, 1)
    ]
    generator = np.random.default_rng(seed)
    drawn = [
        rows.best(Z, np.bincount(generator.integers(rows.count, size=rows.count), minlength=rows.count) * 1.0, beta)[0]
        for _ in range(num_resamples)
    ]
    around = np.full((2, len(beta)), np.nan)
    if num_resamples:
        around = np.quantile(np.array(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    names = ("w", "v")[: len(beta) - 1]
    low, high = map(np.array, ends)
    slope = float(np.exp(beta[0]))
    return WidthExponent(names, beta[1:], low, high, around[0, 1:], around[1, 1:], slope, rows.count)


class Steepness(NamedTuple):
    """Of the transition at one N: b, common to its rows, with its interval from the profile.

    Attributes:
      num_samples: N.
      rows: how many have both successes and failures.
      steepness, low, high: b and its interval.
    """

    num_samples: int
    rows: int
    steepness: float
    low: float
    high: float


def steepness(counts: Counts, level: float = 0.95) -> list[Steepness]:
    """The transition's steepness at every N that has rows with both successes and failures."""
    drop = float(stats.chi2.ppf(level, 1))
    found = []
    for size in np.unique(counts.num_samples):
        rows = _Steepness(counts.take(counts.num_samples == size))
        if not rows.count:
            continue
        beta, top = rows.best(np.ones((rows.count, 1)), np.ones(rows.count), np.array([2.0]))
        fall = functools.partial(_fall, rows, top, drop)
        low, high = (crossing(fall, beta[0], side * 0.05) for side in (-1, 1))
        with np.errstate(over="ignore"):
            found.append(Steepness(int(size), rows.count, *(float(np.exp(log)) for log in (beta[0], low, high))))
    return found


def _fall(rows: _Steepness, top: float, drop: float, log_slope: float) -> float:
    return 2 * (top - float(rows.at(np.full(rows.count, log_slope))[0].sum())) - drop


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
