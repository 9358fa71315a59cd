"""How far a sweep is, and how it is asked to stop."""

import os
import signal
import sys
import time

from absl import logging
from tqdm import tqdm

from sweeps.engine import Timings
from sweeps.forecast import Forecast
from sweeps.plan import Tile

__all__ = ["Progress", "Stopping", "duration"]


class Progress:
    """A bar on a terminal, lines in a log otherwise: tiles, runs a second, and how long the rest takes.

    Args:
      num_tiles: all of them.
      num_done: those that were done before.
      forecast: of the others.
    """

    def __init__(self, num_tiles: int, num_done: int, forecast: Forecast) -> None:
        self._tiles, self._done, self._runs = num_tiles, num_done, 0
        self._forecast = forecast
        self._begun = self._logged = time.monotonic()
        self._bar = tqdm(
            total=num_tiles,
            initial=num_done,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f}%|{bar}| {postfix} [{elapsed}]",
            dynamic_ncols=True,
        )

    def update(self, tile: Tile, timings: Timings) -> None:
        """One more tile is done."""
        self._done += 1
        self._runs += tile.num_runs
        self._forecast.finished(tile, timings)
        self._bar.update()
        self.tick(last=self._done == self._tiles)

    def tick(self, *, last: bool = False) -> None:
        """Says where the sweep is, when that is due: every second on a terminal, every ten in a log, and at the end."""
        now = time.monotonic()
        if not last and now - self._logged < (10 if self._bar.disable else 1):
            return
        self._logged = now
        left = self._forecast.left(now)
        text = f"{self._done}/{self._tiles} tiles, {self._runs / max(now - self._begun, 1e-9):.1f} runs/s"
        text += "" if left is None else f", about {duration(left)} left"
        self._bar.set_postfix_str(text)
        if self._bar.disable:
            logging.info("%s", text)

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
