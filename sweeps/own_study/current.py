"""Whether a function is still what its file says: the store names the file, and a process runs what it imported."""

import ast
import collections
import dis
import inspect
import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

from sweeps.runtime import sources
from sweeps.study import UsageError

__all__ = ["check_current"]


def check_current(value: Any) -> None:
    """Refuses a function whose file says something else by now.

    It looks at the function, and at the functions, numbers and texts of the same module that it reads.

    Raises:
      UsageError: the file was edited, or a number of the module replaced, after it was imported.
    """
    plain = inspect.unwrap(value) if callable(value) else value
    module = sys.modules.get(getattr(plain, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")
    # An import hook that rewrites code, as pytest's, has no other code to compare with.
    is_rewritten = module is None or not (module.__name__ == "__main__" or hasattr(module.__loader__, "get_code"))
    if is_rewritten or not file.is_file():
        return
    text = file.read_text()
    codes: dict[str, list[Any]] = {}
    _collect(compile(text, file, "exec", dont_inherit=True), codes)
    literals = _literals(ast.parse(text))
    waiting, seen = [plain], set()
    while waiting:
        function = waiting.pop()
        code = getattr(function, "__code__", None)
        if code is None or code in seen or os.path.realpath(code.co_filename) != os.path.realpath(file):
            continue
        seen.add(code)
        if sources.described(code) not in codes.get(code.co_qualname, []):
            raise UsageError(f"run: {file.name} was edited after {code.co_qualname} was imported from it; begin anew")
        for name in _names(code):
            known = function.__globals__.get(name)
            if name in literals and literals[name] != known:
                raise UsageError(f"run: {name} is {known!r:.40}, and {literals[name]!r:.40} in {file.name}")
            waiting.append(inspect.unwrap(known) if callable(known) else known)


def _collect(code: CodeType, codes: dict[str, list[Any]]) -> None:
    for part in code.co_consts:
        if isinstance(part, CodeType):
            codes.setdefault(part.co_qualname, []).append(sources.described(part))
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


def _names(code: CodeType) -> list[str]:
    """The global names that a function reads, and the functions inside it."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return sorted(own.union(*(_names(part) for part in code.co_consts if isinstance(part, CodeType))))
