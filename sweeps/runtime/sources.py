"""Code of one's own by its name, module:function, and a hash of its source: every process can import it, and what was
edited is seen.

The hash is that of the whole file in which the function is defined (of its byte code where there is no file). Files
that this one imports are not hashed.
"""

import hashlib
import importlib
import inspect
import operator
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

__all__ = ["described", "load", "name_of", "named", "source_hash"]


def _file(module_name: str) -> Path | None:
    file = getattr(sys.modules.get(module_name), "__file__", None)
    return Path(file).resolve() if file and Path(file).is_file() else None


def source_hash(function: Callable[..., Any], module_name: str = "") -> str:
    """Twelve hexadecimal digits: SHA-256 of the file that the function is defined in, or of its byte code without one.

    Args:
      function: what is hashed.
      module_name: of the module that names it, whose file is hashed as well where it is another one.
    """
    plain = inspect.unwrap(function)
    files = {_file(name) for name in (module_name, getattr(plain, "__module__", "")) if name}
    if inspect.isfunction(plain) and not Path(plain.__code__.co_filename).is_file():
        files = {None}  # Typed into an interpreter or a notebook.
    content = b"".join(file.read_bytes() for file in sorted(file for file in files if file))
    return hashlib.sha256(content or repr(described(plain.__code__)).encode()).hexdigest()[:12]


def described(code: CodeType) -> Any:
    """What two processes say alike of code that is the same: its instructions, names and constants."""
    return code.co_code.hex(), code.co_names, [_constant(part) for part in code.co_consts]


def _constant(value: Any) -> Any:
    if isinstance(value, CodeType):
        return described(value)
    # The order of a set of texts is another one in every process.
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def name_of(function: Any) -> str:
    """module:function, for other processes to import.

    Raises:
      ValueError: they could not.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        raise ValueError(
            f"{name or function!r} has no name that another process could import: "
            "define it at the top level of a module"
        )
    if module == "__main__":
        raise ValueError(
            f"{name} is defined in __main__, which another process cannot import: put it into a module of its own"
        )
    return f"{module}:{name}"


def load(name: str) -> Any:
    """The function of the name module:function or module:function@hash. The working directory is searched as well.

    Raises:
      ValueError: there is none, or its source has another hash.
    """
    plain, _, expected = name.partition("@")
    module_name, _, attribute = plain.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ValueError(f"{plain!r} is not of the form module:function")
    if module_name == "__main__":
        raise ValueError(
            f"{plain} is in __main__, which worker processes cannot import: put it into a module of its own"
        )
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        function = operator.attrgetter(attribute)(importlib.import_module(module_name))
    except AttributeError:
        raise ValueError(f"{module_name} has no {attribute}") from None
    except Exception as error:  # Whatever its file does when it is imported.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(f"{module_name} cannot be imported ({reason})") from error
    if not callable(function):
        raise ValueError(f"{plain} is no function")
    if expected and (actual := source_hash(function, module_name)) != expected:
        raise ValueError(f"{plain} was edited: the hash of its file is {actual} now, and was {expected}")
    return function


def named(name: str) -> str:
    """module:function as module:function@hash.

    Raises:
      ValueError: see `load`.
    """
    return f"{name}@{source_hash(load(name), name.partition(':')[0])}"
