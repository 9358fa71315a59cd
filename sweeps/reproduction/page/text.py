"""Numbers, intervals and durations as readers meet them."""

import math

from sweeps.reproduction.ledger import Measurement, digits_of

__all__ = ["duration", "interval", "number", "result"]


def number(value: float, digits: int = 3) -> str:
    """A number with so many digits, whole ones below a million in full; "not known" for NaN."""
    if math.isnan(value):
        return "not known"
    if math.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    shown, _, exponent = f"{value:.{digits}g}".partition("e")
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


def result(measurement: Measurement) -> str:
    """A measurement in one line: protocol, set-up, value, interval and counts."""
    of = ", ".join(part for part in (measurement.protocol.replace("_", " "), measurement.setup) if part)
    exact = measurement.low == measurement.value == measurement.high
    within = "" if exact else interval(measurement.low, measurement.high)
    counts = f", {measurement.counts}" if measurement.counts else ""
    value = number(measurement.value, digits_of(measurement.low, measurement.high))
    return f"{f'{of}: ' if of else ''}{value}{f' ({within})' if within else ''}{counts}"


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
