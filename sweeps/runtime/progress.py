"""How far a study is, which tile is next, how long the rest takes, and how it is asked to stop.

A tile takes what compiling it takes, and its work: its cost, an estimate from before the sweep, times a rate that is
learned from the finished tiles near it. Tiles differ by their steps above all: where networks are too small to fit
their data every run takes every step. The longest go first, so that the processes end together and what is learned
first is what most of the time goes into; in the first tenth of the tiles every second one is far from all before it,
so that the rate is known everywhere.
"""

import heapq
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from sweeps.runtime.processes import GRACE
from sweeps.study import Tile, Timings

__all__ = ["Forecast", "Progress", "Stopping", "duration"]

# Of one tile, how many finished ones near it say how fast it is.
_NEIGHBOURS = 4
# A tile that was expected to be done takes so many times what it has taken.
_OVERDUE = 1.25
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _places(tiles: Sequence[Tile]) -> np.ndarray:
    """Where the tiles lie, a row each: their variant, and their rank along every axis; an axis of the grid is as long
    as the way from one variant to the next.
    """
    corners = [(tile.variant, *(values[0] for values in tile.axes.values()), tile.seeds.start) for tile in tiles]
    columns = []
    for index, column in enumerate(zip(*corners, strict=True)):
        ranks = {value: rank for rank, value in enumerate(dict.fromkeys(column) if index == 0 else sorted(set(column)))}
        places = np.array([ranks[value] for value in column], float)
        columns.append(places if index == 0 else places / max(len(ranks) - 1, 1))
    return np.stack(columns, axis=1) if columns else np.zeros((0, 1))


class Forecast:
    """What a sweep has done and has to do; times are seconds of any clock.

    Args:
      tiles: what is to be done.
      cost: the cost of a tile, in any unit.
      num_processes: tiles in hand at once.
    """

    def __init__(self, tiles: Sequence[Tile], cost: Callable[[Tile], float], num_processes: int) -> None:
        self._tiles = list(tiles)
        self._index = {tile: index for index, tile in enumerate(self._tiles)}
        self._cost = np.array([cost(tile) for tile in self._tiles], float)
        self._num_processes = num_processes
        self._places = _places(self._tiles)
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
            index = int(np.argmax(np.where(self._waiting, rank, -np.inf)))
            self._waiting[index] = False
            self._distance = np.minimum(self._distance, self._away(index))
            self._begun[index] = clock()
            yield self._tiles[index]

    def finished(self, tile: Tile, timings: Timings) -> None:
        """A tile is done, and took so long."""
        index = self._index[tile]
        del self._begun[index]
        # What else there is, a process does once: its first tile compiles the programs that draw and measure.
        self._fixed.append(timings.get("compilation", 0.0))
        self._work[index] = timings.get("running", sum(timings.values()))

    def dropped(self, tile: Tile) -> None:
        """A tile has failed: nothing is learned from it."""
        del self._begun[self._index[tile]]

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


class Progress:
    """A bar on a terminal, lines in a log otherwise: tiles, runs a second, and how long the rest takes.

    Args:
      num_tiles: all of them.
      num_done: those that were done before.
      forecast: the forecast for the others.
    """

    def __init__(self, num_tiles: int, num_done: int, forecast: Forecast) -> None:
        self._tiles, self._done, self._runs = num_tiles, num_done, 0
        self._forecast = forecast
        self._begun = self._logged = time.monotonic()
        self._left: tuple[float, float | None] = (-math.inf, None)
        self._to_do = num_tiles - num_done
        self._expected: float | None = None
        self._bar = tqdm(
            total=num_tiles,
            initial=num_done,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {postfix}",  # tqdm's own clock is one that may jump.
            dynamic_ncols=True,
        )

    def update(self, tile: Tile, timings: Timings) -> None:
        """One more tile is done."""
        self._done += 1
        self._runs += tile.num_runs
        self._forecast.finished(tile, timings)
        now = time.monotonic()
        done = self._to_do - (self._tiles - self._done)
        if (
            self._expected is None
            and done < self._to_do <= 10 * done
            and (left := self._forecast.left(now)) is not None
        ):
            self._expected = now - self._begun + left
        self._bar.update()
        self.tick(last=self._done == self._tiles)

    def failed(self, tile: Tile) -> None:
        """One tile cannot be done."""
        self._forecast.dropped(tile)

    @property
    def left(self) -> float | None:
        """Seconds until everything is done, as far as is known; asked anew once a second."""
        now = time.monotonic()
        if now - self._left[0] >= 1:
            self._left = now, self._forecast.left(now)
        return self._left[1]

    def tick(self, *, last: bool = False) -> None:
        """Says where the sweep is, when that is due: every second on a terminal, every ten in a log, and at the end."""
        now = time.monotonic()
        if not last and now - self._logged < (10 if self._bar.disable else 1):
            return
        self._logged = now
        left = self._forecast.left(now)
        text = f"{self._done}/{self._tiles} tiles, {self._runs / max(now - self._begun, 1e-9):.1f} runs/s"
        text += "" if left is None else f", about {duration(left)} left"
        self._bar.set_postfix_str(f"{text} [{duration(now - self._begun)}]")
        if self._bar.disable:
            logging.info("%s", text)
        if last and self._expected is not None:
            taken = now - self._begun
            logging.info("took %s; expected after a tenth: %s", duration(taken), duration(self._expected))

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Stopping:
    """SIGINT or SIGTERM: tiles in hand have a few seconds to end, then the program leaves. A second one: at once.

    Args:
      leave: for a program whose main thread may be inside a compiled tile, where it hears no signal: called from
        another thread when the time is over, to end the process. None where somebody asks `asked` all the time.
      grace: seconds.
    """

    def __init__(self, leave: Callable[[], None] | None = None, grace: float = GRACE) -> None:
        self.asked = False
        self._leave, self._grace = leave, grace
        self._over = threading.Event()

    def __enter__(self) -> "Stopping":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return self  # Signals are the main thread's.
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        if self._leave is not None:
            self._ear, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            # Python writes a signal's number there at once, whatever the main thread is doing.
            self._wakeup_before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(self._leave,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before and self._leave is not None:
            signal.set_wakeup_fd(self._wakeup_before)
            self._mouth.close()

    def _listen(self, leave: Callable[[], None]) -> None:
        with self._ear:
            while (number := self._ear.recv(1)) and number[0] not in _SIGNALS:
                pass
            if not number:
                return
            self._ear.settimeout(self._grace)
            try:
                while (number := self._ear.recv(1)) and number[0] not in _SIGNALS:
                    pass
            except TimeoutError:
                if not self._over.is_set():
                    leave()
            else:
                if number:
                    os._exit(128 + number[0])

    def _handle(self, number: int, _: object) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        logging.warning(
            "leaving within %.0f seconds; tiles that are done by then are kept, a second signal leaves at once",
            self._grace,
        )
