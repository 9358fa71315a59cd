"""The script that shows how to write an experiment of one's own: it is short, and does what it says."""

import os
import subprocess
import sys

import numpy as np
from support import ROOT

from sweeps.runtime.store import Store

SCRIPT = ROOT / "scripts" / "own_experiment"


def test_own_experiment(tmp_path):
    assert len(SCRIPT.read_text().splitlines()) <= 60
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "out"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"},
    )
    assert done.returncode == 0, done.stderr
    found = Store.open(tmp_path / "out", read_only=True).read("mine")
    assert dict(found.sizes) == {"d1": 2, "seed": 32}
    assert (found["status"] != 0).all()
    probability = (found["status"] == 1).mean("seed").values
    assert probability[0] < probability[1]
    np.testing.assert_array_equal(probability > 0.3, True)
    assert "probability" in done.stdout
