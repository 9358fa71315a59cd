"""Laws of the boundary that hold up to a scatter of the rows.

No law is exact, and where many runs resolve a steep transition a law that is wrong by three percent foresees single
cells with probabilities near 0, so that its score is that of its worst cell. Here the boundary of every row (N, d0) is

    log d1* = the law's + sigma times an independent standard normal number,

and sigma is fitted with the rest: it is about the relative error of the law. Likelihoods are integrals over these
numbers, by Laplace's approximation in the fit and by quadrature where rows are foreseen. Intervals of a law's
parameters count its scatter.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, special, stats

from sweeps.boundary import law
from sweeps.boundary.law import Counts, Estimate, Fit, Line, Model, Parameter, Scores

__all__ = ["SCATTER", "fit", "foreseen", "held_out", "intervals", "shifts"]

SCATTER = Parameter("sigma", 0.1, scale=2.0)
# Of log d1*: no row is farther from a law.
_FARTHEST = 6.0
_NODES, _FINE = 401, 0.25  # At least so many nodes, and so near in units of 1 / b.
_STEP, _RESTARTS = 1e-4, 5


def _pull(at: Line, counts: Counts, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of every cell's log likelihood in its row's shift, and Fisher's information of that."""
    eta = np.clip(at.slope * (np.log(counts.d1) - at.center - shift), -500, 500)
    below = special.expit(-eta)
    failures = counts.runs - counts.successes
    if at.log_alive is None:
        pull = at.slope * (counts.runs * (1 - below) - counts.successes)
        return pull, counts.runs * at.slope**2 * below * (1 - below)
    log_p = np.clip(at.log_alive + np.log1p(-np.minimum(below, 1 - 1e-16)), -500, -1e-16)
    odds = 1 / np.expm1(-log_p)  # P / (1 - P)
    return at.slope * below * (failures * odds - counts.successes), counts.runs * (at.slope * below) ** 2 * odds


