"""Typed absl flags: from a flag's text to its value, and back for a flag file. Messages do not name the flag: absl
does.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import flags

__all__ = [
    "Block",
    "Choice",
    "Coordinator",
    "Folder",
    "Number",
    "OneOrSeveral",
    "Parser",
    "PerLayers",
    "Several",
    "Sizes",
    "Switch",
    "Whole",
]


class Parser(flags.ArgumentParser[Any], flags.ArgumentSerializer[Any]):
    """Text to a value, and back; in subclasses `parse` raises ValueError where the text is not allowed."""

    def parse(self, argument: str) -> Any:
        """The text itself."""
        return argument

    def serialize(self, value: Any) -> str:
        """The text of a value."""
        return str(value)


class Switch(Parser):
    """True or false."""

    def parse(self, argument: Any) -> bool:
        """As absl's boolean flags."""
        return flags.BooleanParser().parse(argument)

    def serialize(self, value: bool) -> str:
        """In absl's words."""
        return "true" if value else "false"


class Folder(Parser):
    """A path; no text is none."""

    def parse(self, argument: str) -> Path | None:
        """The path."""
        return Path(argument) if argument else None

    def serialize(self, value: Path | None) -> str:
        """The path's name."""
        return "" if value is None else str(value)


class Number(Parser):
    """A finite number between two ends."""

    def __init__(self, low: float, high: float = math.inf, *, low_in: bool = True, high_in: bool = True) -> None:
        self.low, self.high, self.low_in, self.high_in = low, high, low_in, high_in

    def parse(self, argument: str) -> float:
        """The number."""
        try:
            value = float(argument)
        except ValueError as error:
            raise ValueError(f"{argument!r} is not a number") from error
        above = value >= self.low if self.low_in else value > self.low
        below = value <= self.high if self.high_in else value < self.high
        if not (above and below and math.isfinite(value)):
            closed = self.high_in and self.high < math.inf
            ends = f"{'[' if self.low_in else '('}{self.low:g}, {self.high:g}{']' if closed else ')'}"
            raise ValueError(f"{argument} is not a finite number in {ends}")
        return value

    def serialize(self, value: float) -> str:
        """Six digits where they are all, as 1e+11."""
        short = f"{value:g}"
        return short if float(short) == value else str(value)


class Whole(Parser):
    """A whole number between two ends, both in."""

    def __init__(self, low: int, high: int = 2**31 - 1) -> None:
        self.low, self.high = low, high

    def parse(self, argument: str) -> int:
        """The number."""
        try:
            value = int(argument)
        except ValueError as error:
            raise ValueError(f"{argument!r} is not a whole number") from error
        if not self.low <= value <= self.high:
            raise ValueError(f"{argument} is not a whole number in [{self.low}, {self.high}]")
        return value


class Choice(Parser):
    """One of some names."""

    def __init__(self, options: Collection[str]) -> None:
        self.options = tuple(options)

    def parse(self, argument: str) -> str:
        """The name."""
        if argument not in self.options:
            raise ValueError(f"{argument!r} is not one of {', '.join(self.options)}")
        return argument


class Coordinator(Parser):
    """Nothing, "auto", or the address of a process."""

    def parse(self, argument: str) -> str:
        """The text itself."""
        host, colon, port = argument.rpartition(":")
        is_address = bool(host and colon) and port.isascii() and port.isdecimal() and 0 < int(port) < 2**16
        if argument not in ("", "auto") and not is_address:
            raise ValueError(f"{argument!r} is neither auto nor host:port")
        return argument


class _List(Parser):
    def __init__(self, item: Parser) -> None:
        self.item = item

    def parse(self, argument: str) -> Any:
        return tuple(self.item.parse(part) for part in argument.split(","))

    def serialize(self, value: Any) -> str:
        parts = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        return ",".join(map(self.item.serialize, parts))


class PerLayers(_List):
    """A value for each of the trained layers, or one for all."""


class Several(_List):
    """A comma list without repeats, in any order, increasing, or decreasing."""

    def __init__(self, item: Parser, order: str = "") -> None:
        super().__init__(item)
        self.order = order

    def parse(self, argument: str) -> Any:
        """The values, as a tuple."""
        values = super().parse(argument)
        if len(set(values)) != len(values):
            raise ValueError(f"{argument!r} repeats a value")
        if self.order and list(values) != sorted(values, reverse=self.order == "decreasing"):
            raise ValueError(f"values must be {self.order}, got {argument!r}")
        return values


class OneOrSeveral(Several):
    """A comma list without repeats; a single value stands for itself."""

    def parse(self, argument: str) -> Any:
        """A value, or a tuple of several."""
        values = super().parse(argument)
        return values[0] if len(values) == 1 else values


class Sizes(_List):
    """Increasing whole numbers from 1 on: start:stop:step with both ends in, or a comma list."""

    def __init__(self) -> None:
        super().__init__(Whole(1))

    def parse(self, argument: str) -> tuple[int, ...]:
        """The sizes."""
        separator = ":" if ":" in argument else ","
        try:
            parts = tuple(int(part) for part in argument.split(separator))
        except ValueError as error:
            raise ValueError(f"{argument!r} is neither start:stop:step nor a comma list of whole numbers") from error
        sizes = _range(argument, *parts) if separator == ":" else parts
        if sizes[0] < 1:
            raise ValueError(f"sizes must be at least 1, got {sizes[0]}")
        if any(b <= a for a, b in itertools.pairwise(sizes)):
            raise ValueError(f"sizes must increase without repeats, got {argument!r}")
        return sizes

    def serialize(self, value: Any) -> str:
        """start:stop:step where the steps are equal, and a comma list."""
        sizes = tuple(value) if isinstance(value, Sequence) else (value,)
        if len(sizes) > 2 and all(isinstance(size, int) for size in sizes):
            step = max(sizes[1] - sizes[0], 1)
            if sizes == tuple(range(sizes[0], sizes[-1] + 1, step)):
                return f"{sizes[0]}:{sizes[-1]}:{step}"
        return super().serialize(sizes)


def _range(text: str, *parts: int) -> tuple[int, ...]:
    if len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is not start:stop or start:stop:step")
    start, stop, step = (*parts, 1)[:3]
    if step < 1:
        raise ValueError(f"the step of {text!r} must be at least 1")
    if stop < start:
        raise ValueError(f"{text!r} is empty: its end lies before its start")
    if (stop - start) % step:
        raise ValueError(f"{text!r} does not reach its end, and both ends belong to a range")
    return tuple(range(start, stop + 1, step))


class Block(Parser):
    """Cells of a tile along every axis, as 4x3."""

    def parse(self, argument: str) -> tuple[int, ...]:
        """The numbers of cells."""
        parts = argument.split("x")
        if not all(part.isdigit() and int(part) for part in parts):
            raise ValueError(f"{argument!r} is not of the form 4x3")
        return tuple(map(int, parts))

    def serialize(self, value: tuple[int, ...]) -> str:
        """As 4x3."""
        return "x".join(map(str, value))
