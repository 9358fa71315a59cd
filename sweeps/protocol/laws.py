"""Functions of one's own where a law or a rule has a name: module:function, remembered with the hash of its file.

A value is "module:function@hash", see `sweeps.runtime.sources`. So store, flag file and worker processes name the code
that is meant, and an edited file is refused.
"""

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from sweeps.command.parsers import Choice
from sweeps.runtime import patched, sources
from sweeps.study import UsageError

__all__ = ["Law", "array", "call", "is_own", "load", "plain_name"]


def is_own(value: Any) -> bool:
    """Whether a value names a function, and not one of the choices that are built in."""
    return isinstance(value, str) and ":" in value


def plain_name(value: str) -> str:
    """A value without its hash."""
    return value.partition("@")[0]


@functools.lru_cache(maxsize=64)
def load(value: str) -> Callable[..., Any]:
    """The function that a value names; once loaded, edits of its file change nothing in this process.

    Raises:
      ValueError: it cannot be imported, or its file is not the one that the value was made from.
    """
    return sources.load(value)


class Law(Choice):
    """One of some names, or module:function; a function stands for its name.

    Args:
      options: the names.
      signature: names of the arguments that a function is called with, separated by commas.
    """

    def __init__(self, options: Collection[str], signature: str) -> None:
        super().__init__(options)
        self.signature = signature

    def parse(self, argument: str) -> str:
        """The name, with the hash; one that has a hash already is not looked up, so that results outlive their law."""
        if not is_own(argument):
            if argument not in self.options:
                raise ValueError(f"{argument!r} is not one of {', '.join(self.options)}, nor module:function")
            return argument
        if "@" in argument:
            return argument
        module = sys.modules.get(argument.partition(":")[0])
        value = sources.named(argument)
        if module is not None and not patched.is_as_in_file(module):
            raise ValueError(
                f"{module.__name__} is not what its file says: it was edited or changed after it was imported"
            )
        try:
            inspect.signature(load(value)).bind(*self.signature.split(", "))
        except TypeError as error:
            raise ValueError(f"{argument} must take ({self.signature}): {error}") from error
        except ValueError:
            pass  # Python cannot tell.
        return value

    def serialize(self, value: Any) -> str:
        """The name."""
        if not callable(value):
            return str(value)
        if sources.load(name := sources.name_of(value)) is not value:
            raise ValueError(f"{name} is another function than the one given")
        return name


def _where(error: Exception, function: Callable[..., Any]) -> str:
    """The last line of the function's file that an error came through."""
    plain = inspect.unwrap(function)
    file = plain.__code__.co_filename if inspect.isfunction(plain) else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""


def call(flag: str, value: str, *arguments: Any) -> Any:
    """What the function of a flag returns.

    Raises:
      UsageError: naming the flag; the function cannot be had, or raised something.
    """
    try:
        function = load(value)
    except ValueError as error:
        raise UsageError(f"--{flag}: {error}") from error
    try:
        return function(*arguments)
    except Exception as error:  # Whatever the function raises.
        raise UsageError(
            f"--{flag}: {plain_name(value)} raised {type(error).__name__}: {error}{_where(error, function)}"
        ) from error


def array(flag: str, value: str, what: str, returned: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What a law returned as an array of the run's precision.

    Raises:
      UsageError: naming the flag; it has another shape, is not made of real numbers, or not of finite ones.
    """
    begin = f"--{flag}: {plain_name(value)} must return {what} of shape {shape}"
    try:
        found = np.asarray(returned)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{begin}, not {type(returned).__name__}") from error
    if found.dtype.kind not in "fiu":
        raise UsageError(f"{begin} and of real numbers, not of type {found.dtype}")
    if found.shape != shape:
        raise UsageError(f"{begin}, not {found.shape}")
    with np.errstate(over="ignore"):
        found = found.astype(dtype)
    if not np.isfinite(found).all():
        raise UsageError(f"{begin}, all finite in {np.dtype(dtype)}")
    return found
