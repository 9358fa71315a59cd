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
from typing import NamedTuple

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
_STEPS, _HALVINGS, _NEAR = 60, 4, 1e-9  # Of the search for shifts.
_SIGMAS = (-12.0, 4.0)  # Logarithms.


class _Cells(NamedTuple):
    """Derivatives of every cell's log likelihood l and of Fisher's information i of its row's shift.

    A cell's P is alive times expit(u), u = b (log d1 - log d1* - shift), so that l and i are functions of u, of log b
    and of log alive alone.

    Attributes:
      u: the logit without alive.
      slope: b.
      pull: dl / du.
      bend: d2l / du2.
      alive, alive_pull: dl / d log alive, and d2l / (du d log alive).
      information, in_u, in_alive: i, di / du, and di / d log alive.
    """

    u: np.ndarray
    slope: np.ndarray
    pull: np.ndarray
    bend: np.ndarray
    alive: np.ndarray
    alive_pull: np.ndarray
    information: np.ndarray
    in_u: np.ndarray
    in_alive: np.ndarray


def _cells(at: Line, counts: Counts, shift: np.ndarray) -> _Cells:
    b, runs, successes = at.slope, counts.runs, counts.successes
    u = b * (np.log(counts.d1) - at.center - shift)
    p, q = special.expit(u), special.expit(-u)
    failures = runs - successes
    log_p = np.minimum(special.log_expit(u) + (0.0 if at.log_alive is None else at.log_alive), -law.LEAST)
    odds = np.exp(log_p) / -np.expm1(log_p)  # P / (1 - P)
    r = q * odds  # At most 1.
    pull, information = q * successes - failures * r, runs * b**2 * q * r
    return _Cells(
        u, b, pull, -failures * r * (q + r) - p * pull, successes - failures * odds, -failures * r * (1 + odds),
        information, information * (q + r - 2 * p), runs * b**2 * r * (q + r),
    )  # fmt: skip


