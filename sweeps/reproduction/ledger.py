"""What the ledger of the paper's claims holds, as types."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

__all__ = ["Entry", "Finding", "Judged", "Measurement", "Verdict"]


class Verdict(enum.Enum):
    """What was found of a claim."""

    HOLDS = "holds"
    AS_RELEASED = "holds as released"
    FAILS = "does not hold as written"
    UNDECIDED = "cannot be decided with so many runs"
    NOT_COMPUTABLE = "not computable"


@dataclass(frozen=True)
class Measurement:
    """A number with its 95 percent interval; `low` and `high` are `value` where it is exact."""

    name: str
    protocol: str
    value: float
    low: float
    high: float
    counts: str
    study: str
    configuration: str
    precision: str


@dataclass(frozen=True)
class Entry:
    """A claim of the paper."""

    id: str
    place: str
    section: str
    kind: str
    says: str
    released: str
    erratum: str
    code: tuple[str, ...]
    tests: tuple[str, ...]
    study: str
    measurement: str
    rule: Mapping[str, Any]
    out_of_scope: str


@dataclass(frozen=True)
class Judged:
    """A claim with what was measured, and the verdict that its rule makes of that."""

    entry: Entry
    measurements: tuple[Measurement, ...]
    verdict: Verdict
    reason: str
    command: str


@dataclass(frozen=True)
class Finding:
    """A study that was run."""

    key: str
    title: str
    command: str
    configuration: str
    folder: Path
    seconds: float
    machine: Mapping[str, str]
    figures: tuple[tuple[Path, str, str], ...]
    summary: "pandas.DataFrame | None"
