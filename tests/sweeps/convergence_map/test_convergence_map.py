"""The launcher from flags to figure: what it leaves, that it resumes, and that it refuses."""

import dataclasses
import json
import os
import shutil
import sys

import jax
import numpy as np
import pandas
import pytest
import xarray as xr
from absl.testing import flagsaver
from support.launchers import sketched

from sweeps.command import app
from sweeps.convergence_map import report
from sweeps.convergence_map.study import ConvergenceMap
from sweeps.protocol import runs
from sweeps.runtime import extension, session
from sweeps.runtime.store import Store
from sweeps.study import Execution, Tile, Variant

pytestmark = pytest.mark.compiled_alike

TINY = [
    "--d0=2,3", "--d1=4:8:2", "--num_seeds=2", "--num_samples=10", "--num_steps=60", "--block=2x2",
    "--precision=float64", "--num_processes=1",
]  # fmt: skip


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Compiled programs, shared by the tests of a process."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def _restore(monkeypatch, cache):
    sketched(monkeypatch)
    monkeypatch.setitem(os.environ, "RELU_SGD_TEST_CACHE", str(cache))
    with flagsaver.flagsaver():
        yield
    jax.config.update("jax_enable_x64", True)


def execute(*words):
    app.execute(ConvergenceMap, ["convergence_map", *words])


def run(out, *words):
    cache = os.environ["RELU_SGD_TEST_CACHE"]
    execute(f"--out={out}", f"--compilation_cache={cache}", *TINY, *words)


def results(out):
    store = Store.open(out / "results.zarr", read_only=True)
    return {layers: store.read(layers) for layers in store.attributes["science"]["trained_layers"]}


def assert_same(out, other):
    first, second = results(out), results(other)
    assert first.keys() == second.keys()
    for layers in first:
        xr.testing.assert_identical(first[layers], second[layers])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    out = tmp_path_factory.mktemp("finished") / "out"
    with flagsaver.flagsaver():
        execute(f"--out={out}", f"--compilation_cache={cache}", *TINY)
    return out


