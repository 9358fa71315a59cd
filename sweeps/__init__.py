"""Experiments on `relu_sgd`: what to run, where, and what is kept. Launchers are modules, `python -m sweeps.<name>`.

`sweeps.sweep` maps a function of one's own; it is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.function_map.call import sweep

__all__ = ["sweep"]


def __getattr__(name: str) -> Any:
    if name == "sweep":
        from sweeps.function_map.call import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
