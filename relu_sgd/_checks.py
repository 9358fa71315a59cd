"""What every module asks of its input, with one line for what is wrong."""

import operator
from typing import Any

import numpy as np

__all__ = ["finite_arrays", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int.

    Raises:
      ValueError: it is no whole number (2.5, "3", None), or less than `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def finite_arrays(**arrays: Any) -> list[np.ndarray]:
    """The arrays in float64, in the order given.

    Raises:
      ValueError: an entry is NaN or infinite; the message names the array.
    """
    found = []
    for name, array in arrays.items():
        array = np.asarray(array, float)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape} has entries that are not finite")
        found.append(array)
    return found
