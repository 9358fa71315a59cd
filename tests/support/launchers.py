"""Studies in the process of the tests."""

import contextlib
import io
from typing import NamedTuple

import jax
import pytest
from absl.testing import flagsaver

from sweeps.boundary.study import BoundaryStudy
from sweeps.command import app
from sweeps.comparison_ode.study import Comparison
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.inclusion_limit.study import Limit
from sweeps.reporting import style
from sweeps.step_counts.study import StepCounts
from sweeps.study import Tile, Variant
from sweeps.trajectories.study import Trajectories
from sweeps.width_bounds.study import WidthBounds
from sweeps.zeros.study import Zeros

STUDIES = {
    study.name: study
    for study in (BoundaryStudy, Comparison, ConvergenceMap, Limit, StepCounts, Trajectories, WidthBounds, Zeros)
}


def sized(layers, d0, d1, num_seeds):
    """A tile of networks."""
    return Tile(Variant(trained_layers=layers), {"d0": d0, "d1": d1}, range(num_seeds))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def sketched(patch):
    """Figures as small pictures without a layout, which is most of what they cost; they have tests of their own."""

    def save(figure, folder, name, configuration):
        del configuration
        folder.mkdir(parents=True, exist_ok=True)
        figure.set_layout_engine("none")
        figure.savefig(folder / f"{name}.png", dpi=20)
        return [folder / f"{name}.png"]

    patch.setattr(style, "FORMATS", ("png",))
    patch.setattr(style, "save", save)


def command(name, *words):
    """The study in this process, its figures sketched."""
    out, error, status = io.StringIO(), io.StringIO(), 0
    with (
        flagsaver.flagsaver(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        sketched(patch)
        try:
            app.execute(STUDIES[name], [name, *words])
        except SystemExit as left:
            status = left.code
    jax.config.update("jax_enable_x64", True)
    return Done(status, out.getvalue(), error.getvalue())
