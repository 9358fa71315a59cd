"""How flags become values, and the flags of execution that all launchers share. Bad input is a UsageError of one line."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from absl import flags

from sweeps.engine import STEPS_PER_CHUNK
from sweeps.protocol import CHOICES

__all__ = [
    "EXECUTION_FLAGS",
    "INTERVALS",
    "Execution",
    "FlagTable",
    "UsageError",
    "choice",
    "define",
    "number",
    "one_of",
    "parse",
    "parse_all",
    "parse_sizes",
    "read_execution",
    "several",
    "whole",
]


class UsageError(Exception):
    """What the user asked for is not possible; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how a sweep runs. None of it decides the science.

    Attributes:
      out: the output folder.
      block: (d0, d1) cells of a tile; None for the store's own, or `plan.default_block` in a new one.
      num_processes: worker processes on a CPU, each pinned to a core; 0 for one per core; 1 works in this process.
      num_devices: devices that a process uses; 0 for all.
      lanes: runs that a device trains side by side; 0 for 8, 4 or 1 by size on a CPU, and 512 elsewhere.
      steps_per_chunk: steps between two looks at which lanes are done.
      compilation_cache: folder of compiled programs, "" for none.
      shard_index, shard_count: this run does every shard_count-th tile.
      interval: method of the confidence intervals.
      figures_only: draw from the store, and run nothing.
    """

    out: Path
    block: tuple[int, int] | None
    num_processes: int
    num_devices: int
    lanes: int
    steps_per_chunk: int
    compilation_cache: str
    shard_index: int
    shard_count: int
    interval: str
    figures_only: bool


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes from "start:stop:step" with both ends in, or from a comma list.

    Raises:
      ValueError: the sizes are none, not whole, not positive or not increasing, or the step misses the end.
    """
    try:
        if ":" in text:
            parts = [int(part) for part in text.split(":")]
            if len(parts) not in (2, 3):
                raise ValueError(f"{text!r} is not start:stop or start:stop:step")
            start, stop, step = (*parts, 1)[:3]
        else:
            sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        if "is not start" in str(error):
            raise
        raise ValueError(f"{text!r} is neither start:stop:step nor a comma list of whole numbers") from error
    if ":" in text:
        if step < 1:
            raise ValueError(f"the step of {text!r} must be at least 1")
        if stop < start:
            raise ValueError(f"{text!r} is empty: its end lies before its start")
        if (stop - start) % step:
            raise ValueError(f"{text!r} does not reach its end, and both ends belong to a range")
        sizes = tuple(range(start, stop + 1, step))
    if sizes[0] < 1:
        raise ValueError(f"sizes must be at least 1, got {sizes[0]}")
    if any(b <= a for a, b in itertools.pairwise(sizes)):
        raise ValueError(f"sizes must increase without repeats, got {text!r}")
    return sizes


def number(low: float, high: float = math.inf, *, low_in: bool = True, high_in: bool = True) -> Callable[[str], Any]:
    """A parser of finite numbers between two ends."""

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a number") from error
        fits = (value >= low if low_in else value > low) and (value <= high if high_in else value < high)
        if not fits or not math.isfinite(value):
            ends = f"{'[' if low_in else '('}{low:g}, {high:g}{']' if high_in and high < math.inf else ')'}"
            raise ValueError(f"{text} is not a finite number in {ends}")
        return value

    return parse_number


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A parser of whole numbers between two ends, both in."""

    def parse_whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a whole number") from error
        if not low <= value <= high:
            raise ValueError(f"{text} is not a whole number in [{low}, {high}]")
        return value

    return parse_whole


def one_of(options: Collection[str]) -> Callable[[str], str]:
    """A parser of names."""

    def parse_name(text: str) -> str:
        if text not in options:
            raise ValueError(f"{text!r} is not one of {', '.join(options)}")
        return text

    return parse_name


def choice(field: str) -> Callable[[str], str]:
    """A parser of the allowed values of a protocol's field, see `protocol.CHOICES`."""
    return one_of(CHOICES[field])


INTERVALS = {"wilson": "Wilson's score interval", "exact": "Clopper and Pearson's exact interval"}

_DEFAULT_CACHE = "~/.cache/relu_sgd/compiled"