def shifts(at: Line, counts: Counts, sigma: float, near: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest shift of every row, and Fisher's information of it, without that of its own law.

    Args:
      at: the law.
      counts: its cells.
      sigma: the scatter.
      near: shifts that are nearly the likeliest, for a short way.
    """
    rows = counts.rows
    number = rows.max() + 1
    low, high = np.full(number, -_FARTHEST), np.full(number, _FARTHEST)
    sums = lambda values: np.bincount(rows, values, minlength=number)
    if near is None:
        for _ in range(12):
            e = (low + high) / 2
            rises = sums(_pull(at, counts, e[rows])[0]) > e / sigma**2
            low, high = np.where(rises, e, low), np.where(rises, high, e)
        near = (low + high) / 2
    e = near
    for _ in range(3):  # Fisher's steps, within the bracket.
        pull, information = (sums(values) for values in _pull(at, counts, e[rows]))
        gradient = pull - e / sigma**2
        low, high = np.where(gradient > 0, e, low), np.where(gradient > 0, high, e)
        e = np.clip(e + gradient / (information + 1 / sigma**2), low, high)
    return e, sums(_pull(at, counts, e[rows])[1])


class _Marginal:
    """Minus the log likelihood with the shifts integrated out, by Laplace's approximation, and with the prior."""

    def __init__(self, model: Model, counts: Counts) -> None:
        self.transition = (*law.TRANSITIONS["powers of N and d1*"], SCATTER)
        known = model.parameters + self.transition
        self.origin = np.array([p.inner(p.start) for p in known])
        self._weight = np.array([1 / p.scale**2 for p in known])
        self._model, self._counts = model, counts

    def at(self, inner: np.ndarray, near: np.ndarray | None = None) -> tuple[float, float, np.ndarray]:
        """The value without and with the prior, and the likeliest shifts."""
        counts = self._counts
        at = law.line(self._model, self.transition, inner, counts)
        sigma = SCATTER.outer(min(max(inner[-1], -12.0), 4.0))
        e, information = shifts(at, counts, sigma, near)
        likelihood = law.log_likelihood(at.logit(counts, e[counts.rows]), counts).sum()
        value = float(np.sum((e / sigma) ** 2 + np.log1p(sigma**2 * information)) / 2 - likelihood)
        return value, value + 0.5 * float(self._weight @ (inner - self.origin) ** 2), e

    def __call__(self, inner: np.ndarray) -> float:
        return self.at(inner)[1]

    def gradient(self, inner: np.ndarray, free: Sequence[int]) -> np.ndarray:
        """By differences; shifts change little with a step."""
        e = self.at(inner)[2]
        moves = _STEP * np.eye(len(inner))[free]
        return np.array([(self.at(inner + move, e)[1] - self.at(inner - move, e)[1]) / (2 * _STEP) for move in moves])


def _descended(value: _Marginal, begin: np.ndarray, free: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A minimum over the free numbers, and the inverse of the curvature there as BFGS has seen it. It begins again
    where a line search ends it early.
    """
    inner, curvature, before = begin.copy(), np.eye(len(free)), np.inf
    if not free:
        return inner, curvature

    def whole(numbers: np.ndarray) -> np.ndarray:
        placed = begin.copy()
        placed[free] = numbers
        return placed

    for _ in range(_RESTARTS):
        found = optimize.minimize(
            lambda numbers: value(whole(numbers)), inner[free], method="BFGS",
            jac=lambda numbers: value.gradient(whole(numbers), free), options={"gtol": 1e-2, "maxiter": 100},
        )  # fmt: skip
        inner, curvature = whole(found.x), found.hess_inv
        if found.success or before - found.fun < 1e-2:
            break
        before = found.fun
    return inner, curvature


def fit(
    model: Model, counts: Counts, *, start: np.ndarray | None = None, fixed: Mapping[int, float] | None = None
) -> Fit:
    """The parameters of the largest marginal likelihood; the last of them is `SCATTER`.

    Args:
      model: the law.
      counts: its cells.
      start: inner numbers to begin with; by default those of `law.fit`, and a second start.
      fixed: inner numbers that stay, by their place among the parameters.

    Returns:
      A fit whose deviance is that from the law with every row's likeliest shift.

    Raises:
      ValueError: there is no cell.
    """
    value = _Marginal(model, counts)
    if start is not None:
        starts = [np.array(start, float)]
    else:
        # Steepness as fitted without scatter, which may be far too small; and as it is before any count is seen.
        alone = law.fit(model, counts).inner
        starts = [np.append(alone, SCATTER.inner(0.1)), np.append(alone[: len(model.parameters)], value.origin[-4:])]
        starts[1][-1] = SCATTER.inner(0.5)
    for begin in starts:
        for place, number in (fixed or {}).items():
            begin[place] = number
    free = [place for place in range(len(value.origin)) if place not in (fixed or {})]
    found = [_descended(value, begin, free) for begin in starts]
    inner, curvature = min(found, key=lambda each: value(each[0]))
    marginal, penalized, moved = value.at(inner)
    at = law.line(model, value.transition, inner, counts)
    likelihoods = law.log_likelihood(at.logit(counts, moved[counts.rows]), counts)
    deviance = 2 * float((law.saturated(counts) - likelihoods).sum())
    return Fit(model, value.transition, inner, np.linalg.inv(curvature), -marginal, deviance, -penalized)


def foreseen(found: Fit, counts: Counts) -> np.ndarray:
    """The log likelihood of every row's counts, its shift integrated out by quadrature."""
    at = law.line(found.model, found.transition, found.inner, counts)
    sigma = SCATTER.outer(found.inner[-1])
    rows = counts.rows
    nodes = np.linspace(-6, 6, max(_NODES, min(int(12 * sigma * at.slope.max() / _FINE), 20_000)))
    weights = -(nodes**2) / 2
    weights -= special.logsumexp(weights)
    each = law.log_likelihood(at.logit(counts, sigma * nodes[:, None]), counts)  # Nodes x cells.
    table = each @ (rows[:, None] == np.arange(rows.max() + 1))
    return np.asarray(special.logsumexp(table + weights[:, None], axis=0))


def held_out(models: Sequence[Model], counts: Counts, folds: Sequence[np.ndarray]) -> Scores:
    """The models' scores on cells that they were not fitted to.

    Args:
      models: see `law.candidates`.
      counts: all cells.
      folds: masks of what is left out together, whole rows; see `law.leave_out_rows`, `law.leave_out_sizes`.

    Raises:
      ValueError: there is no fold.
    """
    if not len(folds):
        raise ValueError("nothing can be left out: there are too few N")
    gained = []
    for model in models:
        start = fit(model, counts).inner
        scores = [foreseen(fit(model, counts.take(~fold), start=start), counts.take(fold)) for fold in folds]
        gained.append(np.concatenate(scores))
    sums = np.stack(gained)  # Models x rows.
    order = np.argsort(-sums.sum(1))
    difference = sums[order[0]] - sums[order]
    runs = int(sum(counts.runs[fold].sum() for fold in folds))
    count, behind = sums.shape[1], difference.sum(1)
    error = difference.std(axis=1, ddof=1) * np.sqrt(count) if count > 1 else np.full(len(models), np.nan)
    margin = error * (stats.t.ppf(0.975, count - 1) if count > 1 else np.nan)
    names = tuple(models[place].name for place in order)
    return Scores(names, sums[order].sum(1) / runs, behind, error, margin, behind > margin, count, runs)


def intervals(found: Fit, counts: Counts, *, level: float = 0.95) -> tuple[Estimate, ...]:
    """The parameters with their intervals from the profile of the marginal likelihood; see `law.intervals`. Of the
    steepness its power of N alone has one.
    """
    again = functools.partial(fit, found.model)
    return law.intervals(found, counts, level=level, num_resamples=0, again=again, leave_out=("s", "v"))
