"""Numbers, intervals and durations as readers meet them."""

import math
from collections.abc import Iterable

from sweeps.reproduction.ledger import Measurement, digits_of

__all__ = ["duration", "interval", "number", "result", "results", "value"]


def number(amount: float, digits: int = 3) -> str:
    """A number with so many digits, whole ones below a million in full; "not known" for NaN."""
    if math.isnan(amount):
        return "not known"
    if math.isinf(amount):
        return "∞" if amount > 0 else "\N{MINUS SIGN}∞"
    if amount == int(amount) and abs(amount) < 1e6:
        return f"{int(amount):,}"
    shown, _, exponent = f"{amount:.{digits}g}".partition("e")
    return f"{shown}e{int(exponent)}" if exponent else shown


def interval(low: float, high: float) -> str:
    """A 95 percent interval, one-sided where an end is infinite; empty where an end is not known."""
    if math.isnan(low) or math.isnan(high):
        return ""
    if math.isinf(low) and math.isinf(high):
        return "nothing excluded"
    if math.isinf(low):
        return f"at most {number(high)}"
    if math.isinf(high):
        return f"at least {number(low)}"
    digits = digits_of(low, high)
    return f"{number(low, digits)} to {number(high, digits)}"


def value(measurement: Measurement) -> str:
    """The number with as many digits as tell the ends of its interval apart."""
    return number(measurement.value, digits_of(measurement.low, measurement.high))


def result(measurement: Measurement) -> str:
    """A measurement in one line: protocol, set-up, value, interval and counts."""
    (line,) = results([measurement])
    return line


def results(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Measurements, a line each: quantity where there are several, protocol, set-up, value, interval and counts.
    Set-ups of which the same is found share a line.
    """
    measurements = tuple(measurements)
    named = len({one.name for one in measurements}) > 1
    lines: dict[tuple[str, str, str], list[str]] = {}
    for one in measurements:
        exact = one.low == one.value == one.high
        within = "" if exact else interval(one.low, one.high)
        found = f"{value(one)}{f' ({within})' if within else ''}{f', {one.counts}' if one.counts else ''}"
        lines.setdefault((one.name if named else "", one.protocol, found), []).append(one.setup)
    shown = []
    for (name, protocol, found), setups in lines.items():
        parts = (name.replace("_", " "), protocol.replace("_", " "), " and ".join(filter(None, setups)))
        of = ", ".join(filter(None, parts))
        shown.append(f"{of}: {found}" if of else found)
    return tuple(shown)


def duration(seconds: float) -> str:
    """Seconds as 0.8 s, 42 s, 4:10 min or 1:05:00 h."""
    if not math.isfinite(seconds):
        return "not known"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if minutes < 1:
        return f"{whole} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
