"""The probability of convergence over (d0, d1): Figure 2 of the paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["run"]


def run(out: str | Path, **given: Any) -> "dict[str, xr.Dataset]":
    """A convergence map from Python: `run("DIR", data_law=f, num_samples=100)` is what the command does with such flags.

    See `sweeps.command.app.run` for arguments, result and errors, docs/own_laws.md for laws of one's own.
    """
    from sweeps.command import app  # Workers import this package, and need neither.
    from sweeps.convergence_map.study import ConvergenceMap

    return app.run(ConvergenceMap, out, **given)
