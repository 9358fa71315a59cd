"""Where a probability that grows with a size passes 1/2, from counts: a penalized logistic fit with intervals.

P(success) = 1 / (1 + exp(-(a + b log size))), one curve a row. The likelihood is multiplied by Jeffreys' prior, the
root of the determinant of the Fisher information (D. Firth, Bias reduction of maximum likelihood estimates, Biometrika
80, 1993): the estimates are finite where the counts are separated, all failures below a size and all successes above.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

__all__ = ["ABOVE", "BELOW", "FLAT", "INSIDE", "Boundary", "Fit", "boundary", "fit", "information", "weights"]

# Where the boundary lies; see `Boundary.place`.
INSIDE, BELOW, ABOVE, FLAT = "inside", "below", "above", "unknown"
# How far beyond the grid ends of intervals are looked for, in half-lengths of the grid in log size.
_REACH = 10.0
_MOST_ITERATIONS = 60
_TOLERANCE = 1e-9


class Fit(NamedTuple):
    """Logistic curves, a row each, in z = (log size - center) / scale.

    Attributes:
      intercept, slope: of the logit, in z.
      log_likelihood: the largest penalized one, up to a constant.
      center, scale: of log size.
    """

    intercept: np.ndarray
    slope: np.ndarray
    log_likelihood: np.ndarray
    center: float
    scale: float

    @property
    def log_boundary(self) -> np.ndarray:
        """The log size at which the curve passes 1/2."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.center - self.scale * self.intercept / self.slope


class Boundary(NamedTuple):
    """The size at which a probability is 1/2, a row each.

    Attributes:
      size: the estimate; NaN where it is not inside the grid.
      low, high: interval from the profile of the penalized likelihood; 0 and infinity where it does not end.
      bootstrap_low, bootstrap_high: percentiles of the estimates from runs drawn anew; NaN where `size` is.
      slope: of the logit over log size, at least 0; NaN where `size` is.
      deviance: of the counts from the curve, twice the log ratio of likelihoods; about chi-squared with as many degrees
        of freedom as there are sizes less 2 where counts are large.
      place: "inside" the grid, "below" or "above" it (as far as the grid tells), or "unknown" where the probability
        does not grow along the grid.
    """

    size: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bootstrap_low: np.ndarray
    bootstrap_high: np.ndarray
    slope: np.ndarray
    deviance: np.ndarray
    place: np.ndarray


def _standardized(sizes: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float, float]:
    """Log sizes on [-1, 1], their center and scale."""
    known = np.asarray(sizes, float)
    if len(known) < 2 or not (np.isfinite(known).all() and known.min() > 0 and len(np.unique(known)) == len(known)):
        raise ValueError(f"a boundary needs at least two positive sizes, each once, got {known.tolist()!r:.60}")
    logs = np.log(known)
    center, scale = (logs.min() + logs.max()) / 2, (logs.max() - logs.min()) / 2
    return (logs - center) / scale, float(center), float(scale)


def weights(eta: np.ndarray) -> np.ndarray:
    """The variance p (1 - p) of a run, from the logit of p."""
    decay = np.exp(-np.abs(eta))  # Never overflows.
    return decay / (1 + decay) ** 2