def test_what_a_sweep_leaves(finished):
    assert sorted(path.name for path in finished.iterdir() if not path.name.startswith(".")) == [
        "boundary.csv", "config.json", "figures", "report.html", "results.zarr", "run.flagfile", "sessions.jsonl",
        "summary.csv",
    ]  # fmt: skip
    for layers in ("hidden", "both"):
        found = xr.open_zarr(finished / "results.zarr", group=layers, consolidated=False)
        assert dict(found.sizes) == {"d0": 2, "d1": 3, "seed": 2}
        assert set(found.data_vars) == {
            "status", "converged_at", "relative_error", "best_relative_error", "numerical_zeros", "zeros_at_rounding",
            "dead_samples", "steps",
        }  # fmt: skip
        assert (found["status"] != 0).all()
        assert found["relative_error"].dtype == np.float64
    lines = (finished / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 3
    assert lines[0].startswith("trained_layers,d0,d1,runs,converged,step_limit,dead,diverged,within_as_written,")
    config = json.loads((finished / "config.json").read_text())
    assert config["science"]["num_samples"] == 10
    session = json.loads((finished / "sessions.jsonl").read_text())
    assert session["configuration"] == config["configuration"]
    assert session["tiles"] == 4
    assert session["lanes"] == "by size"
    assert min(session[f"{part}_seconds"] for part in ("drawing", "compilation", "running", "measuring", "storing")) > 0
    assert session["versions"]["jax"] == jax.__version__


def test_the_same_command_again_trains_nothing(finished, monkeypatch):
    before = (finished / "sessions.jsonl").read_text()
    monkeypatch.delattr(runs, "train_tile")
    run(finished)
    assert (finished / "sessions.jsonl").read_text() == before


def test_resume_does_only_what_is_missing(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for layers, chunk in (("hidden", "0/0/0"), ("both", "0/1/0")):
        (out / "results.zarr" / layers / "status" / "c" / chunk).unlink()
    run(out)
    assert json.loads((out / "sessions.jsonl").read_text().splitlines()[-1])["tiles"] == 2
    assert_same(out, finished)


def test_the_flag_file_repeats_the_sweep(finished, tmp_path, cache):
    out = tmp_path / "out"
    execute(
        f"--flagfile={finished / 'run.flagfile'}", f"--out={out}", "--num_processes=1", f"--compilation_cache={cache}"
    )
    assert_same(out, finished)
    assert (out / "run.flagfile").read_text() == (finished / "run.flagfile").read_text()


def test_shards_make_one_store(finished, tmp_path, capsys):
    out = tmp_path / "out"
    for shard in (1, 0):
        run(out, "--shard_count=2", f"--shard_index={shard}")
        assert (out / "summary.csv").exists() == (shard == 0)
    assert_same(out, finished)
    assert "figure: " in capsys.readouterr().out


def test_lanes_reproduce_the_sweep(finished, tmp_path):
    run(tmp_path / "out", "--lanes=3", "--steps_per_chunk=16")
    for layers, expected in results(finished).items():
        found = results(tmp_path / "out")[layers]
        for name, values in expected.data_vars.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_refined_runs_are_those_of_more_seeds_to_the_bit(finished, tmp_path):
    """No network of the grid is wide enough, so those of the ends, d1 = 8, are asked."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    run(out, "--refine=32")
    assert "--refine=32" in (out / "run.flagfile").read_text()
    assert_same(out, finished)
    found = extension.read(Store.open(out / "results.zarr"), "hidden")
    study = ConvergenceMap.from_science(Store.open(out / "results.zarr").attributes)
    tile = Tile(Variant(trained_layers="hidden"), {"d0": (2, 3), "d1": (8,)}, range(10))
    expected, _ = study.run_tile(tile, Execution(out=out))
    for name, values in found.sel(d1=[8]).data_vars.items():
        np.testing.assert_array_equal(values.values.reshape(-1), expected[name], name)
    assert (found.sel(d1=[4, 6], seed=range(2, 10))["status"] == 0).all()
    table = pandas.read_csv(out / "summary.csv")
    assert list(table["runs"]) == [2, 2, 10] * 4


def refuses(capsys, out, *words):
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if not path.name.startswith(".lock")}
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        run(out, *words)
    captured = capsys.readouterr()
    assert error.value.code == 2
    assert captured.err.count("\n") == 1
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if not path.name.startswith(".lock")}
    assert before == after
    return captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_steps=61"], "--num_steps is 60 there and 61 here"),
        (["--num_seeds=3"], "--num_seeds is 2 there and 3 here"),
        (["--precision=float32"], "--precision is float64 there and float32 here"),
        (["--trained_layers=hidden"], "--trained_layers is hidden,both there and hidden here"),
        (["--block=1x1"], "--block: 1x1, but the results"),
    ],
)
def test_results_of_another_sweep_are_refused(finished, capsys, words, message):
    assert message in refuses(capsys, finished, *words)


def test_results_of_other_draws_are_refused(finished, tmp_path, capsys):
    """As a store is that was begun before the values of draws changed."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    metadata = out / "results.zarr" / "zarr.json"
    root = json.loads(metadata.read_text())
    del root["attributes"]["draws"]
    metadata.write_text(json.dumps(root))
    assert "begun with other draws" in refuses(capsys, out)


def test_results_that_do_not_name_their_study_are_read(finished, tmp_path, monkeypatch):
    """As a store is that was written before studies had names in it; nothing is trained anew."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    metadata = out / "results.zarr" / "zarr.json"
    root = json.loads(metadata.read_text())
    del root["attributes"]["study"]
    metadata.write_text(json.dumps(root))
    monkeypatch.delattr(runs, "train_tile")
    run(out)
    assert (out / "sessions.jsonl").read_text() == (finished / "sessions.jsonl").read_text()


@pytest.mark.parametrize("damage", ["truncated", "deleted", "no store"])
def test_a_damaged_store_is_refused(finished, tmp_path, capsys, damage):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    chunk = out / "results.zarr" / "both" / "steps" / "c" / "0" / "0" / "0"
    if damage == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-4])
    elif damage == "deleted":
        (out / "results.zarr" / "hidden" / "relative_error" / "c" / "0" / "0" / "0").unlink()
    else:
        (out / "results.zarr" / "zarr.json").unlink()
    assert "damaged" in refuses(capsys, out)


def test_two_runs_at_once_are_refused(finished, capsys):
    with session.locked(finished, 0, 1):
        assert "another run is writing" in refuses(capsys, finished)


def test_figures_only(finished, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "figures")
    (out / "summary.csv").unlink()
    monkeypatch.undo()
    execute(f"--out={out}", "--figures_only")
    assert (out / "summary.csv").read_text() == (finished / "summary.csv").read_text()
    assert sorted(path.name for path in (out / "figures").iterdir()) == sorted(
        path.name for path in (finished / "figures").iterdir()
    )
    assert "summary: " in capsys.readouterr().out


def test_text_map(finished):
    summary = xr.Dataset(
        {"probability": (("d0", "d1"), np.array([[0.0, 0.3, 1.0], [np.nan, 0.999, 0.05]]))},
        coords={"d0": [2, 10], "d1": [4, 8, 100]},
    )
    assert report.text_map(summary).splitlines() == [
        "d0 \\ d1   4   8 100",
        "     10       9   .",
        "      2   .   3   #",
    ]


def test_caption_says_protocol_precision_seeds_and_rank(finished):
    attributes = json.loads((finished / "config.json").read_text())
    study = ConvergenceMap.from_science(attributes)
    text = report.caption(study)
    for part in (
        "as_written with --num_samples=10 --num_steps=60", "float64", "2 seeds", "Every cell has d1 < N",
        attributes["configuration"],
    ):  # fmt: skip
        assert part in text
    assert "1 of 3 widths are below N" in report.caption(dataclasses.replace(study, d1=(4, 10, 20)))


# From here on the program itself, in processes of its own.

COMMAND = [sys.executable, "-m", "sweeps.convergence_map", *TINY[:-1], "--num_processes=2"]
