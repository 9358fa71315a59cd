"""What becomes of a tile that fails: tried again when its worker died, split when memory was short, or given up.

The other tiles go on in any case. A tile is split along its seeds, so its networks are padded as before, and a run's
result is the same to the bit as long as no fewer runs than lanes are left.
"""

import collections
import dataclasses
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import numpy as np
from absl import logging

from sweeps.runtime.processes import Died
from sweeps.study import Tile, Timings, UsageError

__all__ = ["Failure", "Work", "attempt", "name_of"]

Done: TypeAlias = tuple[dict[str, np.ndarray], Timings]

# Deaths of a worker at the same tile.
_MOST_DEATHS = 2


def name_of(tile: Tile) -> str:
    """A tile in words: hidden, d0 = 4 to 8, d1 = 20, seeds 0 to 9."""
    ends = {f"{axis} =": (values[0], values[-1]) for axis, values in tile.axes.items()}
    ends["seeds"] = (tile.seeds[0], tile.seeds[-1])
    parts = [f"{axis} {first}" + (f" to {last}" if last != first else "") for axis, (first, last) in ends.items()]
    return ", ".join([tile.variant.group, *parts])


@dataclasses.dataclass(frozen=True)
class Failure:
    """What comes instead of the results of a tile.

    Attributes:
      reason: one line.
      details: the traceback, "" where there is none.
      out_of_memory: whether a smaller tile may succeed.
      error: in the process that raised it.
    """

    reason: str
    details: str = ""
    out_of_memory: bool = False
    error: Exception | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What an exception says."""
        is_short = isinstance(error, MemoryError) or (
            isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
        )
        details = "".join(traceback.format_exception(error))
        # Of what was short its frames would keep the rest; and not every exception can travel.
        keeps = not is_short and multiprocessing.parent_process() is None
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(text if len(text) <= 300 else text[:297] + "...", details, is_short, error if keeps else None)


def attempt(run: Callable[[Tile], Done], tile: Tile) -> Done | Failure:
    """The results of a tile, or why there are none.

    Raises:
      UsageError: what is wrong is not this tile alone.
    """
    try:
        return run(tile)
    except UsageError:
        raise
    except Exception as error:
        jax.clear_caches()
        return Failure.of(error)


class Work:
    """The tiles that are to be done, and parts of them that are done again.

    Args:
      tiles: the tiles.
      may_split: whether the study runs such a tile.
      begun: called when one is taken.

    Attributes:
      in_hand: what was taken and has not come back.
    """

    def __init__(
        self, tiles: Iterator[Tile], may_split: Callable[[Tile], bool], begun: Callable[[], None] = lambda: None
    ) -> None:
        self._tiles, self._may_split, self._begun = tiles, may_split, begun
        self._again: collections.deque[Tile] = collections.deque()
        self._deaths: collections.Counter[Tile] = collections.Counter()
        self._whole: dict[Tile, Tile] = {}
        self._parts: dict[Tile, list[tuple[Tile, Done]]] = {}
        self.in_hand: list[Tile] = []

    def __iter__(self) -> Iterator[Tile]:
        return self

    def __next__(self) -> Tile:
        tile = self._again.popleft() if self._again else next(self._tiles)
        self.in_hand.append(tile)
        self._begun()
        return tile

    def resolve(self, tile: Tile, outcome: Done | Failure | Died) -> tuple[Tile, Done | Failure] | None:
        """What is decided when a tile, or a part of one, comes back: the whole tile with its results or its failure;
        None while more of it is under way.
        """
        self.in_hand.remove(tile)
        whole = self._whole.get(tile, tile)
        if whole != tile and whole not in self._parts:
            return None  # Another part of it failed.
        if isinstance(outcome, Died):
            self._deaths[tile] += 1
            if self._deaths[tile] < _MOST_DEATHS:
                logging.warning("a worker process %s at %s; trying again in a new one", outcome, name_of(tile))
                self._again.append(tile)
                return None
            outcome = Failure(
                f"its worker process {outcome}, twice", out_of_memory=outcome.exit_code == -signal.SIGKILL
            )
        if isinstance(outcome, Failure):
            if outcome.out_of_memory and (halves := self._halves(tile)):
                logging.warning("%s: %s; going on with half the seeds at a time", name_of(tile), outcome.reason)
                self._parts.setdefault(whole, [])
                self._whole |= dict.fromkeys(halves, whole)
                self._again.extend(halves)
                return None
            self._parts.pop(whole, None)
            self._again = collections.deque(part for part in self._again if self._whole.get(part, part) != whole)
            return whole, outcome
        if whole == tile:
            return whole, outcome
        self._parts[whole].append((tile, outcome))
        if sum(len(part.seeds) for part, _ in self._parts[whole]) < len(whole.seeds):
            return None
        return whole, _joined(self._parts.pop(whole))

    def _halves(self, tile: Tile) -> list[Tile]:
        middle = len(tile.seeds) // 2
        halves = [dataclasses.replace(tile, seeds=part) for part in (tile.seeds[:middle], tile.seeds[middle:]) if part]
        return halves if len(halves) == 2 and all(map(self._may_split, halves)) else []


def _joined(parts: list[tuple[Tile, Done]]) -> Done:
    """The results of a tile from those of its seeds."""
    parts = sorted(parts, key=lambda part: part[0].seeds.start)
    records: dict[str, np.ndarray] = {}
    for name in parts[0][1][0]:
        arrays = [np.asarray(done[0][name]).reshape(*tile.shape, -1) for tile, done in parts]
        records[name] = np.concatenate(arrays, axis=len(parts[0][0].shape) - 1)
    spent: dict[str, float] = collections.defaultdict(float)
    for _, (_, timings) in parts:
        for name, seconds in timings.items():
            spent[name] += seconds
    return records, dict(spent)
