"""How long the rest of a sweep takes: replayed sequences of tiles, the last tenth of a long one included."""

import heapq

import numpy as np
import pytest

from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol.runs import network_cost
from sweeps.runtime import progress
from sweeps.runtime import tiles as cutting
from sweeps.runtime.progress import Forecast
from sweeps.study import Variant

# Mean steps of the runs of a convergence map's tiles as they were recorded, 50,000 at most: N = 200, d0 = 4 to 40
# down, d1 = 4 to 40 across.
STEPS = {
    "hidden": [
        [50000, 50000, 50000, 40684, 28333],
        [50000, 38574, 5948, 840, 513],
        [50000, 6351, 239, 126, 114],
        [47653, 4335, 104, 104, 103],
        [45873, 4265, 103, 103, 103],
    ],
    "both": [
        [50000, 50000, 33770, 20124, 3185],
        [50000, 38491, 5918, 865, 587],
        [50000, 14103, 740, 495, 390],
        [47025, 9071, 547, 380, 299],
        [50000, 12990, 463, 355, 272],
    ],
}


def cut(layers, d0, d1, num_seeds, block):
    variants = [Variant(trained_layers=name) for name in layers]
    return cutting.cut(variants, {"d0": tuple(d0), "d1": tuple(d1)}, range(num_seeds), block)


GRID = range(4, 41, 4)
TILES = cut(("hidden", "both"), GRID, GRID, 10, (2, 2))
COST = ConvergenceMap.make().cost


def replay(tiles, cost, timings_of, num_processes):
    """(elapsed, forecast of what is left, what was left) whenever a tile was done, and the tiles in their order."""
    now, running, order, said = 0.0, [], [], []
    forecast = Forecast(tiles, cost, num_processes)
    queue = forecast.order(lambda: now)
    assert forecast.left(now) is None

    def begin():
        if (tile := next(queue, None)) is not None:
            timings = timings_of(tile)
            order.append(tile)
            heapq.heappush(running, (now + sum(timings.values()), len(order), tile, timings))

    for _ in range(num_processes):
        begin()
    while running:
        now, _, tile, timings = heapq.heappop(running)
        forecast.finished(tile, timings)
        begin()
        said.append((now, forecast.left(now)))
    assert len(order) == len(tiles)
    assert set(order) == set(tiles)
    assert said[-1][1] == 0
    return np.array([(at, left, now - at) for at, left in said]), order


def recorded(compilation, noise=0.0):
    """Timings of the recorded map, with so many seconds of compilation a tile."""
    generator = np.random.default_rng(0)
    scatter = lambda: float(np.exp(noise * generator.normal()))

    def timings(tile):
        rows, columns, _ = tile.slices({"d0": GRID, "d1": GRID})
        steps = STEPS[tile.variant.group][rows.start // 2][columns.start // 2]
        return {"compilation": compilation * scatter(), "running": 2.7e-8 * network_cost(tile) * steps * scatter()}

    return timings


def ratios(said):
    """Forecast / truth from a tenth of the way on, up to the last twentieth."""
    at = said[:, 0] / said[-1, 0]
    kept = said[(at >= 0.1) & (at <= 0.95)]
    return kept[:, 1] / kept[:, 2]


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("compilation", [2.0, 10.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_convergence_map_is_forecast_from_a_tenth_of_the_way_on(num_processes, compilation, noise):
    said, _ = replay(TILES, COST, recorded(compilation, noise), num_processes)
    found = ratios(said)
    assert len(found) > 20
    assert found.min() >= 1 / 1.5
    assert found.max() <= 1.5


@pytest.mark.parametrize("num_processes", [1, 4])
def test_runs_that_all_take_every_step(num_processes):
    timings = lambda tile: {"compilation": 1.0, "running": 1e-3 * network_cost(tile)}
    said, _ = replay(cut(("both",), range(2, 61, 2), range(2, 61, 2), 10, (4, 3)), network_cost, timings, num_processes)
    assert np.abs(ratios(said) - 1).max() < 0.1


def test_the_longest_go_first_and_the_first_are_spread():
    _, order = replay(TILES, COST, recorded(2.0), 1)
    assert max(order[0].axes["d0"]) * max(order[0].axes["d1"]) <= 200  # The samples: it takes every step.
    assert {tile.variant.group for tile in order[:2]} == {"hidden", "both"}
    seconds = [sum(recorded(2.0)(tile).values()) for tile in order]
    assert np.mean(seconds[:10]) > 5 * np.mean(seconds[-10:])
    makespan = lambda num_processes: replay(TILES, COST, recorded(2.0), num_processes)[0][-1, 0]
    assert makespan(2) < 1.05 * sum(seconds) / 2


def test_a_tile_that_takes_longer_than_expected_is_not_about_to_end():
    tiles = cut(("both",), (2, 4, 6), (2, 4, 6), 1, (1, 1))
    now = 0.0
    forecast = Forecast(tiles, lambda _: 1.0, 2)
    queue = forecast.order(lambda: now)
    first, _second = next(queue), next(queue)
    now = 1.0
    forecast.finished(first, {"running": 1.0})
    assert forecast.left(now) == pytest.approx(4.0, abs=1)  # 9 tiles of a second for two.
    assert forecast.left(101.0) > 25


def test_what_a_process_does_once_is_not_expected_of_every_tile():
    tiles = cut(("both",), (2, 4, 6), (2, 4, 6), 1, (1, 1))
    forecast = Forecast(tiles, lambda _: 1.0, 1)
    queue = forecast.order(lambda: 0.0)
    forecast.finished(next(queue), {"drawing": 30.0, "compilation": 2.0, "running": 1.0, "measuring": 5.0})
    assert forecast.left(0.0) == pytest.approx(8 * 3.0)
    forecast = Forecast(tiles, lambda _: 1.0, 1)
    forecast.finished(next(forecast.order(lambda: 0.0)), {"measuring": 5.0})
    assert forecast.left(0.0) == pytest.approx(8 * 5.0)


@pytest.mark.parametrize("num_tiles", [20, 5])
def test_at_the_end_the_forecast_is_compared_with_what_it_took(monkeypatch, caplog, num_tiles):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    tiles = cut(("both",), range(1, num_tiles + 1), (2,), 1, (1, 1))
    forecast = Forecast(tiles, lambda _: 1.0, 1)
    bar = progress.Progress(num_tiles, 0, forecast)
    with caplog.at_level("INFO"):
        for index, tile in enumerate(forecast.order(progress.time.monotonic)):
            seconds = 3.0 if index == 0 else 2.0
            clock[0] += seconds
            bar.update(tile, {"running": seconds})
    bar.close()
    # After a tenth is after the second tile of twenty, and after the first of five.
    expected = {20: "took 0:00:41; expected after a tenth: 0:00:5", 5: "took 0:00:11; expected after a tenth: 0:00:15"}
    assert expected[num_tiles] in caplog.text


def test_nothing_to_do():
    forecast = Forecast([], network_cost, 1)
    assert list(forecast.order(lambda: 0.0)) == []
    assert forecast.left(0.0) is None
