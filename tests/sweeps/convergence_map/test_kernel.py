"""The map by compiled code (--kernel=native) beside that by XLA's program."""

import json
import os
import shutil

import numpy as np
import pytest
import xarray as xr
from support.launchers import command

from sweeps import status
from sweeps.runtime import session

pytestmark = pytest.mark.skipif(
    not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
)

TINY = [
    "--d0=2,6", "--d1=4,12", "--num_seeds=3", "--num_samples=8", "--num_steps=400", "--precision=float64",
    "--num_processes=1", "--compilation_cache=",
]  # fmt: skip


def mapped(out, kernel, *words):
    done = command("convergence_map", f"--out={out}", f"--kernel={kernel}", *TINY, *words)
    assert done.returncode == 0, done.stderr
    store = session.open_results(out)
    return {layers: store.read(layers) for layers in ("hidden", "both") if (out / "results.zarr" / layers).exists()}


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Folders and results of one map by both kernels."""
    folders = {kernel: tmp_path_factory.mktemp(kernel) for kernel in ("native", "xla")}
    return {kernel: (out, mapped(out, kernel)) for kernel, out in folders.items()}


def test_a_map_is_that_of_xla_up_to_rounding(maps):
    for layers, there in maps["xla"][1].items():
        here = maps["native"][1][layers]
        assert set(np.unique(there.status)) == {1, 2}
        for name in ("status", "steps", "converged_at", "numerical_zeros", "dead_samples"):
            np.testing.assert_array_equal(here[name], there[name], err_msg=name)
        for name in ("relative_error", "best_relative_error"):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-6, err_msg=name)


def test_sessions_say_which_kernel_it_was(maps):
    last = {name: (out / "sessions.jsonl").read_text().splitlines()[-1] for name, (out, _) in maps.items()}
    native, xla = json.loads(last["native"]), json.loads(last["xla"])
    assert (native["kernel"], xla["kernel"]) == ("native", "xla")
    assert native["configuration"] == xla["configuration"]
    for name, (out, _) in maps.items():
        assert f"kernel: {name}" in (out / "report.html").read_text()
        header, row = status.look(out).text.splitlines()[-2:]
        assert row[header.index("kernel") :].split()[0] == name


def test_a_report_names_every_kernel_that_took_part(maps, tmp_path):
    out = tmp_path / "mixed"
    shutil.copytree(maps["native"][0], out)
    with (out / "sessions.jsonl").open("a") as file:
        file.write((maps["xla"][0] / "sessions.jsonl").read_text())
    done = command("convergence_map", f"--out={out}", "--figures_only")
    assert "kernel: native and xla; sessions.jsonl says which session used which" in done.stdout


def test_cells_do_not_depend_on_the_tile(maps, tmp_path):
    parts = mapped(tmp_path / "parts", "native", "--trained_layers=hidden", "--block=1x2x2")
    xr.testing.assert_equal(parts["hidden"], maps["native"][1]["hidden"])


def test_runs_end_early_where_a_local_minimum_is_proved(tmp_path):
    words = ["--trained_layers=hidden", "--stop=decided", "--num_steps=6000", "--d0=4", "--d1=2,4", "--num_samples=20"]
    stopped = mapped(tmp_path / "out", "native", *words)["hidden"]
    assert (stopped.status == 4).any()
    assert (stopped.steps.values[stopped.status == 4] < 6_000).all()


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--batch_size=2", "native has no --batch_size=2"),
        ("--relu_at_zero=random", "native has no --relu_at_zero=random"),
        ("--kernel=cuda", "--kernel"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_line(tmp_path, flag, says):
    done = command("convergence_map", f"--out={tmp_path / 'out'}", "--kernel=native", *TINY, flag)
    assert done.returncode != 0
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_inclusion_has_no_native_kernel(tmp_path):
    words = ["--dynamics=inclusion", "--d0=2", "--d1=4", "--num_seeds=1", "--kernel=native"]
    done = command("convergence_map", f"--out={tmp_path / 'out'}", *words)
    assert done.returncode != 0
    assert "native has no --dynamics=inclusion" in done.stderr
    assert not (tmp_path / "out").exists()