# Flag to parser, default and help.
FlagTable: TypeAlias = Mapping[str, tuple[Callable[[str], Any], str, str]]

EXECUTION_FLAGS: FlagTable = {
    "num_processes": (
        whole(0, 4096),
        "0",
        "worker processes on a CPU, each pinned to a core; 0 for one per core, 1 for none besides this one",
    ),
    "num_devices": (
        whole(0, 4096),
        "0",
        "devices that one process uses (on a CPU, into how many it is divided); 0 for all that it sees",
    ),
    "lanes": (
        whole(0),
        "0",
        "networks that a device trains side by side; 0 for 8, 4 or 1 by size on a CPU, and 512 elsewhere",
    ),
    "steps_per_chunk": (
        whole(1),
        str(STEPS_PER_CHUNK),
        "steps between two looks at which lanes are done, with more than one lane",
    ),
    "shard_index": (whole(0), "0", "which shard of the tiles this run does, from 0 (job arrays)"),
    "shard_count": (whole(1), "1", "number of shards that the tiles are dealt out to"),
}


def define(table: FlagTable, values: flags.FlagValues = flags.FLAGS, module: str = __name__) -> None:
    """Defines the flags of a table, as texts.

    Args:
      table: flag to parser, default and help.
      values: where.
      module: whose flags they are, for --help.
    """
    for name, (_, default, text) in table.items():
        flags.DEFINE_string(name, default, f"{text}.", values, module_name=module)


flags.DEFINE_string("out", None, "output folder: new, empty, or one of an earlier run of the same sweep.")
flags.DEFINE_string(
    "block",
    None,
    "cells of a tile, as 4x3 for 4 values of d0 and 3 of d1. (default: what spans 8 inputs and 6 neurons, or what the folder was begun with)",
)
define(EXECUTION_FLAGS)
flags.DEFINE_string("compilation_cache", _DEFAULT_CACHE, "folder that compiled programs are kept in; empty for none.")
flags.DEFINE_enum(
    "interval",
    "wilson",
    list(INTERVALS),
    f"confidence interval of the probabilities, 95 percent. {'; '.join(f'{k}: {v}' for k, v in INTERVALS.items())}.",
)
flags.DEFINE_boolean("figures_only", False, "draw figures and summary from the results in --out, and run nothing.")


def parse(name: str, parser: Callable[[str], Any], text: str) -> Any:
    """The value of a flag.

    Raises:
      UsageError: the parser refused the text; the message names the flag.
    """
    try:
        return parser(text)
    except ValueError as error:
        raise UsageError(f"--{name}: {error}") from error


def parse_all(table: FlagTable, values: flags.FlagValues) -> dict[str, Any]:
    """The values of a table's flags.

    Raises:
      UsageError: a parser refused its text; the message names the flag.
    """
    return {name: parse(name, spec[0], str(values[name].value)) for name, spec in table.items()}


def _block(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--block: {text!r} is not of the form 4x3")
    return int(parts[0]), int(parts[1])


def read_execution(values: flags.FlagValues) -> Execution:
    """Where and how a sweep runs, from the flags.

    Raises:
      UsageError: a value is not allowed, or flags contradict each other.
    """
    if not values.out:
        raise UsageError("--out: say where the results go")
    numbers = parse_all(EXECUTION_FLAGS, values)
    if numbers["shard_index"] >= numbers["shard_count"]:
        raise UsageError(f"--shard_index: {numbers['shard_index']} is not below --shard_count={numbers['shard_count']}")
    if numbers["num_devices"]:
        if numbers["num_processes"] > 1:
            raise UsageError(
                f"--num_devices: contradicts --num_processes={numbers['num_processes']}, where each has a core"
            )
        numbers["num_processes"] = 1
    return Execution(
        out=Path(values.out),
        block=None if values.block is None else _block(values.block),
        compilation_cache=values.compilation_cache,
        interval=values.interval,
        figures_only=values.figures_only,
        **numbers,
    )


def several(parse_one: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A parser of comma lists without repeats."""

    def parse_all(text: str) -> tuple[Any, ...]:
        values = tuple(parse_one(part) for part in text.split(","))
        if len(set(values)) != len(values):
            raise ValueError(f"{text!r} repeats a value")
        return values

    return parse_all
