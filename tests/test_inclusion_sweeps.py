"""Launchers around the inclusion and the comparison problem: what they leave, that they resume, and what they refuse."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import xarray as xr
from absl.testing import flagsaver

from sweeps import convergence_map, figures, launch
from sweeps.inclusion_limit import Limit, fitted_rate, steps_per_record
from sweeps.settings import UsageError

ROOT = Path(__file__).parent.parent
TINY = ["--num_samples=10", "--d0=3", "--d1=4,6", "--num_seeds=2", "--long_steps=300", "--horizon=1", "--num_records=5",
        "--step_sizes=0.1,0.05,0.025", "--num_processes=1"]  # fmt: skip


def command(name, *words):
    return subprocess.run(
        [sys.executable, "-m", f"sweeps.{name}", *words],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def limit(tmp_path_factory):
    out = tmp_path_factory.mktemp("limit") / "out"
    done = command("inclusion_limit", f"--out={out}", *TINY)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_what_the_comparison_leaves(limit):
    out, printed = limit
    found = xr.open_zarr(out / "results.zarr", group="hidden_N10", consolidated=False)
    assert dict(found.sizes) == {"d0": 1, "d1": 2, "seed": 2}
    assert (found["status"] == 1).all()
    distances = np.stack([found[f"distance_{k}"].values for k in range(3)], axis=-1)
    assert (distances > 0).all()
    assert np.median(distances[..., 2] / distances[..., 0]) < 0.5  # A quarter of the step, a fraction of the distance.
    assert (found["zeros_that_slide"] <= np.minimum(found["zeros"], found["sliding"])).all()
    assert {path.suffix for path in (out / "figures").iterdir()} == {".png", ".pdf", ".svg"}
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 2
    assert (table["rate_low"] <= table["rate"]).all()
    assert "fitted rate over the cells" in printed


def test_the_same_command_has_nothing_left_to_do(limit):
    out, _ = limit
    before = (out / "summary.csv").read_text()
    again = command("inclusion_limit", f"--out={out}", *TINY)
    assert again.returncode == 0
    assert "0 of 1 tiles to do" in again.stderr
    assert (out / "summary.csv").read_text() == before
    replay = command("inclusion_limit", f"--out={out}", f"--flagfile={out / 'run.flagfile'}", "--num_processes=1")
    assert "0 of 1 tiles to do" in replay.stderr
    other = command("inclusion_limit", f"--out={out}", *TINY, "--base_seed=1")
    assert other.returncode == 2
    assert "--base_seed is 0 there and 1 here" in other.stderr


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("inclusion_limit", ["--num_samples=11"], "--num_samples: 11 is odd"),
        ("inclusion_limit", ["--step_sizes=0.03,0.01"], "--step_sizes: 0.03 fits"),
        ("inclusion_limit", ["--step_sizes=0.01,0.02"], "decreasing"),
        ("comparison_ode", ["--alpha_low=3"], "--alpha_low: 3 is not below"),
        ("comparison_ode", ["--num_processes=2"], "--num_processes: has no effect"),
        ("comparison_ode", ["--c=nan"], "--c: nan"),
    ],
)
def test_bad_flags(name, words, message, tmp_path):
    out = tmp_path / "out"
    done = command(name, f"--out={out}", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_figure_1(tmp_path):
    out = tmp_path / "out"
    few = ["--num_alpha=5", "--num_times=50"]
    done = command("comparison_ode", f"--out={out}", *few)
    assert done.returncode == 0, done.stderr
    assert "as printed: solutions blow up for alpha below 1.7293" in done.stdout
    assert "with 2 alpha t: solutions blow up for alpha below 2.0441" in done.stdout
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 10
    bounded = table[table["outcome"] == "bounded"]
    assert (bounded["largest_y"] < bounded["bound"]).all()
    assert command("comparison_ode", f"--out={out}", *few, "--a=2").returncode == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert "holds other things" in command("comparison_ode", f"--out={tmp_path / 'mine'}").stderr


def a_limit(**changes):
    values = dict(trained_layers=("hidden",), num_samples=(40,), d0=(5,), d1=(6,), num_seeds=1, base_seed=0, batch_size=0,
                  horizon=2.0, num_records=40, step_sizes=(0.05,), energy_tolerance=1e-4, long_steps=1)  # fmt: skip
    return Limit(**values | changes)


def test_time_runs_slower_for_mini_batches():
    assert steps_per_record(a_limit(), 40, 0.05) == 1
    assert steps_per_record(a_limit(batch_size=10), 40, 0.05) == 4
    with pytest.raises(UsageError, match="not a whole number"):
        steps_per_record(a_limit(), 40, 0.03)


def test_fitted_rate():
    steps = np.array([0.1, 0.05, 0.01])
    assert fitted_rate(steps, 3 * steps**0.5) == pytest.approx(0.5)
    assert np.isnan(fitted_rate(steps, np.array([np.inf, 1, 1])))


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(figures, "FORMATS", ("png",))
    with flagsaver.flagsaver():
        yield lambda *words: launch.execute(convergence_map.LAUNCHER, ["convergence_map", *words])


GRID = ["--d0=2,3", "--d1=4", "--num_seeds=2", "--num_samples=10", "--num_processes=1", "--trained_layers=hidden"]


def test_map_of_the_inclusion(in_process, tmp_path, capsys):
    out = tmp_path / "out"
    in_process(f"--out={out}", *GRID, "--dynamics=inclusion", "--flow_time=3", "--tolerance=0.9")
    found = xr.open_zarr(out / "results.zarr", group="hidden", consolidated=False)
    assert found["relative_error"].dtype == np.float64
    assert set(np.unique(found["status"])) <= {1, 2}
    reached = found["status"] == 1
    assert (found["relative_error"].where(reached, 0) < 0.9).all()
    assert (found["flow_time"].where(~reached, 3) == 3).all()
    assert (found["energy_residual"] < 0.05).all()
    assert "the differential inclusion itself" in capsys.readouterr().out
    assert "--dynamics=inclusion" in (out / "run.flagfile").read_text()
    assert "learning_rate" not in (out / "run.flagfile").read_text()


def test_map_over_the_slope_at_zero(in_process, tmp_path):
    out = tmp_path / "out"
    in_process(
        f"--out={out}", *GRID, "--relu_at_zero=0,0.5,random,minimum_norm", "--num_steps=20", "--precision=float64"
    )
    names = [f"hidden_relu_at_zero_{slope}" for slope in ("0.0", "0.5", "random", "minimum_norm")]
    found = [xr.open_zarr(out / "results.zarr", group=name, consolidated=False) for name in names]
    for other in found[1:]:  # Generic data meet no exact zero in so few steps.
        np.testing.assert_allclose(other["relative_error"], found[0]["relative_error"], rtol=1e-8)
    table = pandas.read_csv(out / "summary.csv")
    assert set(table["trained_layers"]) == {"hidden"}
    assert [f"hidden_relu_at_zero_{slope}" for slope in dict.fromkeys(table["relu_at_zero"])] == names
