"""The grid cut into tiles.

A tile is a block of the grid, (d0 block) x (d1 block) x (all seeds). It is the shape bucket (every network in it is
padded to its largest d0 and d1, so one compiled program serves it), the unit of work that a process takes, the chunk that
is written, and what resume skips.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Tile", "cost", "cut", "default_block", "share"]


class Tile(NamedTuple):
    """A block of the grid of one set-up.

    Attributes:
      setup: the name of the set-up.
      d0, d1: the sizes in the block, increasing. A sweep over other axes (`Sweep.axes`) has their values here.
      d0_index, d1_index: where the block starts in the grid.
      num_seeds: runs per cell.
    """

    setup: str
    d0: tuple[float, ...]
    d1: tuple[float, ...]
    d0_index: int
    d1_index: int
    num_seeds: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of d0, number of d1, number of seeds)."""
        return len(self.d0), len(self.d1), self.num_seeds

    @property
    def num_runs(self) -> int:
        """How many networks the tile trains."""
        return len(self.d0) * len(self.d1) * self.num_seeds

    @property
    def padded(self) -> tuple[int, int]:
        """(d0, d1) that every network in the tile is padded to.

        On a CPU the gradient's product is fast when d0 is a multiple of 16, or exceeds one by at most 4 or by 8: what is beyond
        is rounded up, so that more padding costs less time (with 256-bit vector registers; 12 inputs take longer than 16).
        """
        d0 = int(max(self.d0))
        beyond = d0 % 16
        return d0 - beyond + (beyond if beyond <= 4 else 8 if beyond <= 8 else 16), int(max(self.d1))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Where the tile lies in the arrays of its set-up."""
        rows, columns, seeds = self.shape
        return (
            slice(self.d0_index, self.d0_index + rows),
            slice(self.d1_index, self.d1_index + columns),
            slice(0, seeds),
        )

    def runs(self) -> np.ndarray:
        """(d0, d1, seed) of every run: num_runs x 3, in the order of `shape`; whole numbers where all of them are."""
        grid = np.meshgrid(self.d0, self.d1, np.arange(self.num_seeds), indexing="ij")
        rows = np.stack([axis.ravel() for axis in grid], axis=1)
        return rows.astype(np.int32) if (rows == np.rint(rows)).all() else rows


def default_block(d0: Sequence[float], d1: Sequence[float]) -> tuple[int, int]:
    """Cells of a tile: as many as span 8 inputs and 6 neurons, so that padding costs little and few programs are compiled."""

    def step(sizes: Sequence[float]) -> float:
        return min((b - a for a, b in itertools.pairwise(sizes)), default=1)

    return max(1, int(8 // step(d0))), max(1, round(6 / step(d1)))


def cut(
    setups: Sequence[str],
    d0: Sequence[float],
    d1: Sequence[float],
    num_seeds: int,
    block: tuple[int, int],
) -> list[Tile]:
    """The grid cut into blocks of block[0] x block[1] cells, smaller at its upper edges."""
    return [
        Tile(setup, tuple(d0[i : i + block[0]]), tuple(d1[j : j + block[1]]), i, j, num_seeds)
        for setup in setups
        for i in range(0, len(d0), block[0])
        for j in range(0, len(d1), block[1])
    ]


def cost(tile: Tile) -> float:
    """A rough measure of the tile's longest possible time: runs x (products + a constant per neuron and per step).

    Only the order of tiles depends on it: the longest go first, so that the processes end together.
    """
    padded_d0, padded_d1 = tile.padded
    return tile.num_runs * ((padded_d0 + 20) * padded_d1 + 200)


def share(
    tiles: Sequence[Tile], shard_index: int, shard_count: int, cost: Callable[[Tile], float] = cost
) -> list[Tile]:
    """The tiles of one shard, longest first: every shard_count-th of them in the order of their cost."""
    return sorted(tiles, key=cost, reverse=True)[shard_index::shard_count]
