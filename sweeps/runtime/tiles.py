"""The grid cut into tiles, and dealt out to shards."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sweeps.study import Tile, Variant

__all__ = ["cut", "default_block", "share"]


def default_block(d0: Sequence[float], d1: Sequence[float]) -> tuple[int, int]:
    """Cells of a tile of networks: as many as span 8 inputs and 6 neurons, so that padding costs little and few
    programs are compiled.
    """

    def step(sizes: Sequence[float]) -> float:
        return min((b - a for a, b in itertools.pairwise(sizes)), default=1)

    return max(1, int(8 // step(d0))), max(1, round(6 / step(d1)))


def cut(
    variants: Sequence[Variant], axes: Mapping[str, Sequence[Any]], seeds: range, block: Sequence[int]
) -> list[Tile]:
    """The grid cut into blocks, smaller at its upper edges.

    Args:
      variants: the variants.
      axes: name to values.
      seeds: the runs of a cell.
      block: cells of a tile along every axis; a further number blocks the seeds.
    """
    block = [*block, *[len(seeds) or 1] * (len(axes) + 1 - len(block))]
    blocks: list[list[Any]] = [
        [values[start : start + size] for start in range(0, len(values), size)]
        for values, size in zip([*map(tuple, axes.values()), seeds], block, strict=True)
    ]
    return [
        Tile(variant, dict(zip(axes, parts, strict=True)), own_seeds)
        for variant in variants
        for *parts, own_seeds in itertools.product(*blocks)
    ]


def share(tiles: Sequence[Tile], shard_index: int, shard_count: int, cost: Callable[[Tile], float]) -> list[Tile]:
    """The tiles of one shard, longest first: every shard_count-th of them in the order of their cost."""
    return sorted(tiles, key=cost, reverse=True)[shard_index::shard_count]
