"""Laws of the boundary that hold up to a scatter of the rows.

No law is exact, and where many runs resolve a steep transition a law that is wrong by three percent foresees single
cells with probabilities near 0, so that its score is that of its worst cell. Here the boundary of every row (N, d0) is

    log d1* = the law's + sigma times an independent standard normal number,

and sigma is fitted with the rest: it is about the relative error of the law. Likelihoods are integrals over these
numbers, by quadrature: where samples may be dead a row may have several likely shifts. Intervals of a law's parameters
count its scatter.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from sweeps.boundary import law
from sweeps.boundary.law import Counts, Estimate, Fit, Line, Model, Parameter, Scores

__all__ = ["SCATTER", "fit", "foreseen", "held_out", "intervals", "scored"]

SCATTER = Parameter("sigma", 0.1, scale=2.0)
_SIGMAS = (-12.0, 4.0)  # Logarithms that are told apart.
# Of a row's shift: nodes over 12 sigma, and at a cell's width plus these multiples of 1 / b, where the likelihood is
# looked for; what it must have there of its greatest value, as a logarithm; and nodes where it is found.
_COARSE, _MULTIPLES, _LEAST_SHARE, _FINE = 49, np.array([-5.0, -3, -2, -1, 0, 1, 2, 3, 5]), -20.0, 121
_STEP, _RESTARTS = 1e-4, 5


class _Integral(NamedTuple):
    """Over the shift of every row.

    Attributes:
      shifts: nodes, rows x nodes.
      logits: u = b (log d1 - log d1* - shift), cells x nodes.
      likelihoods: log of every cell's, cells x nodes.
      log_integrals: of every row.
      weights: of a node given the row's counts, rows x nodes, sum 1.
    """

    shifts: np.ndarray
    logits: np.ndarray
    likelihoods: np.ndarray
    log_integrals: np.ndarray
    weights: np.ndarray


def _integral(at: Line, counts: Counts, rows: np.ndarray, sigma: float) -> _Integral:
    nodes = _nodes(at, counts, rows, sigma)
    logits, each = _likelihoods(at, counts, nodes[rows])
    ends = np.concatenate([nodes[:, :1], (nodes[:, 1:] + nodes[:, :-1]) / 2, nodes[:, -1:]], axis=1)
    steps = np.maximum(np.diff(ends, axis=1) / sigma, 1e-300)
    together = _sums(each, rows) - (nodes / sigma) ** 2 / 2 + np.log(steps / np.sqrt(2 * np.pi))
    totals = special.logsumexp(together, axis=1)
    return _Integral(nodes, logits, each, totals, np.exp(together - totals[:, None]))


def _likelihoods(at: Line, counts: Counts, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits without alive and log likelihoods of every cell at its shifts, cells x nodes."""
    u = at.slope[:, None] * ((np.log(counts.d1) - at.center)[:, None] - shift)
    eta = law.logit_of(u, None if at.log_alive is None else at.log_alive[:, None])
    return u, counts.successes[:, None] * eta - counts.runs[:, None] * np.logaddexp(0.0, eta)


def _nodes(at: Line, counts: Counts, rows: np.ndarray, sigma: float) -> np.ndarray:
    """Of every row's shift, where its likelihood times its law is not negligible; rows x nodes, ascending."""
    number = rows.max() + 1
    steps = (np.log(counts.d1) - at.center)[:, None] - _MULTIPLES / at.slope[:, None]
    order = np.argsort(rows, kind="stable")
    place = np.empty(len(rows), int)  # Of a cell within its row.
    place[order] = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    own = np.zeros((number, place.max() + 1, len(_MULTIPLES)))
    own[rows, place] = steps
    even = np.broadcast_to(sigma * np.linspace(-6, 6, _COARSE), (number, _COARSE))
    coarse = np.concatenate([even, np.clip(own.reshape(number, -1), -6 * sigma, 6 * sigma)], axis=1)
    coarse.sort(axis=1)
    density = _sums(_likelihoods(at, counts, coarse[rows])[1], rows) - (coarse / sigma) ** 2 / 2
    kept = density > density.max(axis=1, keepdims=True) + _LEAST_SHARE
    last = coarse.shape[1] - 1
    first, final = np.maximum(kept.argmax(1) - 1, 0), np.minimum(last - kept[:, ::-1].argmax(1) + 1, last)
    low, high = (coarse[np.arange(number), end] for end in (first, final))
    shares = np.linspace(0, 1, _FINE)
    nodes = low[:, None] + (high - low)[:, None] * shares
    # What is negligible in between has no nodes: as many in every other interval.
    parts = np.cumsum(np.pad((kept[:, 1:] | kept[:, :-1]).astype(float), ((0, 0), (1, 0))), axis=1)
    for row in np.flatnonzero(parts[:, -1] < final - first):
        nodes[row] = np.interp(shares * parts[row, -1], parts[row], coarse[row])
    return nodes


