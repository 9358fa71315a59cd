"""Experiments on `relu_sgd`: what to run, where, and what is kept. Launchers are modules, `python -m sweeps.<name>`.

`sweeps.sweep` maps a function of one's own over a grid.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.own_study.run import sweep

__all__ = ["sweep"]


def __getattr__(name: str) -> Any:
    """Loads `sweep` when it is asked for, so that a worker process imports nothing that it does not need."""
    if name != "sweep":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sweeps.own_study.run import sweep

    return sweep
