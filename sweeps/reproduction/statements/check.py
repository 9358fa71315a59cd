"""What a check of a statement is, and how bounds and values become margins.

A check is a pure function of a NumPy generator: it draws problems for which the statement's hypothesis holds, tight
ones among them, and compares what was measured with what the statement says. Its margin is (bound - value) relative to
the larger of the two, so that a wrong constant shows; negative beyond rounding is a violation.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Check", "Checks", "Outcome", "at_least", "at_most", "combined", "decrease_at_least", "equal", "event"]


class Outcome(NamedTuple):
    """What a check found.

    Attributes:
      margin: the least one, relative; infinite where no problem met the hypothesis.
      violations: how many draws, or trials of chance, violate it beyond rounding.
      trials: how many there were; 0 where none met the hypothesis. All inequalities on one draw are one.
      value, bound: what was measured, and what it was compared with, at the least margin.
    """

    margin: float
    violations: int
    trials: int
    value: float
    bound: float


class Check(NamedTuple):
    """A statement's check.

    Attributes:
      measure: from a generator to an `Outcome`.
      allowed: the share of violations that the statement itself allows, for a statement about probabilities; 0 for one
        without exceptions.
      is_arithmetic: whether the statement is an identity, or a step without a free problem, that algebra decides: a
        draw is no further evidence, so that all together are one trial.
    """

    measure: Callable[[np.random.Generator], Outcome]
    allowed: float = 0.0
    is_arithmetic: bool = False


Checks: TypeAlias = Mapping[str, Check]
Numbers: TypeAlias = ArrayLike

_NOTHING = Outcome(math.inf, 0, 0, 0.0, 0.0)


def _outcome(margins: np.ndarray, values: np.ndarray, bounds: np.ndarray, rounding: float) -> Outcome:
    if not margins.size:
        return _NOTHING
    margins = np.where(np.isnan(margins), -math.inf, margins)
    worst = int(np.argmin(margins))
    return Outcome(
        float(margins[worst]),
        int(margins[worst] < -rounding),
        1,
        float(values[worst]),
        float(bounds[worst]),
    )


def _relative(values: Numbers, bounds: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, bounds = np.broadcast_arrays(np.atleast_1d(np.asarray(values, float)), np.asarray(bounds, float))
    values, bounds = values.ravel(), bounds.ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = bounds - values
        scale = np.maximum(np.abs(bounds), np.abs(values))
        relative = np.where(np.isinf(bounds), np.sign(bounds), difference / np.where(scale > 0, scale, 1))
    return relative, values, bounds


def at_most(values: Numbers, bounds: Numbers, rounding: float = 1e-9) -> Outcome:
    """Values that are to be at most their bounds.

    Args:
      values: measured.
      bounds: of the same shape, or one for all.
      rounding: the relative error of either, beyond which a negative margin is a violation.
    """
    return _outcome(*_relative(values, bounds), rounding)


def at_least(values: Numbers, bounds: Numbers, rounding: float = 1e-9) -> Outcome:
    """Values that are to be at least their bounds; as `at_most`."""
    relative, values, bounds = _relative(values, bounds)
    return _outcome(-relative, values, bounds, rounding)


def equal(values: Numbers, others: Numbers, rounding: float = 1e-9, scale: float = 0.0) -> Outcome:
    """Values that are to equal others: the margin is minus the relative difference.

    Args:
      values, others: of the same shape.
      rounding: as for `at_most`.
      scale: what differences are relative to, if larger than both.
    """
    relative, values, others = _relative(values, others)
    sizes = np.maximum(np.abs(values), np.abs(others))
    shrink = sizes / np.maximum(np.maximum(sizes, scale), np.finfo(float).tiny)
    return _outcome(-np.abs(relative) * shrink, values, others, rounding)


def decrease_at_least(losses: Numbers, bounds: Numbers, start: float, rounding: float = 1e-6) -> Outcome:
    """Losses that are to be at most bounds, compared by the logarithms of how far both have fallen from the start: a
    wrong rate shows at every time alike.

    Args:
      losses, bounds: positive, at positive times.
      start: the loss at time 0, which the bounds begin with.
      rounding: the relative error of the logarithms.
    """
    fallen, promised = np.log(start / np.asarray(losses, float)), np.log(start / np.asarray(bounds, float))
    return at_least(fallen, promised, rounding)


def event(happened: np.ndarray | list[bool], margins: Numbers) -> Outcome:
    """Trials of a statement about probabilities: where the promised event did not happen, it is violated.

    Args:
      happened: by trial.
      margins: by trial; the least is kept.
    """
    happened, margins = np.asarray(happened, bool), np.asarray(margins, float)
    worst = int(np.argmin(margins))
    failures = int(np.sum(~happened))
    return Outcome(float(margins[worst]), failures, happened.size, failures / happened.size, 0.0)


def combined(*outcomes: Outcome) -> Outcome:
    """All inequalities of a statement on the problems of one draw: one trial, which any of them violates."""
    met = [outcome for outcome in outcomes if outcome.trials]
    if not met:
        return _NOTHING
    worst = min(met, key=lambda outcome: outcome.margin)
    return worst._replace(violations=int(any(outcome.violations for outcome in met)), trials=1)
