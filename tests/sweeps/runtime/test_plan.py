"""Tiles cover the grid exactly, however it is cut and shared."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.launchers import sized

from sweeps.protocol.draw import networks, padded
from sweeps.protocol.runs import network_cost
from sweeps.runtime import tiles as plan
from sweeps.study import Tile, Variant

SIXTY = tuple(range(2, 61, 2))
SIZES = st.lists(st.integers(1, 80), min_size=1, max_size=12, unique=True).map(sorted).map(tuple)


@given(SIZES, SIZES, st.integers(1, 5), st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(1, 4))
def test_every_run_is_in_one_tile_of_one_shard(d0, d1, num_seeds, block, shard_count):
    variants, axes = (Variant("hidden"), Variant("both")), {"d0": d0, "d1": d1}
    tiles = plan.cut(variants, axes, range(num_seeds), block)
    shards = [plan.share(tiles, index, shard_count, network_cost) for index in range(shard_count)]
    assert {tile for shard in shards for tile in shard} == set(tiles)
    assert sum(map(len, shards)) == len(tiles)
    seen = {variant: np.zeros((len(d0), len(d1), num_seeds), int) for variant in variants}
    for tile in tiles:
        rows, columns, seeds = tile.slices(axes)
        seen[tile.variant][rows, columns, seeds] += 1
        runs = networks(tile).reshape(*tile.shape, 3)
        for index in np.ndindex(*tile.shape):
            expected = (d0[rows.start + index[0]], d1[columns.start + index[1]], seeds.start + index[2])
            assert tuple(runs[index]) == expected
        assert padded(tile)[0] >= max(tile.axes["d0"])
        assert padded(tile)[1] == max(tile.axes["d1"])
        assert tile.num_runs == len(networks(tile))
    assert all((counts == 1).all() for counts in seen.values())


def test_padding_fills_vector_registers():
    sizes = [padded(sized("both", (d0,), (3,), 1)) for d0 in (1, 4, 5, 8, 9, 20, 21, 50, 60)]
    assert sizes == [(d0, 3) for d0 in (1, 4, 8, 8, 16, 20, 32, 50, 64)]


def test_longest_tiles_go_first():
    tiles = plan.share(plan.cut([Variant("hidden")], {"d0": SIXTY, "d1": SIXTY}, range(10), (4, 3)), 0, 1, network_cost)
    assert padded(tiles[0]) == (64, 60)  # The last row of blocks is thinner.
    assert [network_cost(tile) for tile in tiles] == sorted(map(network_cost, tiles), reverse=True)


def test_default_block_spans_8_inputs_and_6_neurons():
    grid = {step: range(step, 20 * step, step) for step in (1, 2, 4, 10)}
    assert [plan.default_block(grid[step], grid[step]) for step in (1, 2, 4, 10)] == [(8, 6), (4, 3), (2, 2), (1, 1)]
    assert plan.default_block((7,), (3, 30)) == (8, 1)


def test_cells_keep_their_values_and_types():
    tile = Tile(Variant(), {"rate": (1e-4, 0.5), "batch_size": (3,)}, range(2))
    assert list(tile.cells()) == [{"rate": 1e-4, "batch_size": 3}, {"rate": 0.5, "batch_size": 3}]
    assert isinstance(next(tile.cells())["batch_size"], int)
