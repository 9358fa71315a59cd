"""Tiles cover the grid exactly, however it is cut and shared."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sweeps import plan

SIZES = st.lists(st.integers(1, 80), min_size=1, max_size=12, unique=True).map(sorted).map(tuple)


@given(SIZES, SIZES, st.integers(1, 5), st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 4))
def test_every_run_is_in_one_tile_of_one_shard(d0, d1, num_seeds, block, shard_count):
    tiles = plan.cut(("hidden", "both"), d0, d1, num_seeds, block)
    shards = [plan.share(tiles, index, shard_count) for index in range(shard_count)]
    assert sorted(tile for shard in shards for tile in shard) == sorted(tiles)
    seen = {layers: np.zeros((len(d0), len(d1), num_seeds), int) for layers in ("hidden", "both")}
    for tile in tiles:
        seen[tile.setup][tile.slices] += 1
        runs = tile.runs().reshape(*tile.shape, 3)
        rows, columns, seeds = tile.slices
        for index in np.ndindex(*tile.shape):
            expected = (d0[rows.start + index[0]], d1[columns.start + index[1]], seeds.start + index[2])
            assert tuple(runs[index]) == expected
        assert tile.padded[0] >= max(tile.d0)
        assert tile.padded[1] == max(tile.d1)
        assert tile.num_runs == len(tile.runs())
    assert all((counts == 1).all() for counts in seen.values())


def test_padding_fills_vector_registers():
    padded = [plan.Tile("both", (d0,), (3,), 0, 0, 1).padded for d0 in (1, 4, 5, 8, 9, 20, 21, 50, 60)]
    assert padded == [(d0, 3) for d0 in (1, 4, 8, 8, 16, 20, 24, 50, 64)]


def test_longest_tiles_go_first():
    tiles = plan.share(plan.cut(("hidden",), range(2, 61, 2), range(2, 61, 2), 10, (4, 3)), 0, 1)
    assert tiles[0].padded == (56, 60)  # The last row of blocks is thinner.
    assert [plan.cost(tile) for tile in tiles] == sorted(map(plan.cost, tiles), reverse=True)


def test_default_block_spans_8_inputs_and_6_neurons():
    grid = {step: range(step, 20 * step, step) for step in (1, 2, 4, 10)}
    assert [plan.default_block(grid[step], grid[step]) for step in (1, 2, 4, 10)] == [(8, 6), (4, 3), (2, 2), (1, 1)]
    assert plan.default_block((7,), (3, 30)) == (8, 1)


def test_runs_keep_values_that_are_no_sizes():
    rows = plan.Tile("hidden", (1e-4, 0.5), (3,), 0, 0, 2).runs()
    np.testing.assert_array_equal(rows, [[1e-4, 3, 0], [1e-4, 3, 1], [0.5, 3, 0], [0.5, 3, 1]])
    assert plan.Tile("hidden", (2, 4), (3,), 0, 0, 2).runs().dtype == np.int32
