"""Functions and dynamics of one's own: how worker processes come by them, and how an edit of their code is seen."""

import ast
import collections
import dataclasses
import dis
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import jax
import numpy as np

from sweeps.study import UsageError

__all__ = ["Subject", "subject"]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A function or another object, and what names its code. Other processes import it by its name.

    Attributes:
      value: the object.
      name: "module:function", for people.
      source: twelve hexadecimal digits of the file that it is in, or of its code and what that captures.
      module, path: where other processes find it; None where they cannot.
    """

    value: Any
    name: str
    source: str
    module: str | None
    path: str

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _load, (self.module, self.path, self.source)


def _load(module: str, path: str, source: str) -> Subject:
    """The object in a worker process.

    Raises:
      UsageError: its file is no longer the one that its parent has imported.
    """
    home = sys.modules["__main__"] if module == "__main__" else importlib.import_module(module)
    name = _title(home, path)
    if _file_hash(home) != source:
        raise UsageError(f"the file of {name} was edited while its sweep ran; begin anew")
    return Subject(functools.reduce(getattr, path.split("."), home), name, source, module, path)


def subject(value: Any, home: str | None = None) -> Subject:
    """What names an object.

    Args:
      value: a function, or dynamics.
      home: a module in which dynamics may be a variable.

    Raises:
      UsageError: its code cannot be told apart from other code, or is no longer that of its file.
    """
    module, path = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if path is None and home in sys.modules:
        names = [name for name, known in vars(sys.modules[home]).items() if known is value]
        module, path = (home, names[0]) if names else (module, type(value).__qualname__)
    owner = sys.modules.get(module or "")
    if owner is not None and path is not None and _at(owner, path) is value and _file(owner) is not None:
        _check_current(owner, value)
        importable = module if _is_importable(owner) else None
        return Subject(value, _title(owner, path), _file_hash(owner), importable, path)
    described = repr(_described(value, ()))
    path = path or type(value).__qualname__
    name = path if owner is None else _title(owner, path)
    return Subject(value, name, _short_hash(described.encode()), None, path)


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _at(module: ModuleType, path: str) -> Any:
    try:
        return functools.reduce(getattr, path.split("."), module)
    except AttributeError:
        return None


def _file(module: ModuleType) -> Path | None:
    name = getattr(module, "__file__", None)
    return Path(name) if name and Path(name).is_file() else None


def _file_hash(module: ModuleType) -> str:
    file = _file(module)
    return "" if file is None else _short_hash(file.read_bytes())


def _title(module: ModuleType, path: str) -> str:
    """module:path, with the name of the file where a script is run."""
    file = _file(module)
    is_script = module.__name__ in ("__main__", "__mp_main__") and file is not None
    return f"{file.stem if is_script and file else module.__name__}:{path}"


def _is_importable(module: ModuleType) -> bool:
    """Whether a process that is spawned finds the same module.

    A script's is imported there as `multiprocessing` does it: once more, under another name than `__main__`.
    """
    if module.__name__ == "__main__":
        return _is_guarded()
    parent = module.__name__.rpartition(".")[0]
    path = getattr(sys.modules.get(parent), "__path__", None) if parent else None
    specs = (finder.find_spec(module.__name__, path, None) for finder in sys.meta_path)
    found = next((spec for spec in specs if spec is not None), None)
    file = _file(module)
    return found is not None and found.origin is not None and file is not None and _same(found.origin, file)


def _check_current(module: ModuleType, value: Any) -> None:
    """Refuses a function whose file says something else by now, whose hash would not be that of what runs.

    It looks at the function, and at the functions and plain numbers and texts of the same module that it reads.

    Raises:
      UsageError: the file was edited, or a number of the module replaced, after it was imported.
    """
    file, loader = _file(module), getattr(module, "__loader__", None)
    # An import hook that rewrites code, as pytest's, has no other code to compare with.
    if file is None or (module.__name__ != "__main__" and not hasattr(loader, "get_code")):
        return
    text = file.read_text()
    codes: dict[str, list[Any]] = {}
    _collect(compile(text, file, "exec", dont_inherit=True), codes)
    literals = _literals(ast.parse(text))
    waiting, seen = [inspect.unwrap(value) if callable(value) else value], set()
    while waiting:
        function = waiting.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen or not _same(code.co_filename, file):
            continue
        seen.add(code)
        if _code(code) not in codes.get(code.co_qualname, []):
            raise UsageError(f"{file.name} was edited after {code.co_qualname} was imported from it; begin anew")
        for name in _names(code):
            known = function.__globals__.get(name)
            if name in literals and literals[name] != known:
                raise UsageError(f"{name} is {known!r:.40}, and {literals[name]!r:.40} in {file.name}")
            waiting.append(inspect.unwrap(known) if callable(known) else known)


def _collect(code: CodeType, codes: dict[str, list[Any]]) -> None:
    for part in code.co_consts:
        if isinstance(part, CodeType):
            codes.setdefault(part.co_qualname, []).append(_code(part))
            _collect(part, codes)


def _literals(tree: ast.Module) -> dict[str, Any]:
    """The numbers and texts that a module assigns at its top, by name; names that are assigned once."""
    stores = collections.Counter(
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    )
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and stores[target.id] == 1
    }


def _same(one: str, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_guarded() -> bool:
    """Whether the script that is run calls us under `if __name__ == "__main__":`, or is no file.

    Otherwise a process that imports it would come here too.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            file = Path(frame.f_code.co_filename)
            if not file.is_file():
                return False
            for node in ast.parse(file.read_text()).body:
                if node.lineno <= frame.f_lineno <= (node.end_lineno or node.lineno):
                    names = ast.walk(node.test) if isinstance(node, ast.If) else ()
                    return any(isinstance(name, ast.Name) and name.id == "__name__" for name in names)
        frame = frame.f_back
    return False


