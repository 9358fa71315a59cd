"""Steps to a loss and numerical zeros: launchers that put the same starts through every cell of a grid of their own."""

import json

import numpy as np
import pandas
import pytest
import xarray as xr
from support.launchers import command, sized
from support.numpy_reference import descend as reference
from support.numpy_reference import half_sum

from sweeps.protocol.draw import draw_tile
from sweeps.protocol.presets import preset as preset_of
from sweeps.step_counts import report as step_counts_report
from sweeps.zeros import report as zeros_report

COUNTS = ["--num_samples=8", "--d0=4", "--d1=20", "--num_seeds=3", "--learning_rate=0.005,0.01", "--batch_size=4,8",
          "--epsilon=0.5,0.01", "--max_steps=4000", "--num_processes=1"]  # fmt: skip
ENDS = ["--num_samples=10", "--d0=4", "--d1=6", "--num_seeds=2", "--learning_rate=0.05,0.2", "--relu_at_zero=0,1",
        "--num_steps=80", "--threshold=1e-1,1e-3", "--trained_layers=hidden", "--num_processes=1"]  # fmt: skip


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    out = tmp_path_factory.mktemp("counts") / "out"
    done = command("step_counts", f"--out={out}", *COUNTS)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def starts(layers, N, d0, d1, seeds, preset="as_written", **changes):
    protocol = preset_of(preset, layers, num_samples=N, **changes)
    return draw_tile(protocol, sized(layers, (d0,), (d1,), seeds))


def test_steps_are_those_of_the_reference(counted):
    found = xr.open_zarr(counted[0] / "results.zarr", group="both", consolidated=False)
    assert found.sizes == {"learning_rate": 2, "batch_size": 2, "seed": 3}
    assert (found["status"] == 1).all()
    runs = starts("both", 8, 4, 20, 3)
    for seed in range(3):
        theta = [np.asarray(part[seed], float) for part in (*runs.params, *runs.problem)]
        for rate in (0.005, 0.01):
            cell = found.sel(learning_rate=rate, batch_size=8, seed=seed)
            for index, epsilon in enumerate((0.5, 0.01)):
                steps = int(cell[f"steps_{index}"])
                W, V, *_ = reference(*theta, num_steps=steps, learning_rate=rate)
                assert half_sum(W, V, *theta[2:]) < epsilon
                W, V, *_ = reference(*theta, num_steps=steps - 1, learning_rate=rate)
                assert half_sum(W, V, *theta[2:]) >= epsilon


def test_the_shapes_of_the_bound(counted):
    """Half the step takes twice the steps; half the batch about twice; the flow time is that of the flow."""
    out, printed = counted
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 2 * 2 * 2
    at = table[table["epsilon"] == 0.01].set_index(["learning_rate", "batch_size"])["steps"]
    assert at[0.005, 8] / at[0.01, 8] == pytest.approx(2, rel=0.1)
    assert at[0.01, 4] / at[0.01, 8] == pytest.approx(2, rel=0.3)
    exponents = pandas.read_csv(out / "fits.csv").query("shape.str.startswith('steps')")["value"]
    assert exponents.between(-1.3, -0.8).all()
    assert "steps are proportional to (eta b)^p" in printed
    sessions = (out / "sessions.jsonl").read_text()
    assert command("step_counts", f"--out={out}", *COUNTS).returncode == 0
    assert (out / "sessions.jsonl").read_text() == sessions


def test_runs_that_do_not_get_there(tmp_path):
    out = tmp_path / "out"
    few = [word for word in COUNTS if not word.startswith(("--max_steps", "--learning_rate"))]
    done = command(
        "step_counts", f"--out={out}", *few, "--max_steps=60", "--learning_rate=0.001,1", "--trained_layers=hidden,both"
    )
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(out / "summary.csv")
    slow = table.query("epsilon == 0.01 and learning_rate == 0.001")
    assert (slow["reached"] == 0).all()
    assert np.isinf(slow["steps"]).all()
    assert (table.query("trained_layers == 'both' and learning_rate == 1")["reached"] == 0).all()


