"""Launchers around the inclusion, the comparison problem and the widths: what they leave, that they resume, and what
they refuse.
"""

import json
import shutil

import numpy as np
import pandas
import pytest
import xarray as xr
from support.launchers import command

from sweeps.inclusion_limit.report import count_zeros, fitted_rate, summarize
from sweeps.inclusion_limit.study import Limit, steps_per_record
from sweeps.study import UsageError, Variant
from sweeps.width_bounds import tables as width_bounds

TINY = ["--num_samples=10", "--d0=3", "--d1=4,6", "--num_seeds=2", "--long_steps=300", "--horizon=1", "--num_records=5",
        "--step_sizes=0.1,0.05,0.025", "--num_processes=1"]  # fmt: skip
NARROW = ["--num_samples=8,16", "--delta=0.5,0.8", "--num_seeds=3", "--num_processes=1", "--max_operations=1e9"]


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
    for k in range(2):
        assert (found[f"zeros_that_slide_{k}"] <= np.minimum(found[f"zeros_{k}"], found["sliding"])).all()
    assert (out / "figures" / "inclusion_limit.png").exists()
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 2
    assert (table["rate_low"] <= table["rate"]).all()
    assert "fitted rate over the cells, unique solutions" in printed
    zeros = pandas.read_csv(out / "zeros.csv")
    assert list(zeros["long_rate"]) == [0.15, 0.03] * 2
    assert (zeros["runs"] == 2).all()