def _sums(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of the cells of every row; cells x nodes to rows x nodes."""
    belongs = np.zeros((rows.max() + 1, len(rows)))
    belongs[rows, np.arange(len(rows))] = 1.0
    return belongs @ values


class _Marginal:
    """Minus the log likelihood with the shifts integrated out, and with the prior."""

    def __init__(self, model: Model, counts: Counts) -> None:
        self.transition = (*law.TRANSITIONS["powers of N and d1*"], SCATTER)
        known = model.parameters + self.transition
        self.origin = np.array([p.inner(p.start) for p in known])
        self._weight = np.array([1 / p.scale**2 for p in known])
        self._model, self._counts, self._rows = model, counts, counts.rows

    def integral(self, inner: np.ndarray) -> tuple[Line, _Integral]:
        """The law at the numbers, and the integral over every row's shift."""
        at = law.line(self._model, self.transition, inner, self._counts)
        sigma = SCATTER.outer(np.clip(inner[-1], *_SIGMAS))
        return at, _integral(at, self._counts, self._rows, sigma)

    def penalty(self, inner: np.ndarray) -> float:
        """Of the prior."""
        return 0.5 * float(self._weight @ (inner - self.origin) ** 2)

    def __call__(self, inner: np.ndarray) -> tuple[float, np.ndarray]:
        """The value, and its gradient: means, given the counts, of the derivatives at every shift."""
        counts, rows = self._counts, self._rows
        at, found = self.integral(inner)
        weights = found.weights[rows]
        p, q = special.expit(found.logits), special.expit(-found.logits)
        successes, failures = counts.successes[:, None], (counts.runs - counts.successes)[:, None]
        if at.log_alive is None:
            pull = successes * q - failures * p
            in_alive = None
        else:
            log_p = np.minimum(at.log_alive[:, None] + special.log_expit(found.logits), -law.LEAST)
            odds = np.exp(log_p) / -np.expm1(log_p)  # P / (1 - P)
            pull = q * successes - failures * (q * odds)
            in_alive = (weights * (successes - failures * odds)).sum(1)
        # Of the log likelihood in a cell's log d1* and log b.
        in_center = -at.slope * (weights * pull).sum(1)
        in_slope = (weights * pull * found.logits).sum(1)
        own = len(self._model.parameters)
        gradient = np.empty(len(inner))
        s, w, v = range(own, own + 3)
        gradient[s] = in_slope.sum()
        gradient[w] = in_slope @ np.log(counts.num_samples / law.REFERENCE_SIZE)
        gradient[v] = in_slope @ at.center
        for place in range(own):
            move = np.zeros(len(inner))
            move[place] = _STEP
            above, below = (law.line(self._model, self.transition, inner + way, counts) for way in (move, -move))
            change = (above.center - below.center) / (2 * _STEP)
            gradient[place] = (in_center + inner[v] * in_slope) @ change
            if in_alive is not None and above.log_alive is not None and below.log_alive is not None:
                gradient[place] += in_alive @ ((above.log_alive - below.log_alive) / (2 * _STEP))
        gradient[-1] = -(at.slope[:, None] * weights * pull * found.shifts[rows]).sum()  # At the same shift over sigma.
        value = -float(found.log_integrals.sum()) + self.penalty(inner)
        return value, -gradient + self._weight * (inner - self.origin)


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
        found, gradient = value(whole(numbers))
        return found, gradient[free]

    before = np.inf
    for _ in range(_RESTARTS):
        found = optimize.minimize(
            both, inner[free], method="BFGS", jac=True, options={"gtol": 1e-2, "maxiter": 100}
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
        whole = value.integral(inner)[1]
        # The likeliest node of every row.
        best = whole.weights.argmax(1)[counts.rows]
        likelihoods = whole.likelihoods[np.arange(len(best)), best]
        deviance = 2 * float((law.saturated(counts) - likelihoods).sum())
        information = np.linalg.inv((inverse + inverse.T) / 2)
        marginal = float(whole.log_integrals.sum())
        found.append(
            Fit(model, value.transition, inner, information, marginal, deviance, marginal - value.penalty(inner))
        )
    return sorted(found, key=lambda each: -each.penalized)


def foreseen(found: Fit, counts: Counts) -> np.ndarray:
    """The log likelihood of every row's counts, its shift integrated out."""
    at = law.line(found.model, found.transition, found.inner, counts)
    sigma = SCATTER.outer(np.clip(found.inner[-1], *_SIGMAS))
    return _integral(at, counts, counts.rows, sigma).log_integrals


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
    return _scores(models, np.stack(gained), int(sum(counts.runs[fold].sum() for fold in folds)))


def scored(fits: Sequence[Fit], counts: Counts) -> Scores:
    """The scores of fits on counts that they have not seen."""
    gained = np.stack([foreseen(each, counts) for each in fits])
    return _scores([each.model for each in fits], gained, int(counts.runs.sum()))


def _scores(models: Sequence[Model], gained: np.ndarray, runs: int) -> Scores:
    """From log likelihoods, models x rows."""
    order = np.argsort(-gained.sum(1))
    difference = gained[order[0]] - gained[order]
    count, behind = gained.shape[1], difference.sum(1)
    error = difference.std(axis=1, ddof=1) * np.sqrt(count) if count > 1 else np.full(len(models), np.nan)
    margin = error * (stats.t.ppf(0.975, count - 1) if count > 1 else np.nan)
    names = tuple(models[place].name for place in order)
    return Scores(names, gained[order].sum(1) / runs, behind, error, margin, behind > margin, count, runs)


def intervals(found: Fit, counts: Counts, *, level: float = 0.95) -> tuple[Estimate, ...]:
    """The parameters with their intervals from the profile of the marginal likelihood; see `law.intervals`. Of the
    steepness its power of N alone has one.
    """
    again = functools.partial(fit, found.model)
    return law.intervals(found, counts, level=level, num_resamples=0, again=again, leave_out=("s", "v"))