def test_losses_that_no_run_reaches(tmp_path):
    out = tmp_path / "out"
    words = [
        "--num_samples=2",
        "--d0=1",
        "--d1=2",
        "--num_seeds=1",
        "--max_steps=5",
        "--epsilon=1",
        "--learning_rate=0.001",
    ]
    done = command(
        "step_counts", f"--out={out}", *words, "--trained_layers=both", "--batch_size=1", "--num_processes=1"
    )
    assert done.returncode == 0, done.stderr
    assert "no loss was reached, so nothing is fitted" in done.stdout
    assert pandas.read_csv(out / "summary.csv")["reached"].tolist() == [0]
    assert pandas.read_csv(out / "fits.csv").columns[0] == "trained_layers"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    out = tmp_path_factory.mktemp("zeros") / "out"
    done = command("zeros", f"--out={out}", *ENDS)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_zeros_are_those_of_the_reference(ended):
    out, printed = ended
    runs = starts("hidden", 10, 4, 6, 2, "as_released")
    double, single = (
        xr.open_zarr(out / "results.zarr", group=f"hidden_{name}", consolidated=False)
        for name in ("float64", "float32")
    )
    for seed in range(2):
        theta = [np.asarray(part[seed], float) for part in (*runs.params, *runs.problem)]
        for rate in (0.05, 0.2):
            for slope in (0.0, 1.0):
                W, V, *_ = reference(
                    *theta,
                    num_steps=80,
                    learning_rate=rate,
                    momentum=0.9,
                    normalization="mean",
                    trained_layers="hidden",
                    at_zero=slope,
                )
                cell = double.sel(learning_rate=rate, relu_at_zero=slope, seed=seed)
                Z = theta[2] @ W
                assert [int(cell["zeros_0"]), int(cell["zeros_1"])] == [
                    np.sum(np.abs(Z) < 0.1),
                    np.sum(np.abs(Z) < 1e-3),
                ]
    error = np.abs(single["relative_error"] - double["relative_error"])
    assert (error > 0).all()  # Single precision indeed.
    assert (error < 1e-3).all()
    table = pandas.read_csv(out / "summary.csv")
    assert len(table) == 2 * 2 * 2 * 2
    assert (table["least_zeros"] <= table["mean_zeros"]).all()
    assert (table["mean_zeros"] <= table["most_zeros"]).all()
    assert "hidden: mean zeros by threshold" in printed
    assert json.loads((out / "config.json").read_text())["science"]["precision"] == ["float32", "float64"]


def test_what_the_sentence_says():
    table = pandas.DataFrame(
        [
            dict(trained_layers="hidden", precision=p, threshold=t, learning_rate=0.1, relu_at_zero=0.0, mean_zeros=z)
            for p, t, z in [
                ("float32", 1e-8, 3.0),
                ("float64", 1e-8, 40.0),
                ("float32", 1e-6, 7.0),
                ("float64", 1e-6, 41.0),
            ]
        ]
    )
    text = zeros_report.sentence(table)
    assert "threshold 1e-08: 40, 1e-06: 41" in text
    assert "precision float32: 3, float64: 40" in text
    table["mean_zeros"] = np.nan
    assert zeros_report.sentence(table) == "every run diverged"


def test_fits_need_points():
    table = pandas.DataFrame(
        dict(
            trained_layers="both",
            learning_rate=[0.1, 0.2, 0.4],
            batch_size=4,
            epsilon=0.1,
            steps=[40.0, 20, 10],
            flow_time=1.0,
        )
    )
    found = step_counts_report.fits(table).set_index("shape")
    assert found.loc["steps ~ (eta b)^p", "value"] == pytest.approx(-1)
    assert found.loc["flow time / log(1/epsilon)", "value"].isna().all()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("step_counts", ["--num_samples=9"], "--num_samples: 9 is odd"),
        ("step_counts", ["--batch_size=9"], "--batch_size: 9 exceeds --num_samples=8"),
        ("step_counts", ["--learning_rate=0.2,0.1"], "--learning_rate: values must be increasing"),
        ("step_counts", ["--epsilon=0.1,1"], "--epsilon: values must be decreasing"),
        ("step_counts", ["--epsilon=0"], "--epsilon: 0 is not"),
        ("step_counts", ["--d1=7", "--trained_layers=hidden"], "--d1: 7 is odd"),
        ("zeros", ["--d1=7"], "--d1: 7 is odd"),
        ("zeros", ["--relu_at_zero=2"], "--relu_at_zero: 2 is not"),
        ("zeros", ["--relu_at_zero=1,0"], "--relu_at_zero: values must be increasing"),
        ("zeros", ["--threshold=1e-9,1e-8"], "--threshold: values must be decreasing"),
        ("zeros", ["--protocol=mine"], "--protocol: 'mine' is not one of"),
        ("zeros", ["--precision=float16"], "--precision: 'float16'"),
    ],
)
def test_bad_flags(name, words, message, tmp_path):
    out = tmp_path / "out"
    done = command(name, f"--out={out}", *(COUNTS if name == "step_counts" else ENDS), *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
