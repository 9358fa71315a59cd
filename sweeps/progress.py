"""How far a sweep is, and how it is asked to stop."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from absl import logging
from tqdm import tqdm

from sweeps import plan
from sweeps.plan import Tile

__all__ = ["Progress", "Stopping", "duration"]


class Progress:
    """A bar on a terminal, lines in a log otherwise. What advances is the estimated cost of the tiles."""

    def __init__(self, tiles: Sequence[Tile], done: Sequence[Tile], cost: Callable[[Tile], float] = plan.cost) -> None:
        self._cost_of = cost
        self._tiles, self._done, self._runs = len(tiles), len(done), 0
        self._begun = self._logged = time.monotonic()
        self._first = sum(map(cost, done))
        total = sum(map(cost, tiles))
        self._bar = tqdm(
            total=total,
            initial=self._first,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {postfix} [{elapsed}<{remaining}]",
            dynamic_ncols=True,
        )
        self._cost, self._total = self._first, total
        self._say()

    def _say(self) -> str:
        rate = self._runs / max(time.monotonic() - self._begun, 1e-9)
        text = f"{self._done}/{self._tiles} tiles, {rate:.1f} runs/s"
        self._bar.set_postfix_str(text)
        return text

    def update(self, tile: Tile) -> None:
        """One more tile is done."""
        self._done += 1
        self._runs += tile.num_runs
        self._cost += self._cost_of(tile)
        text = self._say()
        self._bar.update(self._cost_of(tile))
        now = time.monotonic()
        if self._bar.disable and (now - self._logged >= 10 or self._done == self._tiles):
            self._logged = now
            left = (now - self._begun) * (self._total - self._cost) / max(self._cost - self._first, 1e-9)
            logging.info("%s, about %s left", text, duration(left))

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Stopping:
    """SIGINT or SIGTERM: finish the tiles in hand, then leave. A second one: leave at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stopping":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: object) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        logging.warning("finishing the tiles in hand; a second signal leaves at once")