def test_the_same_command_has_nothing_left_to_do(limit):
    out, _ = limit
    before = (out / "summary.csv").read_text()
    sessions = (out / "sessions.jsonl").read_text()
    assert command("inclusion_limit", f"--out={out}", *TINY).returncode == 0
    assert (out / "summary.csv").read_text() == before
    replay = command("inclusion_limit", f"--out={out}", f"--flagfile={out / 'run.flagfile'}", "--num_processes=1")
    assert replay.returncode == 0, replay.stderr
    assert (out / "sessions.jsonl").read_text() == sessions  # A line is added where a tile is done.
    other = command("inclusion_limit", f"--out={out}", *TINY, "--base_seed=1")
    assert other.returncode == 2
    assert "--base_seed is 0 there and 1 here" in other.stderr


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("inclusion_limit", ["--num_samples=11"], "--num_samples: 11 is odd"),
        ("inclusion_limit", ["--step_sizes=0.03,0.01"], "--step_sizes: 0.03 fits"),
        ("inclusion_limit", ["--step_sizes=0.01,0.02"], "decreasing"),
        ("inclusion_limit", ["--long_rates=0.01,0.02"], "decreasing"),
        ("inclusion_limit", ["--long_rates=0.1,1e-9"], "more than 2^31 - 1"),
        ("inclusion_limit", ["--long_momentum=1"], "--long_momentum"),
        ("comparison_ode", ["--alpha_low=3"], "--alpha_low: 3 is not below"),
        ("comparison_ode", ["--num_processes=2"], "Unknown command line flag 'num_processes'"),
        ("comparison_ode", ["--c=nan"], "--c: nan"),
        ("comparison_ode", ["--half_width=10"], "--half_width: 10 is not below the threshold 1.7293"),
        ("width_bounds", ["--num_samples=9"], "--num_samples: 9 is odd"),
        ("width_bounds", ["--num_samples=0"], "--num_samples: sizes must be at least 1"),
        ("width_bounds", ["--delta=1"], "--delta: 1 is not a finite number in (0, 1)"),
        ("width_bounds", ["--delta=0.7,0.5"], "--delta: values must be increasing"),
        ("width_bounds", ["--delta=0.01"], "--delta: 0.01 gives d0 = 1"),
        ("width_bounds", ["--rho=-1"], "--rho: -1 is not"),
        ("width_bounds", ["--confidence=1"], "--confidence: 1 is not"),
        ("width_bounds", ["--scaling=mine"], "--scaling: 'mine' is not one of unit, lecun"),
        ("width_bounds", ["--lanes=2"], "Unknown command line flag 'lanes'"),
        ("width_bounds", ["--map=nowhere"], "--map: there are no results"),
        ("width_bounds", ["--d0=3"], "Unknown command line flag 'd0'"),
    ],
)
def test_bad_flags(name, words, message, tmp_path):
    out = tmp_path / "out"
    done = command(name, f"--out={out}", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()


def test_two_samples_are_enough(tmp_path):
    """Multiples of N coincide then, and N^0.99 is 2 once rounded."""
    out, words = tmp_path / "out", ["--num_samples=2", "--delta=0.99", "--num_seeds=1", "--max_operations=1e4"]
    done = command("width_bounds", f"--out={out}", *words, "--num_processes=1")
    assert done.returncode == 0, done.stderr
    results = xr.open_zarr(out / "results.zarr", group="widths", consolidated=False)
    assert results["d0"].item() == 2
    ratios = [results[f"alpha_ratio_{multiple}N"].item() for multiple in ("1", "1.25", "2", "4")]
    assert ratios[0] == ratios[1]
    assert np.isfinite(ratios).all()


def test_figure_1(tmp_path, caplog):
    out = tmp_path / "out"
    few = ["--num_alpha=5", "--num_times=50"]
    with caplog.at_level("INFO"):
        done = command("comparison_ode", f"--out={out}", *few)
    assert "drawing figures" in caplog.messages
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


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    out = tmp_path_factory.mktemp("widths") / "out"
    done = command("width_bounds", f"--out={out}", *NARROW)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_what_the_widths_leave(narrow):
    out, printed = narrow
    found = xr.open_zarr(out / "results.zarr", group="widths", consolidated=False)
    assert dict(found.sizes) == {"num_samples": 2, "delta": 2, "seed": 3}
    assert found["delta"].values.tolist() == [0.5, 0.8]
    assert found["d0"].values[..., 0].tolist() == [[3, 5], [4, 9]]
    assert (found["status"] == 1).all()
    for scaling in ("unit", "lecun"):
        expected, measured = found[f"{scaling}_expected_10"], found[f"{scaling}_measured_10"]
        wide = expected.values <= 1e9 / found["num_samples"].values[:, None, None] ** 2
        assert np.isfinite(measured.values[wide]).all()
        ratio = (measured / expected).values[np.isfinite(measured.values)]
        assert ((ratio > 0.4) & (ratio < 2.1)).all()
        assert (found[f"{scaling}_expected_sharp"] < expected).all()
        assert (expected <= found[f"{scaling}_expected_11"] * (1 + 1e-9)).all()
        path, local = found[f"{scaling}_expected_path"], found[f"{scaling}_expected_local"]
        np.testing.assert_allclose(local, 4 * path)  # At these sizes both are above N.
        assert (found[f"{scaling}_expected_descent"] > path).all()
        assert np.isfinite(found[f"{scaling}_measured_path"]).all()
    assert (found["lemma_c1_printed"] < found["lemma_c1_repaired"]).all()
    for less, more in ((1, 2), (2, 4)):  # alpha_0 grows with the width.
        smaller, larger = found[f"alpha_ratio_{less}N"], found[f"alpha_ratio_{more}N"]
        assert (smaller < larger * np.sqrt(more / less) * (1 + 1e-9)).all()
    assert found["alpha_ratio_1N"].median() < 0.5 < found["alpha_ratio_4N"].median()
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 2 * 2 * 2 * 6
    assert (table["width_low"] <= table["width"]).all()
    assert (table["width"] <= table["width_at_confidence"]).all()
    assert (table["coverage"] == 0.75).all()  # Of three values, from the least to the largest.
    exponents = pandas.read_csv(out / "exponents.csv")
    assert len(exponents) == 2 * 2 * 6
    theory = exponents.set_index(["scaling", "delta", "condition"])["exponent_of_theory"]
    assert theory["lecun", 0.5, "path"] == 1
    assert theory["unit", 0.8, "path"] == pytest.approx(0.6)
    assert theory["unit", 0.5, "(10)"] == 1
    bounds = pandas.read_csv(out / "table_1.csv").query("num_samples == 16 and delta == 0.5")
    assert bounds.set_index("result")["width_with_unit_constant"]["Nguyen 2021, shallow"] == 256
    assert (out / "figures" / "width_bounds.png").exists()
    assert "at d1 = 1 N" in printed


def test_the_widths_are_resumed(narrow, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(narrow[0], out)
    (out / "results.zarr" / "widths" / "status" / "c" / "1" / "0" / "0").unlink()
    assert command("width_bounds", f"--out={out}", f"--flagfile={out / 'run.flagfile'}").returncode == 0
    assert json.loads((out / "sessions.jsonl").read_text().splitlines()[-1])["tiles"] == 1
    first, second = (
        xr.open_zarr(path / "results.zarr", group="widths", consolidated=False) for path in (out, narrow[0])
    )
    xr.testing.assert_allclose(first, second, rtol=1e-9)
    refused = command("width_bounds", f"--out={out}", *NARROW, "--rho=2")
    assert refused.returncode == 2
    assert "--rho is 1.0 there and 2.0 here" in refused.stderr


def test_widths_beside_a_map(narrow, tmp_path):
    folder = tmp_path / "map"
    done = command("convergence_map", f"--out={folder}", *GRID, "--d1=4,8", "--num_steps=100")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    shutil.copytree(narrow[0], out)
    done = command("width_bounds", f"--out={out}", "--figures_only", f"--map={folder}")
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(out / "map.csv")
    summary = pandas.read_csv(folder / "summary.csv")
    for row in table.itertuples():
        cell = summary[(summary["d0"] == row.d0) & (summary["probability"] >= 0.5)]
        assert row.half_converge_at == (cell["d1"].min() if len(cell) else np.inf)
        assert row.certified_10_unit_rows > 1000
        assert row.certified_path_unit_rows < row.certified_sharp_unit_rows
    assert "half of a map's networks" in done.stdout
    wrong = command("width_bounds", f"--out={out}", "--figures_only", f"--map={out}")
    assert wrong.returncode == 2
    assert "holds no convergence map" in wrong.stderr


def test_half_convergence():
    d1 = np.array([2, 4, 6, 8])
    low, high = np.array([0, 0.2, 0.4, 0.6]), np.array([0.3, 0.7, 1, 1])
    assert width_bounds.half_convergence(d1, np.array([0, 0.4, 0.9, 0.3]), low, high) == (6, 4, 8)
    assert width_bounds.half_convergence(d1, np.full(4, np.nan), low, high)[0] == np.inf


def a_limit(**changes):
    values = dict(
        **dict(trained_layers=("hidden",), num_samples=(40,), d0=(5,), d1=(6,), num_seeds=1, base_seed=0, batch_size=0),
        **dict(horizon=2.0, num_records=40, step_sizes=(0.05, 0.025), path_tolerance=1e-4),
        **dict(long_steps=1, long_rates=(0.1,), long_momentum=0.9),
    )
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


def test_runs_that_branch_have_a_rate_of_their_own():
    """Three seeds: first order, half an order, and one that branches after the horizon and converges with order 2."""
    steps, rates = np.array([0.1, 0.01]), np.array([1.0, 0.5, 2.0])
    seeds = lambda values: (("d0", "d1", "seed"), np.array(values, float)[None, None])
    data = {
        name: seeds([1, 1, 1])
        for name in ("sliding", "resting", "inclusion_relative_error", "energy_residual", "status")
    }
    data |= {f"distance_{k}": seeds(step**rates) for k, step in enumerate(steps)}
    data["branched_at"] = seeds([np.inf, 1.5, 3.0])
    row = summarize(
        {Variant("both", num_samples=40): xr.Dataset(data, coords={"d0": [5], "d1": [6]})}, tuple(steps), horizon=2.0
    ).iloc[0]
    assert (row["runs"], row["rates"], row["branched"], row["branched_later"]) == (3, 2, 1, 1)
    assert row["rate"] == pytest.approx(1.5)
    assert row["rate_branched"] == pytest.approx(0.5)


def test_shares_of_zeros_leave_out_what_diverged():
    """Three seeds, of which the last has diverged at the first rate, and the second has no zero at the other."""
    seeds = lambda *values: (("d0", "d1", "seed"), np.array(values, float)[None, None])
    data = {"status": seeds(1, 1, 3), "sliding": seeds(4, 5, 8)}
    data |= {
        "zeros_0": seeds(2, 4, -1),
        "zeros_that_slide_0": seeds(1, 4, 0),
        "long_relative_error_0": seeds(0.1, 0.2, np.inf),
    }
    data |= {
        "zeros_1": seeds(4, 0, 2),
        "zeros_that_slide_1": seeds(3, 0, 2),
        "long_relative_error_1": seeds(0.1, 0.4, 0.3),
    }
    table = count_zeros(
        {Variant("hidden", num_samples=40): xr.Dataset(data, coords={"d0": [5], "d1": [6]})}, (0.1, 0.01)
    )
    assert list(table["runs"]) == [2, 3]
    np.testing.assert_allclose(table["zeros"], [3, 2])
    np.testing.assert_allclose(table["zeros_that_slide"], [0.75, (0.75 + 1) / 2])
    np.testing.assert_allclose(table["sliding_that_are_zero"], [(1 / 4 + 4 / 5) / 2, (3 / 4 + 0 + 2 / 8) / 3])
    np.testing.assert_allclose(table["largest_relative_error"], [0.2, 0.4])
    assert (table["zeros_that_slide_low"] >= 0).all()
    assert (table["zeros_that_slide_high"] <= 1).all()


GRID = ["--d0=2,3", "--d1=4", "--num_seeds=2", "--num_samples=10", "--num_processes=1", "--trained_layers=hidden"]


def test_map_of_the_inclusion(tmp_path):
    out = tmp_path / "out"
    done = command("convergence_map", f"--out={out}", *GRID, "--dynamics=inclusion", "--flow_time=3", "--tolerance=0.9")
    assert done.returncode == 0, done.stderr
    found = xr.open_zarr(out / "results.zarr", group="hidden", consolidated=False)
    assert found["relative_error"].dtype == np.float64
    assert set(np.unique(found["status"])) <= {1, 2}
    reached = found["status"] == 1
    assert (found["relative_error"].where(reached, 0) < 0.9).all()
    assert (found["flow_time"].where(~reached, 3) == 3).all()
    assert (found["energy_residual"] < 0.05).all()
    assert "the differential inclusion itself" in done.stdout
    assert "--dynamics=inclusion" in (out / "run.flagfile").read_text()
    assert "learning_rate" not in (out / "run.flagfile").read_text()


def test_map_over_the_slope_at_zero(tmp_path):
    out = tmp_path / "out"
    done = command(
        "convergence_map",
        f"--out={out}",
        *GRID,
        "--relu_at_zero=0,0.5,random,minimum_norm",
        "--num_steps=20",
        "--precision=float64",
    )
    assert done.returncode == 0, done.stderr
    names = [f"hidden_relu_at_zero_{slope}" for slope in ("0.0", "0.5", "random", "minimum_norm")]
    found = [xr.open_zarr(out / "results.zarr", group=name, consolidated=False) for name in names]
    for other in found[1:]:  # Generic data meet no exact zero in so few steps.
        np.testing.assert_allclose(other["relative_error"], found[0]["relative_error"], rtol=1e-8)
    table = pandas.read_csv(out / "summary.csv")
    assert set(table["trained_layers"]) == {"hidden"}
    assert [f"hidden_relu_at_zero_{slope}" for slope in dict.fromkeys(table["relu_at_zero"])] == names