def shifts(at: Line, counts: Counts, sigma: float, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest shift of every row, and Fisher's information of it, without that of its own law.

    Args:
      at: the law.
      counts: its cells.
      sigma: the scatter.
      rows: the number of every cell's row; by default `counts.rows`.
    """
    rows = counts.rows if rows is None else rows
    number = rows.max() + 1
    low, high = np.full(number, -_FARTHEST), np.full(number, _FARTHEST)
    e = np.zeros(number)
    for step in range(_STEPS):
        cells = _cells(at, counts, e[rows])
        gradient = _sums(-cells.slope * cells.pull, rows) - e / sigma**2
        low, high = np.where(gradient > 0, e, low), np.where(gradient > 0, high, e)
        # Newton's step where it stays between them.
        moved = e + gradient / (1 / sigma**2 - _sums(cells.slope**2 * cells.bend, rows))
        inside = (moved > low) & (moved < high) & (step >= _HALVINGS)
        moved = np.where(inside, moved, (low + high) / 2)
        near = np.abs(moved - e).max() < _NEAR * sigma
        e = moved
        if near:
            break
    return e, _sums(_cells(at, counts, e[rows]).information, rows)


def _sums(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the cells of every row."""
    return np.bincount(rows, values)


class _Marginal:
    """Minus the log likelihood with the shifts integrated out, by Laplace's approximation, and with the prior."""

    def __init__(self, model: Model, counts: Counts) -> None:
        self.transition = (*law.TRANSITIONS["powers of N and d1*"], SCATTER)
        known = model.parameters + self.transition
        self.origin = np.array([p.inner(p.start) for p in known])
        self._weight = np.array([1 / p.scale**2 for p in known])
        self._model, self._counts, self._rows = model, counts, counts.rows

    def at(self, inner: np.ndarray) -> tuple[float, float, np.ndarray]:
        """The value without and with the prior, and the likeliest shifts."""
        counts = self._counts
        at = law.line(self._model, self.transition, inner, counts)
        sigma = SCATTER.outer(np.clip(inner[-1], *_SIGMAS))
        e, information = shifts(at, counts, sigma, self._rows)
        likelihood = law.log_likelihood(at.logit(counts, e[self._rows]), counts).sum()
        value = float(np.sum((e / sigma) ** 2 + np.log1p(sigma**2 * information)) / 2 - likelihood)
        return value, value + 0.5 * float(self._weight @ (inner - self.origin) ** 2), e

    def gradient(self, inner: np.ndarray, e: np.ndarray) -> np.ndarray:
        """Of the value with the prior; exact, with the shifts' own change.

        Args:
          inner: the numbers.
          e: the likeliest shifts there.
        """
        counts, rows = self._counts, self._rows
        at = law.line(self._model, self.transition, inner, counts)
        variance = SCATTER.outer(np.clip(inner[-1], *_SIGMAS)) ** 2
        cells = _cells(at, counts, e[rows])
        b = cells.slope
        # Of J = e^2 / (2 sigma^2) - l of every row: J_e is 0, and e changes with a number by -J_e,number / J_ee.
        half = variance / (1 + variance * _sums(cells.information, rows)) / 2
        stiff = 1 / variance - _sums(b**2 * cells.bend, rows)
        carried = -half * _sums(-b * cells.in_u, rows) / stiff
        half, moved = half[rows], carried[rows]
        # Derivatives of the value in a cell's log d1*, log b and log alive.
        in_center = b * cells.pull - half * b * cells.in_u - moved * b**2 * cells.bend
        in_slope = (
            -cells.u * cells.pull
            + half * (2 * cells.information + cells.u * cells.in_u)
            + moved * b * (cells.pull + cells.u * cells.bend)
        )
        in_alive = -cells.alive + half * cells.in_alive + moved * b * cells.alive_pull
        found = np.empty(len(inner))
        own = len(self._model.parameters)
        s, w, v = range(own, own + 3)
        found[s] = in_slope.sum()
        found[w] = in_slope @ np.log(counts.num_samples / law.REFERENCE_SIZE)
        found[v] = in_slope @ at.center
        for place in range(own):
            move = np.zeros(len(inner))
            move[place] = _STEP
            above, below = (law.line(self._model, self.transition, inner + way, counts) for way in (move, -move))
            change = (above.center - below.center) / (2 * _STEP)
            found[place] = (in_center + inner[v] * in_slope) @ change
            if above.log_alive is not None and below.log_alive is not None:
                found[place] += in_alive @ ((above.log_alive - below.log_alive) / (2 * _STEP))
        known = _sums(cells.information, rows) * variance
        found[-1] = float(np.sum(known / (1 + known) - e**2 / variance) - 2 * carried @ e / variance)
        return found + self._weight * (inner - self.origin)


def _descended(value: _Marginal, begin: np.ndarray, free: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """A minimum over the free numbers, and the inverse of the curvature there as BFGS has seen it. It begins again
    where a line search ends it early.
    """
    inner = begin.copy()
    if not free:
        return inner, np.zeros((0, 0))

    def whole(numbers: np.ndarray) -> np.ndarray:
        placed = begin.copy()
        placed[free] = numbers
        return placed

    def both(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        _, penalized, e = value.at(whole(numbers))
        return penalized, value.gradient(whole(numbers), e)[free]

    before = np.inf
    for _ in range(_RESTARTS):
        found = optimize.minimize(
            lambda numbers: both(numbers), inner[free], method="BFGS", jac=True,
            options={"gtol": 1e-2, "maxiter": 100},
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
    return _fits(model, counts, [start] if start is not None else _starts(model, counts), fixed)[0]


def _starts(model: Model, counts: Counts) -> list[np.ndarray]:
    """Steepness as fitted without scatter, which may be far too small; and as it is before any count is seen."""
    alone = law.fit(model, counts).inner
    unseen = [p.inner(p.start) for p in law.TRANSITIONS["powers of N and d1*"]]
    return [
        np.append(alone, SCATTER.inner(0.1)),
        np.concatenate([alone[: len(model.parameters)], unseen, [SCATTER.inner(0.5)]]),
    ]


def _fits(
    model: Model,
    counts: Counts,
    starts: Sequence[np.ndarray],
    fixed: Mapping[int, float] | None = None,
) -> list[Fit]:
    """A fit from every start, the likeliest first; arguments as `fit`'s."""
    value = _Marginal(model, counts)
    free = [place for place in range(len(value.origin)) if place not in (fixed or {})]
    found = []
    for start in starts:
        begin = np.array(start, float)
        for place, number in (fixed or {}).items():
            begin[place] = number
        inner, inverse = _descended(value, begin, free)
        marginal, penalized, moved = value.at(inner)
        at = law.line(model, value.transition, inner, counts)
        likelihoods = law.log_likelihood(at.logit(counts, moved[counts.rows]), counts)
        deviance = 2 * float((law.saturated(counts) - likelihoods).sum())
        information = np.linalg.inv((inverse + inverse.T) / 2)
        found.append(Fit(model, value.transition, inner, information, -marginal, deviance, -penalized))
    return sorted(found, key=lambda each: -each.penalized)


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
        # Every optimum of all counts is where one of fewer may be.
        starts = [each.inner for each in _fits(model, counts, _starts(model, counts))]
        scores = []
        for fold in folds:
            found = _fits(model, counts.take(~fold), starts)[0]
            scores.append(foreseen(found, counts.take(fold)))
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