def _described(value: Any, above: tuple[int, ...]) -> Any:
    """What tells an object apart from others, in plain data: its code, and what that captures.

    Args:
      value: the object.
      above: what it is part of, by identity; these are not described again.

    Raises:
      UsageError: there is something in it that cannot be told apart.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype) or value is Ellipsis:
        return repr(value)
    if id(value) in above:
        return "above"
    inside = functools.partial(_described, above=(*above, id(value)))
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        return "array", str(array.dtype), array.shape, _short_hash(np.ascontiguousarray(array).tobytes())
    if isinstance(value, ModuleType | type):
        return value.__name__, getattr(value, "__module__", "")
    if isinstance(value, functools.partial):
        return "partial", inside(value.func), inside(value.args), inside(value.keywords)
    if isinstance(value, Mapping):
        return [(repr(key), inside(part)) for key, part in value.items()]
    if isinstance(value, list | tuple | range):
        return type(value).__name__, [inside(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(inside(part)) for part in value)
    if inspect.ismethod(value):
        return inside(value.__func__), inside(value.__self__)
    plain = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(plain):
        return _described_function(plain, inside)
    if inspect.isroutine(plain):
        return getattr(plain, "__module__", ""), plain.__qualname__
    if plain is not value:
        return inside(plain)
    state = getattr(value, "__dict__", None)
    if dataclasses.is_dataclass(value):
        state = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if state is None:
        raise UsageError(f"{type(value).__name__} {value!r:.40} is captured, and its value cannot be told apart")
    return type(value).__module__, type(value).__qualname__, inside(state)


def _described_function(function: Any, inside: Callable[[Any], Any]) -> Any:
    code = function.__code__
    captured = [cell.cell_contents for cell in function.__closure__ or ()]
    file = Path(code.co_filename)
    # A file's hash covers what its functions call; what was typed is followed name by name.
    if file.is_file():
        used: Any = _short_hash(file.read_bytes())
    else:
        used = [inside(function.__globals__[name]) for name in _names(code) if name in function.__globals__]
    defaults = inside(function.__defaults__), inside(function.__kwdefaults__)
    return function.__qualname__, _code(code), used, defaults, inside(captured)


def _names(code: CodeType) -> list[str]:
    """The global names that a function reads, and the functions inside it."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(own.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType))))


def _code(code: CodeType) -> Any:
    constants = [_code(part) if isinstance(part, CodeType) else _constant(part) for part in code.co_consts]
    return code.co_code.hex(), code.co_names, constants


def _constant(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
