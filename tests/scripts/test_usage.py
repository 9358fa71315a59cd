"""What the scripts say to whom gives them nothing, or asks for help."""

import os
import runpy
import sys

import pytest
from support import ROOT

BAD_CONDITIONS = {
    "--sizes=20x10": "argument --sizes: 20x10 is not N x d0 x d1",
    "--sizes=20x10x": "argument --sizes: '20x10x' is not of the form 4x3",
    "--sizes=21x10x10": "argument --sizes: N is odd in 21x10x10, and balanced labels need an even number",
    "--num_seeds=0": "argument --num_seeds: 0 is not a whole number in [1, 2147483647]",
    "--folds=0": "argument --folds: 0 is not a finite number in (0, inf)",
    "--ends=a": "argument --ends: 'a' is not a number",
    "--seeds=2": "unrecognized arguments: --seeds=2",
}
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


@pytest.mark.parametrize("word", BAD_CONDITIONS)
def test_bad_flags_of_conditions(word, monkeypatch, tmp_path, capsys):
    assert leaves(monkeypatch, tmp_path, "conditions", word) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"conditions: {BAD_CONDITIONS[word]}\n"


@pytest.mark.parametrize(
    ("name", "words"), [("verify_proofs", ["absent.npz"]), ("conditions", ["--sizes=2x2x2", "--num_seeds=1"])]
)
def test_who_reads_may_stop(name, words, monkeypatch, tmp_path, capsys):
    """As `| head -1` does."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert leaves(monkeypatch, tmp_path, name, *words) == 1
    assert capsys.readouterr().err == ""


def test_odd_widths_of_conditions(monkeypatch, tmp_path, capsys):
    assert leaves(monkeypatch, tmp_path, "conditions", "--trained_layers=hidden", "--sizes=20x10x5") == 2
    assert capsys.readouterr().err.startswith("conditions: argument --sizes: d1 is odd in 20x10x5")


def test_a_folder_without_a_ledger_is_refused(monkeypatch, tmp_path, capsys):
    assert leaves(monkeypatch, tmp_path, "reproduction_docs", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("reproduction_docs: ")
