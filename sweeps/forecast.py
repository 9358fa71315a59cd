"""Which tile is next, and how long the rest takes.

A tile takes what compiling it takes, and its work: its cost, an estimate from before the sweep, times a rate that is
learned from the finished tiles near it. Tiles differ by their steps above all: where networks are too small to fit
their data every run takes every step. The longest go first, so that the processes end together and what is learned
first is what most of the time goes into; in the first tenth of the tiles every second one is far from all before it,
so that the rate is known everywhere.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sweeps.engine import Timings
from sweeps.plan import Tile

__all__ = ["Forecast"]

# Of one tile, how many finished ones near it say how fast it is.
_NEIGHBOURS = 4
# A tile that was expected to be done takes so many times what it has taken.
_OVERDUE = 1.25


class Forecast:
    """What a sweep has done and has to do; times are seconds of any clock.

    Args:
      tiles: what is to be done.
      cost: of a tile, in any unit.
      num_processes: tiles in hand at once.
    """

    def __init__(self, tiles: Sequence[Tile], cost: Callable[[Tile], float], num_processes: int) -> None:
        self._tiles = list(tiles)
        self._index = {tile: index for index, tile in enumerate(self._tiles)}
        self._cost = np.array([cost(tile) for tile in self._tiles], float)
        self._num_processes = num_processes
        setups = {setup: number for number, setup in enumerate(dict.fromkeys(tile.setup for tile in self._tiles))}
        places = np.array([(setups[t.setup], t.d0_index, t.d1_index) for t in self._tiles], float).reshape(-1, 3)
        # Each axis of the grid is as long as the way from one set-up to the next.
        places[:, 1:] /= np.maximum(places[:, 1:].max(axis=0, initial=0), 1)
        self._places = places
        self._distance = np.full(len(self._tiles), np.inf)  # To the nearest tile that was begun.
        self._waiting = np.ones(len(self._tiles), bool)
        self._begun: dict[int, float] = {}
        self._fixed: list[float] = []
        self._work: dict[int, float] = {}  # Seconds of the finished ones, without what is fixed.

    def order(self, clock: Callable[[], float]) -> Iterator[Tile]:
        """The tiles, each chosen when it is asked for."""
        for count in range(len(self._tiles)):
            explores = count % 2 == 1 and count < max(len(self._tiles) / 10, 2 * self._num_processes)
            rank = self._distance if explores else self._work_of_all()
            chosen = int(np.argmax(np.where(self._waiting, rank, -np.inf)))
            self._waiting[chosen] = False
            self._distance = np.minimum(self._distance, self._away(chosen))
            self._begun[chosen] = clock()
            yield self._tiles[chosen]

    def finished(self, tile: Tile, timings: Timings) -> None:
        """A tile is done, and took so long."""
        index = self._index[tile]
        del self._begun[index]
        # What else there is, a process does once: its first tile compiles the programs that draw and measure.
        self._fixed.append(timings.get("compilation", 0.0))
        self._work[index] = timings.get("running", sum(timings.values()))

    def left(self, now: float) -> float | None:
        """Seconds until everything is done; None before the first tile is."""
        if not self._work:
            return None
        fixed = float(np.median(self._fixed[-20:]))
        seconds = fixed + self._work_of_all()
        age = {index: now - begun for index, begun in self._begun.items()}
        # What is in hand for longer than was expected takes longer still.
        ends = [(seconds[i] if age[i] < seconds[i] else _OVERDUE * age[i]) - age[i] for i in age]
        ends += [0.0] * (self._num_processes - len(ends))
        heapq.heapify(ends)
        for more in np.sort(seconds[self._waiting])[::-1]:
            heapq.heapreplace(ends, ends[0] + more)
        return float(max(ends))

    def _away(self, index: int) -> np.ndarray:
        return np.sqrt(((self._places - self._places[index]) ** 2).sum(axis=1))

    def _work_of_all(self) -> np.ndarray:
        """Of every tile the seconds of its work, as far as they are known; in any unit before the first is done."""
        if not self._work:
            return self._cost
        where = np.fromiter(self._work, int)
        rates = np.fromiter(self._work.values(), float) / self._cost[where]
        count = min(_NEIGHBOURS, len(where))
        # Loaded here, because worker processes import this module.
        from scipy.spatial import KDTree

        away, near = KDTree(self._places[where]).query(self._places, k=count)
        weights = 1 / (away.reshape(-1, count) ** 2 + 1e-3)
        return self._cost * (weights * rates[near.reshape(-1, count)]).sum(axis=1) / weights.sum(axis=1)
