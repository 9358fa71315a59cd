"""Linear dependence of the rows of X that a neuron has on its kinks, decided exactly."""

import fractions

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

__all__ = ["basis", "followers", "spans"]

_RANK_TOLERANCE = 1e-9


def basis(X: Float[np.ndarray, "N d0"], kinks: Bool[np.ndarray, "N d1"]) -> Bool[np.ndarray, "N d1"]:
    """Of every neuron's kinks, some with rows that look linearly independent and span the others (nothing is proved
    here).
    """
    chosen = np.zeros_like(kinks)
    for j in np.flatnonzero(kinks.any(axis=0)):
        indices = np.flatnonzero(kinks[:, j])
        norms = np.linalg.norm(X[indices], axis=1)
        indices = indices[norms > 0]
        if len(indices) == 0:
            continue
        _, triangle, order = scipy.linalg.qr((X[indices] / norms[norms > 0, None]).T, mode="economic", pivoting=True)
        rank = int(np.sum(np.abs(np.diag(triangle)) > _RANK_TOLERANCE))
        chosen[indices[order[:rank]], j] = True
    return chosen


def _rank(rows: Float[np.ndarray, "rows d0"]) -> int:
    """The rank over the rationals."""
    left = [[fractions.Fraction(float(entry)) for entry in row] for row in rows]
    rank = 0
    for column in range(rows.shape[1]):
        pivot = next((k for k in range(rank, len(left)) if left[k][column]), None)
        if pivot is None:
            continue
        left[rank], left[pivot] = left[pivot], left[rank]
        for k in range(rank + 1, len(left)):
            if left[k][column]:
                ratio = left[k][column] / left[rank][column]
                left[k] = [a - ratio * b for a, b in zip(left[k], left[rank], strict=True)]
        rank += 1
    return rank


def spans(independent: Float[np.ndarray, "rows d0"], others: Float[np.ndarray, "more d0"]) -> bool:
    """Whether every other row is, exactly, a linear combination of rows that are linearly independent.

    Any d0 independent rows span all; rows that are equal or opposite need no elimination.
    """
    if len(independent) == independent.shape[1]:
        return True
    for row in others:
        if not row.any() or np.any(np.all(independent == row, axis=1) | np.all(independent == -row, axis=1)):
            continue
        if _rank(np.vstack([independent, row])) > len(independent):
            return False
    return True


def followers(
    pattern: Bool[np.ndarray, "N d1"], V: Float[np.ndarray, "d1 d2"], among: Bool[np.ndarray, " d1"]
) -> Bool[np.ndarray, " d1"]:
    """Which neurons have the pattern of an earlier one and an output row that is exactly parallel to its."""
    found = np.zeros(len(among), bool)
    first: dict[bytes, list[list[fractions.Fraction]]] = {}
    for j in np.flatnonzero(among):
        row = [fractions.Fraction(float(entry)) for entry in V[j]]
        leaders = first.setdefault(pattern[:, j].tobytes(), [])
        found[j] = any(
            all(row[a] * other[b] == row[b] * other[a] for a in range(len(row)) for b in range(a)) for other in leaders
        )
        if not found[j]:
            leaders.append(row)
    return found
