"""Which folders scripts/boundary_law writes to, and which it leaves as they are."""

import runpy
import sys

import pytest
from support import ROOT

from sweeps.boundary import joined
from sweeps.study import Report


def ended(monkeypatch, *words):
    """The status that the script exits with."""
    monkeypatch.setattr(sys, "argv", ["boundary_law", *map(str, words)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        runpy.run_path(str(ROOT / "scripts" / "boundary_law"), run_name="__main__")
    except SystemExit as left:
        return left.code
    return 0


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("results.zarr", "has results.zarr and so results of its own"),
        ("report.html results.zarr", "has results.zarr and so results of its own"),
        ("report.html refined.zarr", "has refined.zarr and so results of its own"),
        ("report.html config.json", "has config.json and so results of its own"),
        ("figures", "holds other things (figures)"),
        ("", "is not a folder"),
        ("report.html", "there are no results at"),
    ],
)
def test_results_are_not_written_over(held, said, monkeypatch, tmp_path, capsys):
    out, other = tmp_path / "first", tmp_path / "second"
    if held:
        for name in held.split():
            (out / name).mkdir(parents=True)
        (out / "kept").write_text("kept")
    else:
        out.write_text("kept")
    other.mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert ended(monkeypatch, out, other) == 2
    told = capsys.readouterr()
    assert (told.out, len(told.err.splitlines())) == ("", 1)
    assert told.err.startswith("boundary_law: ")
    assert said in told.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_new_folder_an_empty_one_and_an_earlier_report_are_written_to(monkeypatch, tmp_path):
    asked = []
    made = Report({}, {}, (), "a text", {})
    monkeypatch.setattr(
        joined, "together", lambda folders, least_d0, foresee: asked.append([path.name for path in folders]) or made
    )
    out = tmp_path / "in" / "out"
    assert ended(monkeypatch, out, "b", "a") == 0
    assert ended(monkeypatch, out, "a") == 0
    (tmp_path / "empty").mkdir()
    assert ended(monkeypatch, tmp_path / "empty", "c") == 0
    assert asked == [["b", "a"], ["a"], ["c"]]
    assert "a text" in (tmp_path / "empty" / "report.html").read_text()
