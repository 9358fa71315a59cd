"""Functions of one's own where a law or a rule has a name: module:function, remembered with a hash of the module's file.

A value is "module:function@hash". So store, flag file and worker processes name the code that is meant, and an edited
file is refused. The hash, of 12 hexadecimal digits, is SHA-256 of the bytes of the file that `module` is in; what that
file imports or reads is not in it.
"""

import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sweeps.command.parsers import Choice
from sweeps.runtime import patched
from sweeps.study import UsageError

__all__ = ["Law", "array", "call", "is_own", "load", "name_of", "plain_name"]

# The hash of a module's file when it was imported: an edit since then is not what this process runs.
_IMPORTED: dict[str, str] = {}


def is_own(value: Any) -> bool:
    """Whether a value names a function, and not one of the choices that are built in."""
    return isinstance(value, str) and ":" in value


def plain_name(value: str) -> str:
    """A value without its hash."""
    return value.partition("@")[0]


def _imported(name: str) -> ModuleType:
    if name == "__main__":
        raise ValueError("worker processes cannot import from __main__; put the function into a module of its own")
    if not any(Path(folder or ".").resolve() == Path.cwd() for folder in sys.path):
        sys.path.append(os.getcwd())
    known = sys.modules.get(name)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as error:  # Whatever the module raises.
        raise ValueError(f"cannot import {name}: {type(error).__name__}: {error}") from error
    if known is not None and name not in _IMPORTED and not patched.is_as_in_file(module):
        raise ValueError(f"{name} is not what its file says; it was edited or changed after it was imported")
    return module


def _hash_of(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if file is None:
        raise ValueError(f"{module.__name__} is in no file")
    found = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    if _IMPORTED.setdefault(module.__name__, found) != found:
        raise ValueError(f"{Path(file).name} was edited after this process imported it; begin anew")
    return found


def _resolved(name: str) -> tuple[Callable[..., Any], str]:
    """The function of module:function, and the hash of its module's file."""
    module_name, _, path = name.partition(":")
    if not module_name or not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise ValueError(f"{name!r} is not of the form module:function")
    module = _imported(module_name)
    try:
        function = functools.reduce(getattr, path.split("."), module)
    except AttributeError as error:
        raise ValueError(f"{module_name} has no {path}") from error
    if not callable(function):
        raise ValueError(f"{name} is not a function but of type {type(function).__name__}")
    return function, _hash_of(module)


def name_of(function: Callable[..., Any]) -> str:
    """module:function of a function, under which every process can import it.

    Raises:
      ValueError: there is no such name, as for a lambda, a function inside another one, or one of `__main__`.
    """
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(path, str)) or "<" in path:
        raise ValueError(
            f"{path or type(function).__name__} has no name that worker processes can import; define a function at the "
            "top of a module"
        )
    name = f"{module}:{path}"
    if _resolved(name)[0] is not function:
        raise ValueError(f"{name} is another function than the one given")
    return name


@functools.lru_cache(maxsize=64)
def load(value: str) -> Callable[..., Any]:
    """The function that a value names; once loaded, edits of its file change nothing in this process.

    Raises:
      ValueError: it cannot be imported, or its file is not the one that the value was made from.
    """
    name, _, expected = value.partition("@")
    function, found = _resolved(name)
    if found != expected:
        raise ValueError(f"the file of {name} was edited: its hash was {expected} and is {found} now")
    return function


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
        function, found = _resolved(argument)
        try:
            inspect.signature(function).bind(*self.signature.split(", "))
        except TypeError as error:
            raise ValueError(f"{argument} must take ({self.signature}): {error}") from error
        except ValueError:
            pass  # Python cannot tell.
        return f"{argument}@{found}"

    def serialize(self, value: Any) -> str:
        """The name."""
        return name_of(value) if callable(value) else str(value)


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
