"""Submodules as attributes of their package, imported when they are first used: workers pay for none that they do not
use.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType

__all__ = ["lazily"]


def lazily(
    package: str, path: Iterable[str], names: Iterable[str]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`, by which its public submodules are attributes of it (PEP 562).

    Args:
      package: the name of the package, `__name__` there.
      path: the folders of its submodules, `__path__` there.
      names: what it has besides, `__all__` there.
    """
    submodules = sorted(module.name for module in pkgutil.iter_modules(list(path)) if not module.name.startswith("_"))

    def get(name: str) -> ModuleType:
        if name not in submodules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    return get, lambda: sorted({*names, *submodules})
