"""Which widths of a row have the next runs: a bracket of the boundary by doubling, then the rule of --refine."""

import math
from collections.abc import Sequence

import numpy as np

from sweeps import refinement

__all__ = ["CLEAR", "ROUND", "VERSION", "first_width", "largest_width", "next_widths", "widths"]

# Of the rule: another is given whenever the same counts have other next runs.
VERSION = 2
# Groups of runs that a row has in a round, once its boundary is bracketed.
ROUND = 2
# The share of a width's runs that makes it one side of a bracket.
CLEAR = 0.75


def widths(largest: int, per_doubling: int) -> tuple[int, ...]:
    """Even widths from 2 on, so many a doubling as far as they are distinct; the last is `largest` or just above."""
    sizes: list[int] = []
    for power in range(per_doubling * 64):
        size = 2 * round(2 ** (power / per_doubling))
        if not sizes or size > sizes[-1]:
            sizes.append(size)
        if size >= largest:
            break
    return tuple(sizes)


def first_width(num_samples: int, d0: int) -> float:
    """Where the boundary is looked for first: about where it is at N = 50 (docs/refinement.md)."""
    return max(1.3 * num_samples / d0, math.log2(num_samples) + 1)


def largest_width(num_samples: int, d0: int) -> float:
    """Where it is not looked for any more: six times as wide."""
    return 6 * max(first_width(num_samples, d0), 16)


def next_widths(
    sizes: Sequence[int], successes: np.ndarray, runs: np.ndarray, unit: int, first: float, largest: float
) -> list[int]:
    """Places of the widths of one row that have the next `unit` runs each; none when no other tells more.

    The first is nearest to `first`. From there the width is doubled, at last to the widest that is at most `largest`,
    until `CLEAR` of the runs succeed, and halved until as many fail, in every sense of success: with both sides known a
    boundary has an interval that ends. Then `ROUND` groups go where they tell most of the boundaries among the widths
    tried, by `refinement.allocate`.

    Args:
      sizes: the widths, increasing.
      successes: counts, a row for every sense of success, at most `ROUND`.
      runs: counts, a width each.
      unit: runs of a group.
      first, largest: see `first_width` and `largest_width`.
    """
    logs = np.log(np.asarray(sizes, float))
    nearest = lambda size: int(np.argmin(np.abs(logs - math.log(size))))
    tried = np.flatnonzero(runs)
    if not len(tried):
        return [nearest(first)]
    low, high = tried[0], tried[-1]
    succeeds = (successes >= CLEAR * runs)[:, tried]
    fails = (successes <= (1 - CLEAR) * runs)[:, tried]
    beyond = set()
    widest = int(np.searchsorted(sizes, largest, side="right")) - 1
    if not succeeds.any(axis=1).all() and (wider := min(nearest(2 * sizes[high]), widest)) > high:
        beyond.add(wider)
    if not fails.any(axis=1).all() and (narrower := nearest(sizes[low] / 2)) < low:
        beyond.add(narrower)
    if beyond:
        return sorted(beyond)
    part = slice(low, high + 1)
    if high == low:
        return []
    chosen = []
    for counts, share in zip(successes, np.array_split(np.arange(ROUND), len(successes)), strict=True):
        found = refinement.allocate(sizes[part], counts[None, part], runs[None, part], len(share), unit)
        chosen += [int(low) + cell for _, cell in found]
    return chosen
