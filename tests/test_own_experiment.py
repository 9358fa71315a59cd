"""The script that shows how to write an experiment of one's own: it is short, does what it says, and resumes."""

import os
import subprocess
import sys
from pathlib import Path

import pandas

SCRIPT = Path(__file__).parent.parent / "scripts" / "own_experiment"


def run(out):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    return subprocess.run([sys.executable, SCRIPT, out], capture_output=True, text=True, env=environment)


def test_own_experiment(tmp_path):
    assert len(SCRIPT.read_text().splitlines()) <= 40
    done = run(tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = pandas.read_csv(tmp_path / "out" / "summary.csv")
    assert found["d1"].tolist() == [4, 8, 16]
    assert (found["runs"] == 32).all()
    assert found["probability"].is_monotonic_increasing
    assert (found["probability"] > 0.3).all()
    assert (found["probability_low"] < found["probability"]).all()
    assert (found["pattern_changes_mean"] > 0).all()
    assert "probability" in done.stdout
    sessions = (tmp_path / "out" / "sessions.jsonl").read_text()

    again = run(tmp_path / "out")  # Everything is there.
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert (tmp_path / "out" / "sessions.jsonl").read_text() == sessions
