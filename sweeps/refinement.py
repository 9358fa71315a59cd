"""Where further runs tell most about the boundary at which a probability is 1/2: the rule of --refine.

A row of cells shares a boundary, the size x at which a logistic curve in z = log x passes 1/2 (`sweeps.logistic`). With
Fisher information I = sum over the cells of n p (1 - p) (1, z) (1, z)^T for intercept and slope b, the boundary z* has,
by the delta method, the variance v = u^T I^-1 u / b^2, u = (1, z*). Another m runs at z, of weight w = m p (1 - p),
lower it by

    w (u^T I^-1 q)^2 / (1 + w q^T I^-1 q) / b^2,    q = (1, z)

(Sherman and Morrison). The next runs go to the cell where they shorten an interval most, that is where the fall of
sqrt(v) is largest; then I is updated as if they had been made, and so on until the round is full. This is the
sequential c-optimal design for the median of a quantal response (C. F. J. Wu, Efficient sequential designs with binary
data, Journal of the American Statistical Association 80, 1985), with the lengths of all rows' intervals added up. Since
p (1 - p) is largest at 1/2 and falls off exponentially, runs go where the probability is near 1/2, in the rows whose
boundary is known least, and none to where every run succeeds or fails.

A row whose boundary is not inside its grid has runs for its end that is nearest, as long as that cell's interval holds
1/2; these come first. After that it has none: no run in the grid would find it.
"""

from collections.abc import Sequence

import numpy as np

from sweeps import logistic

__all__ = ["allocate"]

# Of the normal law, for Wilson's interval of 95 percent.
_QUANTILE = 1.959964


def _is_open(successes: float, runs: float) -> bool:
    """Whether Wilson's interval of the probability holds 1/2; without runs it does."""
    return (successes - runs / 2) ** 2 <= _QUANTILE**2 * runs / 4


def _inner(parts: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(1, a) I^-1 (1, b)^T, of the three entries of I."""
    one, cross, square = parts[..., None]
    return (square - cross * (a + b) + one * a * b) / (one * square - cross**2)


def allocate(
    sizes: Sequence[float] | np.ndarray, successes: np.ndarray, runs: np.ndarray, units: int, unit: int
) -> list[tuple[int, int]]:
    """The cells that have the next runs, in the order in which they are chosen.

    Args:
      sizes: positive, at least two, increasing.
      successes, runs: counts so far, rows x sizes.
      units: how many choices.
      unit: runs that a chosen cell has.

    Returns:
      (row, index of the size), at most `units` of them; fewer when nothing is left to be known.

    Raises:
      ValueError: see `sweeps.logistic.fit`.
    """
    successes, runs = np.asarray(successes, float), np.asarray(runs, float)
    found = logistic.fit(sizes, successes, runs)
    z = (np.log(np.asarray(sizes, float)) - found.center) / found.scale
    boundary = (found.log_boundary - found.center) / found.scale
    with np.errstate(invalid="ignore"):
        inside = (found.slope > 0) & (np.abs(boundary) <= 1)
    mixed = (successes.sum(1) > 0) & (successes.sum(1) < runs.sum(1))
    inside &= mixed

    chosen: list[tuple[int, int]] = []
    for row in np.flatnonzero(~inside):
        end = len(z) - 1 if successes[row].sum() <= runs[row].sum() / 2 else 0
        count, share = runs[row, end], successes[row, end] / max(runs[row, end], 1)
        while len(chosen) < units and _is_open(share * count, count):
            chosen.append((int(row), end))
            count += unit
            if not runs[row, end] or 0 < share < 1:
                break  # How it goes on is not to be foreseen.
    rows = np.flatnonzero(inside)
    if not len(rows):
        return chosen

    eta = found.intercept[rows, None] + found.slope[rows, None] * z
    weight = logistic.weights(eta) * unit
    parts = np.stack(logistic.information(eta, z, runs[rows]))
    powers = np.stack([np.ones_like(z), z, z**2])
    target, slope = boundary[rows, None], found.slope[rows, None]
    while len(chosen) < units:
        variance = _inner(parts, target, target)
        fall = weight * _inner(parts, target, z) ** 2 / (1 + weight * _inner(parts, z, z))
        gain = (np.sqrt(variance) - np.sqrt(np.maximum(variance - fall, 0))) / slope
        row, cell = np.unravel_index(int(np.argmax(gain)), gain.shape)
        chosen.append((int(rows[row]), int(cell)))
        parts[:, row] += weight[row, cell] * powers[:, cell]
    return chosen
