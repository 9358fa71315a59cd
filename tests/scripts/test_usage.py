"""What the scripts say to whom gives them nothing, or asks for help."""

import runpy
import sys

import pytest
from support import ROOT

SCRIPTS = {"own_experiment": "DIR", "verify_proofs": "FILE_OR_FOLDER"}


def leaves(monkeypatch, tmp_path, name, *words):
    """The status that a script exits with, run in an empty folder, in which nothing may be left."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
    assert not list(tmp_path.iterdir())
    return left.value.code


@pytest.mark.parametrize("name", SCRIPTS)
def test_usage(name, monkeypatch, tmp_path, capsys):
    assert leaves(monkeypatch, tmp_path, name, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: {name}")
    assert told.count(SCRIPTS[name]) > 1
    assert leaves(monkeypatch, tmp_path, name) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert SCRIPTS[name] in told.err.splitlines()[-1]
