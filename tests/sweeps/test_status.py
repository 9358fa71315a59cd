"""What is said of a folder from outside, whatever happens in it; and the exit codes."""

import json
import os
import shutil
import time

import pytest
from support.faulty import Faulty, train
from support.launchers import sketched

from sweeps import status, sweep
from sweeps.runtime import journal
from sweeps.study import TileError, UsageError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    train(out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def command(capsys, *words):
    code = status.main(list(map(str, words)))
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_a_sweep_that_is_done(whole, capsys):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.rglob("*") if path.is_file()}
    code, text = command(capsys, f"--out={whole}", "--verify")
    assert code == 0
    assert text.startswith(f"faulty in {whole}, configuration ")
    assert "4 of 4 tiles done (100%)\n" in text
    assert text.endswith("verified: every chunk can be read\n")
    assert "left" not in text
    line = json.loads((whole / "sessions.jsonl").read_text())
    shown = next(row for row in text.splitlines() if row.startswith(line["started"])).split()
    assert shown[1:5] == [line["ended"], "done", "4", line["host"]]
    assert line["versions"]["jax"] in shown
    assert command(capsys, f"--out={whole}", "--watch")[0] == 0
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in whole.rglob("*") if path.is_file()}


def test_a_sweep_that_runs(tmp_path, monkeypatch):
    out, seen, original = tmp_path / "out", [], Faulty.run_tile

    def run_tile(self, tile, execution):
        seen.append(status.look(out, verify=True))
        time.sleep(0.05)
        return original(self, tile, execution)

    monkeypatch.setattr(Faulty, "run_tile", run_tile)
    train(out, shard_index=1, shard_count=2)
    assert [state.done for state in seen] == [0, 1]
    assert {state.code for state in seen} == {3}
    assert {state.tiles for state in seen} == {4}
    assert {state.at_work for state in seen} == {((1, 2),)}
    assert f"shard 1 of 2 at work, process {os.getpid()} on " in seen[1].text
    assert "in hand: runs, fault = " in seen[1].text
    assert "2 of 4 tiles done (50%), 2 pending" in status.look(out).text
    after = status.look(out)
    assert (after.code, after.at_work) == (4, ())


def test_rate_and_time_left(copy):
    """Four tiles 30 seconds apart, of which the last is to be done again; then a session that says what it expects."""
    now = time.time()
    chunks = sorted(path for path in (copy / "results.zarr" / "runs" / "status" / "c").rglob("*") if path.is_file())
    for place, path in enumerate(chunks):
        os.utime(path, (now + 30 * place,) * 2)
    chunks[-1].unlink()
    state = status.look(copy)
    assert state.code == 4
    assert state.rate == pytest.approx(1 / 30)
    assert state.left == pytest.approx(30)
    assert "2 tiles a minute, about 0:00:30 left at that rate" in state.text
    with journal.locked(copy):
        journal.Journal(copy, 0, 1, {"started": journal.now()}).update({"tiles": 3, "left": 100.0, "in_hand": ["runs"]})
        state = status.look(copy)
        assert state.code == 3
        assert 98 < state.left <= 100
        assert "about 0:01:" in state.text
    assert "killed" in status.look(copy).text
    train(copy)
    assert [json.loads(line)["how"] for line in (copy / "sessions.jsonl").read_text().splitlines()] == [
        "done", "killed", "done",
    ]  # fmt: skip


def test_what_failed_and_what_is_damaged(tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(TileError):
        train(out, ("none", "own file"))
    code, text = command(capsys, f"--out={out}", "--watch")
    assert code == 5
    assert "2 of 4 tiles done (50%), 2 failed\n" in text
    assert "\nruns, fault = own file, cell = 2, seeds 0 to 2: FileNotFoundError: " in text
    (out / "results.zarr" / "runs" / "zeros" / "c" / "0" / "0" / "0").unlink()
    assert command(capsys, f"--out={out}")[0] == 5  # Only the statuses are read.
    code, text = command(capsys, f"--out={out}", "--verify")
    assert code == 1
    assert "\nruns, fault = none, cell = 0 to 1, seeds 0 to 2: zeros is missing\n" in text
    assert "--repair" in text
    path = out / "results.zarr" / "runs" / "status" / "c" / "0" / "1" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    code, text = command(capsys, f"--out={out}")
    assert code == 1
    assert "cell = 2, seeds 0 to 2: status cannot be read" in text
    (out / "results.zarr" / "zarr.json").unlink()
    code, text = command(capsys, f"--out={out}")
    assert code == 1
    assert "--repair" in text


def test_lines_that_a_full_disk_cut_are_left_out(copy):
    path = copy / "sessions.jsonl"
    path.write_text(path.read_text() + '{"started": "2026')
    for chunk in (copy / "results.zarr" / "runs" / "status" / "c").rglob("0"):
        if chunk.is_file():
            chunk.unlink()
    train(copy)
    assert [line["tiles"] for line in journal.sessions(copy)] == [4, 4]
    assert status.look(copy).code == 0


def test_no_results(tmp_path, capsys):
    code, text = command(capsys, f"--out={tmp_path / 'none'}")
    assert code == 2
    assert text == f"status: --out: there are no results at {tmp_path / 'none' / 'results.zarr'}\n"
    for words in ([], ["--out"], [f"--out={tmp_path}", "--watching"]):
        with pytest.raises(SystemExit) as left:
            command(capsys, *words)
        assert left.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with journal.locked(tmp_path):
        assert status.look(tmp_path).code == 3  # A run that is beginning.
    with pytest.raises(UsageError, match="there are no results"):
        status.look(tmp_path)


def test_a_folder_of_several_studies(whole, tmp_path, capsys):
    for name in ("one", "two"):
        shutil.copytree(whole, tmp_path / "all" / name)
    (tmp_path / "all" / "report").mkdir()
    code, text = command(capsys, f"--out={tmp_path / 'all'}")
    assert code == 0
    assert text.startswith(f"2 studies in {tmp_path / 'all'}: 8 of 8 tiles done\n")
    assert all(f"faulty in {tmp_path / 'all' / name}, configuration " in text for name in ("one", "two"))
    next((tmp_path / "all" / "two" / "results.zarr").glob("*/status/c/*/*/*")).unlink()
    code, text = command(capsys, f"--out={tmp_path / 'all'}")
    assert code == 4
    assert "7 of 8 tiles done" in text


def root(key, x, name):
    return {"root": x**0.5}


def test_a_study_of_ones_own(tmp_path, monkeypatch):
    sketched(monkeypatch)
    arguments = dict(axes={"x": [1, 2.5], "name": ["a"]}, seeds=range(3, 5), out=tmp_path / "out", num_processes=1)
    found = sweep(root, **arguments)
    assert "2 of 2 tiles done" in status.look(tmp_path / "out", verify=True).text
    path = tmp_path / "out" / "results.zarr" / "runs" / "root" / "c" / "1" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-1])
    state = status.look(tmp_path / "out", verify=True)
    assert state.damaged == ("runs, x = 2.5, name = a, seeds 3 to 4: root cannot be read",)
    with pytest.raises(UsageError, match="repair=True"):
        sweep(root, **arguments)
    assert sweep(root, **arguments, repair=True).identical(found)
    assert status.look(tmp_path / "out", verify=True).code == 0
