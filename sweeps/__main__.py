"""The studies: python -m sweeps lists them, python -m sweeps NAME runs one, as python -m sweeps.NAME does."""

import ast
import pkgutil
import runpy
import sys
from pathlib import Path

import sweeps


def studies() -> dict[str, str]:
    """Name to what it answers: the first line of its study.py, or of the package, which is not imported for that."""
    found = {}
    for module in pkgutil.iter_modules(sweeps.__path__):
        folder = Path(sweeps.__path__[0]) / module.name
        if (folder / "__main__.py").exists():
            source = next(path for name in ("study.py", "__init__.py") if (path := folder / name).exists())
            found[module.name] = (ast.get_docstring(ast.parse(source.read_text())) or "").split("\n")[0]
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in studies():
        name = sys.argv.pop(1)
        runpy.run_module(f"sweeps.{name}", run_name="__main__", alter_sys=True)
    elif sys.argv[1:] in ([], ["--help"]):
        width = max(map(len, studies()))
        print("\n".join(f"python -m sweeps.{name.ljust(width)}  {text}" for name, text in studies().items()))
    else:
        print(f"sweeps: {sys.argv[1]!r} is none of {', '.join(studies())}", file=sys.stderr)
        raise SystemExit(2)
