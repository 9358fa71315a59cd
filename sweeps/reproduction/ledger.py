"""The ledger of the paper's claims: what it holds, as types; how it is read; and the verdicts that its rules make.

A rule is data. One condition names a quantity and where its value must lie, `{quantity = "x", at_least = 0.9}`,
`at_most` or `between = [low, high]`; the whole 95 percent interval has to lie there, or wholly elsewhere, or nothing
is decided. A quantity may be measured in several set-ups: the worst of their outcomes counts, that which contradicts
before that which is undecided. `{quantity = "x", violations = 0}` is for bounds that hold always: the value counts the
checks that violate it, and one is a counterexample. `{all = [...]}` joins conditions.
"""

import dataclasses
import enum
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

__all__ = [
    "CLAIMS",
    "Entry",
    "Finding",
    "Judged",
    "LedgerError",
    "Measurement",
    "Verdict",
    "conditions",
    "digits_of",
    "dump",
    "judge",
    "load",
    "read",
    "verdict_of",
]

CLAIMS = Path(__file__).parent
SECTIONS = (*(f"Section {number}" for number in range(1, 8)), *(f"Appendix {letter}" for letter in "ABCDEFGH"))
WRITTEN, RELEASED = "as_written", "as_released"


class LedgerError(ValueError):
    """A ledger that cannot be read; the message is one line that names the entry."""


class Verdict(enum.Enum):
    """What was found of a claim."""

    HOLDS = "holds"
    AS_RELEASED = "holds as released"
    FAILS = "does not hold as written"
    UNDECIDED = "cannot be decided with so many runs"
    NOT_MEASURED = "not measured"
    NOT_COMPUTABLE = "not computable"


@dataclass(frozen=True)
class Measurement:
    """A number with its 95 percent interval; `low` and `high` are `value` where it is exact. `setup` says of which
    networks or equation it is, where a study has several.
    """

    name: str
    protocol: str
    value: float
    low: float
    high: float
    counts: str
    study: str
    configuration: str
    precision: str
    setup: str = ""


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


# Reading.

_TEXTS = ("id", "place", "section", "kind", "says", "released", "erratum", "study", "measurement", "out_of_scope")
_LISTS = ("code", "tests")
_REQUIRED = ("id", "place", "section", "kind", "says")
_BOUNDS = ("at_least", "at_most", "between", "violations")


