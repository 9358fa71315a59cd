"""Launchers in the process of the tests."""

import contextlib
import io
from typing import NamedTuple

import jax
import pytest
from absl.testing import flagsaver

from sweeps import (
    comparison_ode,
    convergence_map,
    figures,
    inclusion_limit,
    launch,
    step_counts,
    trajectories,
    width_bounds,
    zeros,
)

LAUNCHERS = {
    module.LAUNCHER.name: module.LAUNCHER
    for module in (comparison_ode, convergence_map, inclusion_limit, step_counts, trajectories, width_bounds, zeros)
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(name, *words):
    """The launcher in this process, with its figures in one format."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with (
        flagsaver.flagsaver(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        patch.setattr(figures, "FORMATS", ("png",))
        try:
            launch.execute(LAUNCHERS[name], [name, *words])
        except SystemExit as left:
            status = left.code
    jax.config.update("jax_enable_x64", True)
    return Done(status, out.getvalue(), error.getvalue())
