"""The environment decides no result: options of JAX are pinned, and arithmetic without NaN is refused."""

import json
import os
import subprocess
import sys

import pytest
from support import ROOT
from support.launchers import command

TRAIN_A_TILE = """
import dataclasses, hashlib, jax
from sweeps.protocol import draw, runs as protocol_runs
from sweeps.protocol.presets import preset
from sweeps.runtime import session
from sweeps.study import Tile, Variant
session.configure_jax("float32", "")
protocol = preset("as_released", "both", num_samples=10, num_steps=30, precision="float32")
tile = Tile(Variant(trained_layers="both"), {"d0": (2, 3), "d1": (4,)}, range(2))
records, _ = protocol_runs.train_tile(protocol, "both", tile, lanes=1)
runs = draw.draw_tile(protocol, tile)
found = hashlib.sha256()
for leaf in jax.tree.leaves((runs, records)):
    found.update(str(leaf.dtype).encode() + leaf.tobytes())
print(found.hexdigest())
"""

HOSTILE = {
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_RANDOM_SEED_OFFSET": "3",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_DEFAULT_MATMUL_PRECISION": "BF16_BF16_F32",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
}


def test_options_of_jax_change_no_bit():
    plain = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    plain |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen([sys.executable, "-c", TRAIN_A_TILE], env=plain | more, stdout=subprocess.PIPE, text=True)
        for more in ({}, HOSTILE)
    ]
    printed = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed[0] == printed[1] != ""


@pytest.mark.parametrize("flags", ["--xla_cpu_enable_fast_math=true", "--a=b --xla_cpu_enable_fast_math --c=d"])
def test_fast_math_is_refused(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = command("convergence_map", "--d0=2", "--d1=2", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "xla_cpu_enable_fast_math" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_may_change_last_digits_is_recorded(monkeypatch, tmp_path):
    flags = "--xla_cpu_enable_fast_math=false --xla_cpu_prefer_vector_width=256"
    monkeypatch.setenv("XLA_FLAGS", flags)
    out = tmp_path / "out"
    words = [
        "--trained_layers=hidden",
        "--d0=2",
        "--d1=2",
        "--num_seeds=1",
        "--num_samples=4",
        "--num_steps=5",
        "--num_processes=1",
    ]
    done = command("convergence_map", *words, "--block=3x2", "--compilation_cache=", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "sessions.jsonl").read_text())["xla_flags"] == flags
    assert json.loads((out / "config.json").read_text())["block"] == [3, 2]  # Padding may change last digits, too.