def conditions(rule: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The conditions that a rule joins; none of an empty one."""
    return tuple(rule["all"]) if "all" in rule else (rule,) if rule else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _fault(condition: Any) -> str:
    """What is wrong with a condition, "" for nothing."""
    if not isinstance(condition, Mapping) or not isinstance(condition.get("quantity"), str):
        return "a condition names its quantity"
    bounds = [name for name in _BOUNDS if name in condition]
    if len(bounds) != 1 or set(condition) != {"quantity", bounds[0]}:
        return f"a condition has a quantity and one of {', '.join(_BOUNDS)}"
    value = condition[bounds[0]]
    if bounds[0] == "between":
        fine = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
        return "" if fine else "between takes two numbers, the lower one first"
    if bounds[0] == "violations":
        return "" if value == 0 and _is_number(value) else "violations takes 0"
    return "" if _is_number(value) else f"{bounds[0]} takes a number"


def _entry(table: Mapping[str, Any], where: str) -> Entry:
    name = f"{where}, claim {table.get('id', '?')!r}"
    for field in _REQUIRED:
        if not table.get(field):
            raise LedgerError(f"{name}: {field} is missing")
    if stray := sorted(set(table) - {*_TEXTS, *_LISTS, "rule"}):
        raise LedgerError(f"{name}: {stray[0]} is no key of a claim")
    for field in _TEXTS:
        if not isinstance(table.get(field, ""), str):
            raise LedgerError(f"{name}: {field} is no text")
    for field in _LISTS:
        listed = table.get(field, [])
        if not isinstance(listed, list) or not all(isinstance(part, str) for part in listed):
            raise LedgerError(f"{name}: {field} is no list of texts")
    if table["section"] not in SECTIONS:
        raise LedgerError(f"{name}: {table['section']!r} is no section of the paper")
    rule = table.get("rule", {})
    if not isinstance(rule, Mapping) or ("all" in rule and (set(rule) != {"all"} or not isinstance(rule["all"], list))):
        raise LedgerError(f"{name}: rule is no condition, and no list of them under all")
    for condition in conditions(rule):
        if fault := _fault(condition):
            raise LedgerError(f"{name}: rule: {fault}")
    if bool(conditions(rule)) == bool(table.get("out_of_scope")):
        raise LedgerError(f"{name}: has either a rule, or a reason why it is out of scope")
    if rule and not table.get("study"):
        raise LedgerError(f"{name}: study is missing")
    values: dict[str, Any] = {field: table.get(field, "") for field in _TEXTS}
    if rule and not values["measurement"]:
        values["measurement"] = conditions(rule)[0]["quantity"]
    if rule and values["measurement"] not in [condition["quantity"] for condition in conditions(rule)]:
        raise LedgerError(f"{name}: measurement {values['measurement']!r} is no quantity of the rule")
    values |= {field: tuple(table.get(field, ())) for field in _LISTS}
    return Entry(**values, rule=dict(rule))


def read(paths: Iterable[Path] | None = None) -> tuple[Entry, ...]:
    """The claims of some files, in the order of the paper: by section, and as they stand in the files within one.

    Args:
      paths: files of `[[claim]]` tables; those of this package if not given.

    Raises:
      LedgerError: a file cannot be read, or an entry is malformed; the message is one line.
    """
    entries: list[Entry] = []
    for path in sorted(CLAIMS.glob("claims*.toml")) if paths is None else paths:
        try:
            tables = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise LedgerError(f"{path.name}: {error}") from error
        claims = tables.get("claim")
        if set(tables) != {"claim"} or not isinstance(claims, list):
            raise LedgerError(f"{path.name}: holds something else than [[claim]] tables")
        entries += [_entry(table, path.name) for table in claims]
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise LedgerError(f"claim {entry.id!r}: there are two of them")
        seen.add(entry.id)
    return tuple(sorted(entries, key=lambda entry: SECTIONS.index(entry.section)))


# Judging.


def _outcome(condition: Mapping[str, Any], measured: Measurement) -> Verdict:
    """Where the interval lies: HOLDS, FAILS or UNDECIDED."""
    if "violations" in condition:
        if math.isnan(measured.value):
            return Verdict.UNDECIDED
        return Verdict.HOLDS if measured.value == 0 else Verdict.FAILS
    low, high = -math.inf, math.inf
    if "between" in condition:
        low, high = condition["between"]
    low, high = condition.get("at_least", low), condition.get("at_most", high)
    if math.isnan(measured.low) or math.isnan(measured.high):
        return Verdict.UNDECIDED
    if low <= measured.low and measured.high <= high:
        return Verdict.HOLDS
    return Verdict.FAILS if measured.high < low or measured.low > high else Verdict.UNDECIDED


def digits_of(low: float, high: float) -> int:
    """How many digits tell the ends of an interval apart, three at least."""
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        return 3
    return min(max(3, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))) + 1), 9)


def _number(value: float, digits: int = 4) -> str:
    return f"{value:,.{digits}g}" if abs(value) < 1e4 else f"{value:.3g}"


def _asked(condition: Mapping[str, Any]) -> str:
    if "violations" in condition:
        return "no violation"
    if "between" in condition:
        return "between {} and {}".format(*map(_number, condition["between"]))
    name = "at_least" if "at_least" in condition else "at_most"
    return f"{name.replace('_', ' ')} {_number(condition[name])}"


def _found(condition: Mapping[str, Any], measured: Measurement) -> str:
    if "violations" in condition:
        end = f"; at most a share of {_number(measured.high)}" if 0 < measured.high < 1 else ""
        return f"{measured.counts or _number(measured.value)}{end}"
    exact = measured.low == measured.high == measured.value
    digits = max(4, digits_of(measured.low, measured.high))
    interval = "exact" if exact else f"{_number(measured.low, digits)} to {_number(measured.high, digits)}"
    return f"{_number(measured.value, digits)} ({'; '.join(part for part in (interval, measured.counts) if part)})"


_SAID = {
    Verdict.HOLDS: "agrees",
    Verdict.FAILS: "contradicts",
    Verdict.UNDECIDED: "undecided",
    Verdict.NOT_MEASURED: "not measured",
}
# The first of them that a condition or a set-up has is that of all.
_WORST_FIRST = (Verdict.FAILS, Verdict.NOT_MEASURED, Verdict.UNDECIDED, Verdict.HOLDS)


def _of_protocol(rule: Mapping[str, Any], measured: Sequence[Measurement], protocol: str) -> tuple[Verdict, list[str]]:
    """What one protocol's measurements say, and each of them as words."""
    outcomes, words = [], []
    for condition in conditions(rule):
        name = " ".join(part for part in (condition["quantity"].replace("_", " "), protocol) if part)
        asked = _asked(condition)
        found = [one for one in measured if one.name == condition["quantity"]]
        if not found:
            outcomes.append(Verdict.NOT_MEASURED)
            words.append(f"{name}: no result, asked {asked}, {_SAID[Verdict.NOT_MEASURED]}")
        for one in found:
            outcomes.append(_outcome(condition, one))
            of = f" ({one.setup})" if one.setup else ""
            words.append(f"{name}{of}: {_found(condition, one)}, asked {asked}, {_SAID[outcomes[-1]]}")
    return next(outcome for outcome in _WORST_FIRST if outcome in outcomes), words


def verdict_of(entry: Entry, measurements: Sequence[Measurement]) -> tuple[Verdict, str]:
    """What an entry's rule makes of what was measured, and a sentence that says why.

    The paper's own protocol decides. Where it contradicts the claim and the released code's bears it out the verdict
    says so; without a result by the paper's own nothing was measured, whatever the other one says.

    Args:
      entry: the claim.
      measurements: at most one of every quantity, protocol and set-up.
    """
    if entry.out_of_scope:
        return Verdict.NOT_COMPUTABLE, entry.out_of_scope
    asked = {condition["quantity"] for condition in conditions(entry.rule)}
    measurements = [one for one in measurements if one.name in asked]
    if not measurements:
        return Verdict.NOT_MEASURED, f"There are no results of the study {entry.study} here that the rule asks for."
    shared = [one for one in measurements if not one.protocol]
    protocols = sorted({one.protocol for one in measurements if one.protocol}, reverse=True) or [""]
    found = {
        name: _of_protocol(entry.rule, [*shared, *(one for one in measurements if one.protocol == name != "")], name)
        for name in protocols
    }
    words = [word for _, said in found.values() for word in said]
    if RELEASED in found and WRITTEN not in found:
        words.append("nothing was measured as written")
    reason = "; ".join(words) + "."
    verdicts = {name: verdict for name, (verdict, _) in found.items()}
    first = verdicts.get(WRITTEN, verdicts.get("", Verdict.NOT_MEASURED))
    if first is Verdict.FAILS and verdicts.get(RELEASED) is Verdict.HOLDS:
        first = Verdict.AS_RELEASED
    return first, reason[0].upper() + reason[1:]


def judge(entry: Entry, measurements: Iterable[Measurement], command: str) -> Judged:
    """An entry with those of the measurements that its rule asks for, and its verdict.

    Args:
      entry: the claim.
      measurements: all there are.
      command: the shell line that measures it again.
    """
    asked = {condition["quantity"] for condition in conditions(entry.rule)}
    used = tuple(one for one in measurements if one.name in asked)
    return Judged(entry, used, *verdict_of(entry, used), command)


# As JSON.


def _plain(value: Any) -> Any:
    """A value as JSON holds it: numbers that are none as texts."""
    if isinstance(value, Verdict):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def dump(judged: Iterable[Judged], about: Mapping[str, str]) -> str:
    """The ledger as JSON: `load` reads it."""
    entries = [_plain({**dataclasses.asdict(one)}) for one in judged]
    return json.dumps({"about": dict(about), "ledger": entries}, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def load(text: str) -> tuple[tuple[Judged, ...], dict[str, str]]:
    """The ledger that `dump` wrote, and what it says about itself.

    Raises:
      LedgerError: it is none.
    """
    numbers = ("value", "low", "high")
    try:
        whole = json.loads(text)
        judged = []
        for table in whole["ledger"]:
            entry = table["entry"] | {name: tuple(table["entry"][name]) for name in _LISTS}
            measured = [
                Measurement(**one | {name: float(one[name]) for name in numbers}) for one in table["measurements"]
            ]
            rest = Verdict(table["verdict"]), table["reason"], table["command"]
            judged.append(Judged(Entry(**entry), tuple(measured), *rest))
        return tuple(judged), dict(whole["about"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"no ledger: {error}") from error
