"""Whether this program runs the code of its files: a law that a script has replaced is no part of a configuration.

A worker process imports the modules anew, and would draw by the law of the file where its parent has another; and the
store would name either by the same configuration.
"""

import functools
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from sweeps.runtime import sources
from sweeps.study import UsageError

__all__ = ["check", "check_here", "checked", "fingerprints", "is_as_in_file"]

_PACKAGES = ("relu_sgd", "sweeps")
# What a process fills as it runs.
_CACHES = {("sweeps.runtime.engine", "_PROGRAMS")}


def _described(value: Any) -> Any:
    """What two processes that have imported the same files say alike of a value; its type where it says no more."""
    if inspect.isfunction(plain := inspect.unwrap(value) if callable(value) else value):
        return value.__module__, plain.__qualname__, sources.described(plain.__code__)
    if isinstance(value, type):
        return value.__module__, value.__qualname__
    if isinstance(value, Mapping):
        return [(_described(key), _described(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [_described(part) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return [(name, _described(getattr(value, name))) for name in value.__dataclass_fields__]
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__qualname__


def _modules() -> dict[str, ModuleType]:
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] in _PACKAGES}
    return dict(sorted(ours.items()))


def _fingerprint(module: ModuleType) -> str:
    public = {
        key: _described(value)
        for key, value in vars(module).items()
        if not key.startswith("__") and not isinstance(value, ModuleType) and (module.__name__, key) not in _CACHES
    }
    return hashlib.sha256(repr(sorted(public.items())).encode()).hexdigest()[:16]


def fingerprints() -> tuple[tuple[str, str], ...]:
    """Of every module of this project that is loaded: its name, and a hash of the functions and tables in it."""
    return tuple((name, _fingerprint(module)) for name, module in _modules().items())


def is_as_in_file(module: ModuleType) -> bool:
    """Whether a module holds what its file makes when it is run once more, beside it."""
    if module.__spec__ is None or module.__spec__.loader is None:
        return True
    copy = importlib.util.module_from_spec(module.__spec__)
    try:
        module.__spec__.loader.exec_module(copy)
    except Exception:  # Whatever was written into it.
        return False
    return _fingerprint(copy) == _fingerprint(module)


def check() -> None:
    """Refuses functions of relu_sgd that are not its own, wherever they run.

    Raises:
      UsageError: a function in a module of relu_sgd was defined elsewhere.
    """
    for name, module in _modules().items():
        for key in getattr(module, "__all__", ()) if name.startswith("relu_sgd") else ():
            value = getattr(module, key)
            if inspect.isfunction(value) and not value.__module__.startswith("relu_sgd"):
                raise UsageError(
                    f"{name}.{key} was replaced by {value.__module__}.{value.__qualname__}, which the configuration "
                    "does not name: results would pass for those of the original"
                )


def check_here() -> None:
    """Refuses what workers would refuse, where this process does their work.

    Raises:
      UsageError: a module of the project, other than of reports, is not as in its file.
    """
    _check_as_in_files(fingerprints(), tuple(_source(module) for module in _modules().values()))


def _source(module: ModuleType) -> str:
    """A hash of a module's file; empty where that cannot be read."""
    try:
        return hashlib.sha256(Path(module.__file__ or "").read_bytes()).hexdigest()
    except OSError:
        return ""


@functools.lru_cache(maxsize=8)
def _check_as_in_files(made: tuple[tuple[str, str], ...], sources: tuple[str, ...]) -> None:
    """Remembered, where it passes, for the very modules and files that passed: running all files again takes 0.2 s."""
    del made, sources
    for name, module in _modules().items():
        of_reports = name.startswith("sweeps.reporting") or name.endswith((".report", ".figures", ".__main__"))
        if not of_reports and not is_as_in_file(module):
            raise UsageError(
                f"{name} was changed after it was imported, which the configuration does not name; nothing was computed"
            )


@functools.cache
def _compare(theirs: tuple[tuple[str, str], ...]) -> None:
    own = dict(fingerprints())
    different = [name for name, value in theirs if own.get(name, value) != value]
    if different:
        raise UsageError(
            f"{different[0]} was changed after it was imported, which worker processes do not see and the "
            "configuration does not name; nothing was computed"
        )


def checked(run: Callable[..., Any], theirs: tuple[tuple[str, str], ...], *arguments: Any) -> Any:
    """`run` in a worker process, which first compares its modules with the fingerprints of its parent's.

    Raises:
      UsageError: they differ.
    """
    _compare(theirs)
    return run(*arguments)
