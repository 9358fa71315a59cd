"""What every module asks of its input, with one line for what is wrong."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["check_fields", "check_key", "finite_arrays", "takes", "whole_number"]


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int.

    Raises:
      ValueError: it is no whole number (2.5, "3", None, True), or less than `least`.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def check_fields(name: str, value: Any, kind: type) -> None:
    """Whether a value has the arrays of a kind of tuple, `Params` or `Problem`.

    Raises:
      TypeError: it has not.
    """
    fields = kind._fields  # type: ignore[attr-defined]
    if not all(hasattr(value, field) for field in fields):
        raise TypeError(f"{name} must be a {kind.__name__} of {' and '.join(fields)}, got {type(value).__name__}")
    for field in fields:
        if not hasattr(array := getattr(value, field), "ndim"):
            raise TypeError(f"{name}.{field} must be an array, got {type(array).__name__}")


def check_key(key: Any) -> None:
    """Whether a value is one random key, also one of the old kind, an array of integers.

    Raises:
      TypeError: it is not.
    """
    if isinstance(key, jax.Array | np.ndarray):
        is_new = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == (0 if is_new else 1) and (is_new or key.dtype == np.uint32):
            return
        raise TypeError(f"key must be one random key, as jax.random.key(0), got an array {key.dtype}{key.shape}")
    raise TypeError(f"key must be one random key, as jax.random.key(0), got {key!r}")


def takes(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> bool:
    """Whether a function can be called like this; True where Python cannot tell."""
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def finite_arrays(**arrays: Any) -> list[np.ndarray]:
    """The arrays in float64, in the order given.

    Raises:
      ValueError: an entry is NaN or infinite; the message names the array.
    """
    converted = []
    for name, array in arrays.items():
        array = np.asarray(array, float)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape} has entries that are not finite")
        converted.append(array)
    return converted