def information(eta: np.ndarray, z: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The Fisher information of (intercept, slope): its entries (1, 1), (1, 2) and (2, 2), over the rows.

    Args:
      eta: logits, rows x sizes.
      z: standardized log sizes.
      runs: rows x sizes.
    """
    weight = runs * weights(eta)
    return weight.sum(-1), weight @ z, weight @ (z * z)


def _log_likelihood(eta: np.ndarray, z: np.ndarray, successes: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Of the counts, plus half the log determinant of the Fisher information."""
    one, cross, square = information(eta, z, runs)
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = 0.5 * np.log(np.maximum(one * square - cross**2, 0.0))
    return (successes * eta - runs * np.logaddexp(0.0, eta)).sum(-1) + penalty


def fit(sizes: Sequence[float] | np.ndarray, successes: np.ndarray, runs: np.ndarray) -> Fit:
    """The curves of the largest penalized likelihood, by Fisher scoring of the modified score with halved steps.

    Args:
      sizes: positive, at least two.
      successes, runs: counts, (..., sizes). A row with runs at fewer than two sizes has NaN.

    Raises:
      ValueError: there are fewer than two sizes, one is not positive, or two are equal.
    """
    z, center, scale = _standardized(sizes)
    shape = np.shape(runs)[:-1]
    runs = np.asarray(runs, float).reshape(-1, len(z))
    successes = np.asarray(successes, float).reshape(-1, len(z))
    known = (runs > 0).sum(-1) >= 2
    parameters = np.where(known[:, None], 0.0, np.nan) * np.ones(2)
    value = np.full(len(runs), np.nan)
    active = np.flatnonzero(known)
    value[active] = _log_likelihood(np.zeros((len(active), len(z))), z, successes[active], runs[active])
    for _ in range(_MOST_ITERATIONS):
        if not len(active):
            break
        s, n, now = successes[active], runs[active], parameters[active]
        eta = now[:, :1] + now[:, 1:] * z
        step = _step(eta, z, s, n)
        size = np.ones(len(active))
        following, reached = now + step, np.full(len(active), -np.inf)
        for _ in range(30):  # Halved until the likelihood does not fall.
            worse = np.flatnonzero(~(reached >= value[active] - 1e-12 * np.abs(value[active])))
            if not len(worse):
                break
            following[worse] = now[worse] + size[worse, None] * step[worse]
            trial = following[worse]
            reached[worse] = _log_likelihood(trial[:, :1] + trial[:, 1:] * z, z, s[worse], n[worse])
            size[worse] /= 2
        better = reached >= value[active] - 1e-12 * np.abs(value[active])
        parameters[active] = np.where(better[:, None], following, now)
        value[active] = np.where(better, reached, value[active])
        moved = np.abs(parameters[active] - now).max(axis=1) > _TOLERANCE * (1 + np.abs(now).max(axis=1))
        active = active[moved & better]
    return Fit(parameters[:, 0].reshape(shape), parameters[:, 1].reshape(shape), value.reshape(shape), center, scale)


def _step(eta: np.ndarray, z: np.ndarray, successes: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """Inverse information times Firth's modified score: rows x 2, no longer than 4."""
    weight = runs * weights(eta)
    probability = 0.5 * (1 + np.tanh(eta / 2))
    one, cross, square = information(eta, z, runs)
    determinant = np.maximum(one * square - cross**2, 1e-300)[:, None]
    # Leverage of the runs at a size, summed over them.
    leverage = weight * (square[:, None] - 2 * cross[:, None] * z + one[:, None] * z * z) / determinant
    residual = successes - runs * probability + leverage * (0.5 - probability)
    first, second = residual.sum(-1), residual @ z
    step = np.stack([square * first - cross * second, one * second - cross * first], axis=1) / determinant
    longest = np.abs(step).max(axis=1, keepdims=True)
    return step * np.minimum(1.0, 4.0 / np.maximum(longest, 1e-300))


def _profile(z0: np.ndarray, z: np.ndarray, successes: np.ndarray, runs: np.ndarray) -> np.ndarray:
    """The largest penalized likelihood of curves that pass 1/2 at z0, growing ones: rows.

    The slope is looked for on a grid of logarithms, which is made finer around the best.
    """
    apart = np.diff(np.sort(z)).min()
    low, high = np.full(len(z0), np.log(1e-4)), np.full(len(z0), np.log(60 / apart))
    best = np.full(len(z0), -np.inf)
    for points in (48, 9, 9, 9, 9):
        grid = np.linspace(low, high, points)  # points x rows
        eta = np.exp(grid)[..., None] * (z - z0[:, None])
        values = _log_likelihood(eta, z, successes, runs)
        at = np.argmax(values, axis=0)
        spacing = (high - low) / (points - 1)
        best = np.maximum(best, np.take_along_axis(values, at[None], 0)[0])
        middle = np.take_along_axis(grid, at[None], 0)[0]
        low, high = middle - spacing, middle + spacing
    return best


def _profile_end(
    best: np.ndarray, start: np.ndarray, side: int, drop: float, z: np.ndarray, successes: np.ndarray, runs: np.ndarray
) -> np.ndarray:
    """Where twice the profile has fallen by `drop` on one side of the estimate; infinite where it never does."""
    below = lambda z0: 2 * (best - _profile(z0, z, successes, runs)) > drop
    near, far = start.copy(), np.clip(start, -1, 1) + side * _REACH
    ends = below(far)
    for _ in range(32):
        middle = (near + far) / 2
        is_far = below(middle)
        near, far = np.where(is_far, near, middle), np.where(is_far, middle, far)
    return np.where(ends, (near + far) / 2, side * np.inf)


def _monotone_bounds(
    sizes: np.ndarray, runs: np.ndarray, level: float, *, succeed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """One-sided bounds of a row of failures or of successes alone, which ask of the probability only that it grows.

    Were the boundary below a size, then every run from there on would fail with a probability of at most 1/2: the
    bound is the largest size that has so many runs from it on that this is no likelier than (1 - level) / 2.
    """
    order = 1 if succeed else -1
    counted = np.cumsum(runs[:, ::order], axis=1)[:, ::order]
    enough = 0.5**counted <= (1 - level) / 2
    if succeed:
        return np.zeros(len(runs)), np.where(enough, sizes, np.inf).min(axis=1)
    return np.where(enough, sizes, 0.0).max(axis=1), np.full(len(runs), np.inf)


def _surroundings(sizes: np.ndarray, successes: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest size up to which every run failed, 0 for none, and the smallest from which every one succeeded."""
    fails = np.cumsum(successes, axis=1) == 0
    succeeds = np.cumsum((runs - successes)[:, ::-1], axis=1)[:, ::-1] == 0
    seen = runs > 0
    return np.where(fails & seen, sizes, 0.0).max(axis=1), np.where(succeeds & seen, sizes, np.inf).min(axis=1)


def _bootstrap(
    sizes: np.ndarray, found: Fit, rows: np.ndarray, runs: np.ndarray, level: float, num_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the boundary when the runs of every cell of some rows are drawn again, from the fitted curve.

    Runs are independent, so seeds are drawn cell by cell. Not from the cell's own runs: where all of them fail, or
    all succeed, so would all of their resamples, and the intervals of a sharp edge would be far too short.
    """
    z, _, _ = _standardized(sizes)
    low, high = np.empty(len(rows)), np.empty(len(rows))
    tail = (1 - level) / 2
    for place, row in enumerate(rows):  # So that memory stays small.
        probability = 0.5 * (1 + np.tanh((found.intercept[row] + found.slope[row] * z) / 2))
        generator = np.random.default_rng([seed, row])
        counts = generator.binomial(runs[row].astype(int), probability, (num_resamples, len(z)))
        again = fit(sizes, counts, np.broadcast_to(runs[row], counts.shape))
        beyond = np.where(counts.sum(axis=1) < runs[row].sum() / 2, np.inf, -np.inf)
        logs = np.where(again.slope > 0, again.log_boundary, beyond)
        low[place], high[place] = np.quantile(logs, [tail, 1 - tail], method="inverted_cdf")
    with np.errstate(over="ignore"):
        return np.exp(low), np.exp(high)


def _deviance(eta: np.ndarray, successes: np.ndarray, runs: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        best = sum(
            np.where(count > 0, count * np.log(count / runs), 0.0) for count in (successes, runs - successes)
        )  # The log-likelihood of the shares themselves.
    return 2 * (best - (successes * eta - runs * np.logaddexp(0.0, eta))).sum(-1)


def boundary(
    sizes: Sequence[float] | np.ndarray,
    successes: np.ndarray,
    runs: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Boundary:
    """The size at which the probability of success is 1/2, with two intervals, a row of counts after the other.

    Rows and cells are taken as independent of each other, as they are where every run draws its own data; where the
    runs of a cell share data, the intervals are for those data. What lies outside of the grid is not extrapolated: such
    a row has a bound on one side. A row of failures or successes alone has an exact one, which asks for no curve. Where
    at most one size has both failures and successes, low and high are at least the sizes around it.

    Args:
      sizes: positive, at least two, increasing.
      successes, runs: counts, rows x sizes; cells without runs count for nothing.
      level: coverage of the intervals.
      num_resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: see `fit`.
    """
    sizes = np.asarray(sizes, float)
    successes, runs = np.asarray(successes, float), np.asarray(runs, float)
    count = len(runs)
    z, center, scale = _standardized(sizes)
    found = fit(sizes, successes, runs)
    known = np.isfinite(found.slope)
    none, every = known & (successes.sum(1) == 0), known & (successes.sum(1) == runs.sum(1))
    mixed = known & ~none & ~every
    place = np.full(count, FLAT, dtype="U8")
    place[none], place[every] = ABOVE, BELOW
    grows = mixed & (found.slope > 0)
    where = (found.log_boundary - center) / scale
    place[grows] = np.where(where[grows] > 1, ABOVE, np.where(where[grows] < -1, BELOW, INSIDE))

    low, high = np.zeros(count), np.full(count, np.inf)
    low[none], high[none] = _monotone_bounds(sizes, runs[none], level, succeed=False)
    low[every], high[every] = _monotone_bounds(sizes, runs[every], level, succeed=True)
    drop = NormalDist().inv_cdf((1 + level) / 2) ** 2  # Of chi-squared with one degree of freedom.
    for side, ends in ((-1, low), (1, high)):
        rows = np.flatnonzero(grows & (place != (BELOW if side < 0 else ABOVE)))
        if len(rows):
            z_end = _profile_end(found.log_likelihood[rows], where[rows], side, drop, z, successes[rows], runs[rows])
            with np.errstate(over="ignore"):
                ends[rows] = np.exp(center + scale * z_end)

    # Where the edge is steeper than the grid can tell, the curve's interval would be the prior's: there it is at least
    # what lies between the failures alone and the successes alone.
    last, first = _surroundings(sizes, successes, runs)
    steep = (place == INSIDE) & (np.sum((successes > 0) & (successes < runs), axis=1) <= 1) & (last < first)
    low[steep], high[steep] = np.minimum(low, last)[steep], np.maximum(high, first)[steep]

    inside = np.flatnonzero(place == INSIDE)
    size, slope, deviance = (np.full(count, np.nan) for _ in range(3))
    bootstrap_low, bootstrap_high = np.full(count, np.nan), np.full(count, np.nan)
    size[inside] = np.exp(found.log_boundary[inside])
    slope[inside] = found.slope[inside] / scale
    eta = found.intercept[inside, None] + found.slope[inside, None] * z
    deviance[inside] = _deviance(eta, successes[inside], runs[inside])
    if num_resamples and len(inside):
        percentiles = _bootstrap(sizes, found, inside, runs, level, num_resamples, seed)
        bootstrap_low[inside], bootstrap_high[inside] = percentiles
    return Boundary(size, low, high, bootstrap_low, bootstrap_high, slope, deviance, place)
