"""What fails costs what was in hand, says what to do, and is done by the next run."""

import concurrent.futures
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support import ROOT
from support.faulty import Faulty, train

from relu_sgd.dynamics import Status
from sweeps.runtime import attempts, damage, journal, session
from sweeps.runtime.processes import Died
from sweeps.runtime.store import Store
from sweeps.study import Execution, Tile, TileError, UsageError, Variant


def files(out):
    """The store to the bit."""
    root = out / "results.zarr"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def lines(out):
    return [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


BAD = ("worker dies", "own file", "compiler", "always short")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A sweep in which everything goes wrong, in two processes; its folder and what it says."""
    out = tmp_path_factory.mktemp("faulty") / "out"
    good = ("none", "worker dies once", "memory", "device memory", "killed for memory")
    with pytest.raises(TileError) as error:
        train(out, (*good, *BAD), 2, 1)
    return out, error.value


def test_tiles_that_fail_leave_the_others(faulty, tmp_path):
    out, error = faulty
    store = Store.open(out / "results.zarr")
    left = store.pending("runs").any(axis=(1, 2))
    assert dict(zip(store.values("runs", "fault"), left, strict=True)) == {
        "none": False, "worker dies once": False, "memory": False, "device memory": False, "killed for memory": False,
        "worker dies": True, "own file": True, "compiler": True, "always short": True,
    }  # fmt: skip
    store.verify()
    # Split or not, in one process or two: the same bits.
    same = train(tmp_path / "same", ("none", "memory"), 1, 1)
    for name in ("value", "pair", "zeros", "status"):
        np.testing.assert_array_equal(store.array("runs", name)[[0, 2]], same.array("runs", name)[...])


def test_what_failed_is_named_with_its_tile_and_what_to_do(faulty):
    out, error = faulty
    assert str(error).startswith("4 of 9 tiles failed, the first at runs, fault = ")
    assert "5 are stored" in str(error)
    assert "the same command tries again" in str(error)
    assert error.exit_code == 1
    (line,) = lines(out)
    assert line["how"] == "done"
    assert line["tiles"] == 5
    reasons = {failed["tile"].removesuffix(", cell = 0, seeds 0 to 2"): failed["reason"] for failed in line["failed"]}
    assert reasons["runs, fault = worker dies"] == "its worker process ended with status 3, twice"
    assert reasons["runs, fault = own file"].startswith("FileNotFoundError: ")
    assert "no_such_target" in reasons["runs, fault = compiler"]
    assert reasons["runs, fault = always short"].startswith("MemoryError: ")
    assert any("in _fail" in failed["details"] for failed in line["failed"])


def test_a_second_run_tries_again(faulty, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(faulty[0], out)
    monkeypatch.setattr("support.faulty._fail", lambda *_: None)
    store = train(out, tuple(Store.open(out / "results.zarr").attributes["science"]["faults"]), 1, 1)
    assert not store.pending("runs").any()
    assert lines(out)[-1]["tiles"] == 4


def test_an_error_of_ones_own_keeps_its_traceback(tmp_path):
    """In a notebook it is what one looks for; and it is no fault of the folder."""
    with pytest.raises(TileError, match=r"^2 of 4 tiles failed, .*: FileNotFoundError: .*/no/such/folder") as error:
        train(tmp_path / "out", ("none", "own file"))
    assert isinstance(error.value.__cause__, FileNotFoundError)
    assert "--out" not in str(error.value)


def test_where_every_tile_fails_the_sweep_ends(tmp_path):
    with pytest.raises(TileError, match=r"^8 of 10 tiles failed"):
        train(tmp_path / "out", ("own file", "always short"), cells=10)


def test_a_tile_is_split_along_its_seeds_and_joined():
    tile = Tile(Variant(), {"a": (1.0, 2.0)}, range(4, 9))
    work = attempts.Work(iter([tile]), lambda part: len(part.seeds) > 1)
    short = attempts.Failure("short", out_of_memory=True)
    assert work.resolve(next(work), short) is None
    parts = [next(work), next(work)]
    assert [part.seeds for part in parts] == [range(4, 6), range(6, 9)]
    # A part of one seed would not be allowed.
    runs = {part: np.add.outer([100, 200], part.seeds).ravel() for part in parts}
    assert work.resolve(parts[1], ({"x": runs[parts[1]]}, {"running": 1.0})) is None
    whole, (records, spent) = work.resolve(parts[0], ({"x": runs[parts[0]]}, {"running": 0.0}))
    assert whole == tile
    np.testing.assert_array_equal(records["x"].reshape(tile.shape), np.add.outer([100, 200], tile.seeds))
    assert spent == {"running": 1.0}
    assert next(work, None) is None
    work = attempts.Work(iter([tile]), lambda part: len(part.seeds) > 1)
    work.resolve(next(work), short)
    part, other = next(work), next(work)
    assert work.resolve(part, short) == (tile, short)  # It cannot be split further.
    assert work.resolve(other, ({}, {})) is None
    assert next(work, None) is None


def test_memory_that_is_short_is_known():
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.block_until_ready(jax.numpy.zeros(2**50, np.uint8))
    assert attempts.Failure.of(error.value).out_of_memory
    assert attempts.Failure.of(MemoryError()).out_of_memory
    assert not attempts.Failure.of(ValueError("RESOURCE_EXHAUSTED")).out_of_memory
    assert str(Died(-9)) == "was killed by signal 9 (out of memory?)"
    assert str(Died(-11)) == "was killed by signal 11"


# Signals, in processes of their own.


def begin(out, *flags):
    """The study as a program, in a process group of its own, as a terminal has it."""
    return subprocess.Popen(
        [sys.executable, "-m", "support.faulty", f"--out={out}", "--compilation_cache=", *flags],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        start_new_session=True,
    )


def wait_for(said, *what):
    """What `said` returns when it is true."""
    deadline = time.monotonic() + 60
    while not (found := said(*what)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_the_first_worker_begins_with_signals_held_back():
    """As all others do; the process that multiprocessing begins beside the first one lets them through."""
    script = """
import multiprocessing, pathlib, signal
from sweeps.runtime.processes import _Worker
for _ in range(2):
    worker = _Worker(multiprocessing.get_context("spawn"), int, int, 0)
    status = pathlib.Path(f"/proc/{worker.process.pid}/status").read_text()
    worker.process.kill()
    held = int(status.split("SigBlk:")[1].split()[0], 16)
    assert held >> (signal.SIGINT - 1) & 1, status
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)


def test_signals_end_a_sweep_within_seconds_whatever_it_does(tmp_path):
    """One computes in its own process, deep in a compiled program; of the other the workers are only starting."""
    alone, two = tmp_path / "alone", tmp_path / "two"
    programs = [begin(alone, "--seconds=100", "--num_processes=1"), begin(two, "--seconds=100", "--num_processes=2")]
    wait_for(lambda: journal.note(two, 0, 1) if two.exists() else None)
    os.killpg(programs[1].pid, signal.SIGINT)
    wait_for(lambda: journal.note(alone, 0, 1).get("in_hand") if alone.exists() else None)
    time.sleep(0.2)
    programs[0].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    for program in programs:
        _, log = program.communicate(timeout=60)
        assert program.returncode == 130, log
        assert "leaving within 3 seconds" in log
        assert log.splitlines()[-1].endswith("stopped with 4 tiles to do; the same command goes on")
        assert "Traceback" not in log
    assert time.monotonic() - begun < 10
    assert Store.open(alone / "results.zarr").pending("runs").all()
    assert not list(tmp_path.rglob(".session-*"))


def test_kills_of_a_worker_and_of_the_parent(tmp_path, whole):
    """A worker alone is replaced; the parent's workers leave with it, and what it had done is told by the next."""
    out = tmp_path / "out"
    program = begin(out, "--seconds=0.6", "--num_processes=2")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
    status = out / "results.zarr" / "runs" / "status" / "c"
    # Both are at work: one that is only starting has no tile to lose.
    wait_for(lambda: len(journal.note(out, 0, 1).get("in_hand", [])) == 2 if out.exists() else None)
    workers = wait_for(lambda: [pid for pid in map(int, children.read_text().split()) if "spawn_main" in command(pid)])
    os.kill(workers[0], signal.SIGKILL)
    wait_for(status.exists)
    others = list(map(int, children.read_text().split()))
    program.kill()
    assert "was killed by signal 9 (out of memory?) at runs, fault = " in program.communicate()[1]
    wait_for(lambda: not any(map(is_alive, others)))
    store = Store.open(out / "results.zarr")
    done = sum(not store.pending("runs")[tile].any() for tile in store.tiles("runs"))
    assert 0 < done < 4
    train(out)
    assert files(out) == files(whole)
    killed, ended = lines(out)
    assert (killed["how"], ended["how"]) == ("killed", "done")
    assert killed["pid"] == program.pid
    assert done - 1 <= killed["tiles"] <= done
    assert ended["tiles"] == 4 - done


def command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode()


# The folder.


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def other_size(path):
    path.write_text(path.read_text().replace("    3\n", "    4\n", 1))


def other_type(path):
    path.write_text(path.read_text().replace("int32", "int16"))


DAMAGES = {
    "a chunk is cut": (cut, "value/c/0/0/0", "cell = 0 to 1, seeds 0 to 2: value cannot be read"),
    "a chunk at the edge is flipped": (flip, "pair/c/1/1/0/0", "fault = still none, cell = 2, .*: pair cannot be read"),
    "a chunk of zeros is deleted": (remove, "zeros/c/1/0/0", "fault = still none, cell = 0 to 1, .*: zeros is missing"),
    "a chunk of an array is deleted": (remove, "pair/c/0/0/0/0", "pair is missing"),
    "a chunk of the status is flipped": (flip, "status/c/0/1/0", "cell = 2, seeds 0 to 2: status cannot be read"),
    "an array is deleted": (remove, "value", "group 'runs' of .* is damaged"),
    "the root's metadata is deleted": (remove, "../zarr.json", "is damaged or no store"),
    "the root's metadata is cut": (cut, "../zarr.json", "is damaged or no store"),
    "a group's metadata is deleted": (remove, "zarr.json", "group 'runs' of .* is damaged"),
    "an array's metadata is deleted": (remove, "status/zarr.json", "group 'runs' of .* is damaged"),
    "an array's metadata is cut": (cut, "zeros/zarr.json", "group 'runs' of .* is damaged"),
    "an array has another size": (other_size, "cell/zarr.json", "group 'runs' of .* is damaged: cell"),
    "an array has another type": (other_type, "zeros/zarr.json", "zeros cannot be read"),
    "values along an axis are deleted": (remove, "fault/c/0", "group 'runs' of .* is damaged"),
    "values along an axis are flipped": (flip, "cell/c/0", "group 'runs' of .* is damaged: cell"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "where", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_refused_and_repaired_on_request(whole, copy, harm, where, message):
    harm(copy / "results.zarr" / "runs" / where)
    harmed = files(copy)
    assert harmed != files(whole)
    with pytest.raises(UsageError, match=message) as error:
        train(copy)
    assert "--repair" in str(error.value)
    assert "\n" not in str(error.value)
    assert files(copy) == harmed
    train(copy, repair=True)
    assert files(copy) == files(whole)


def test_a_deleted_status_is_a_tile_to_do(whole, copy):
    """As after a kill between the last metric and the status; what is damaged beside it is not read."""
    runs = copy / "results.zarr" / "runs"
    remove(runs / "status/c/0/1/0")
    flip(runs / "value/c/0/1/0")
    train(copy)
    assert files(copy) == files(whole)


def test_whatever_bit_flips_is_seen_or_harmless(whole, copy):
    generator = random.Random(0)
    chunks = [path for path in (copy / "results.zarr" / "runs").rglob("c/**/*") if path.is_file()]
    good = Store.open(copy / "results.zarr").read("runs")
    for _ in range(25):
        path = generator.choice(chunks)
        content = path.read_bytes()
        bits = bytearray(content)
        bits[generator.randrange(len(bits))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(bits))
        store = Store.open(copy / "results.zarr")
        assert damage.find(store) or store.read("runs").identical(good), path
        path.write_bytes(content)
    assert not damage.find(Store.open(copy / "results.zarr"))


def test_a_repair_is_of_the_same_sweep(copy, tmp_path):
    remove(copy / "results.zarr" / "zarr.json")
    with pytest.raises(UsageError, match="are of another sweep: --faults is none,still none there and none here"):
        train(copy, ("none",), repair=True)
    for path in [copy / "config.json", *copy.glob("results.zarr/*/zarr.json")]:
        remove(path)
    before = files(copy)
    with pytest.raises(UsageError, match=r"^--repair: nothing in .* says any more which sweep"):
        train(copy, repair=True)
    assert files(copy) == before
    with pytest.raises(UsageError, match="contradicts --figures_only"):
        Execution(out=copy, repair=True, figures_only=True)


@contextlib.contextmanager
def _limited_disk(folder):
    """A folder on a disk that can be filled: a small one of its own, or where none may be mounted one that takes no
    more of any file."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        if mounted.returncode:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8, limits[1]))
        with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1024))

    def free():
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (folder / "filler").unlink(missing_ok=True)

    try:
        yield fill, free
    finally:
        free()
        subprocess.run(["umount", folder], capture_output=True)


@contextlib.contextmanager
def _locked_disk(folder):
    """A folder that comes to be read-only: the store is mounted so, or its folders are."""
    folder.mkdir()
    store = folder / "out" / "results.zarr"

    def lock():
        mounted = subprocess.run(["mount", "--bind", store, store], capture_output=True)
        if not mounted.returncode:
            subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        else:
            for path in store.rglob("*/"):
                path.chmod(0o555)

    def free():
        if subprocess.run(["umount", store], capture_output=True).returncode:
            for path in store.rglob("*/"):
                path.chmod(0o755)

    try:
        yield lock, free
    finally:
        free()


@pytest.mark.parametrize(("disk", "says"), [(_limited_disk, "space|large"), (_locked_disk, "[Rr]ead-only|[Dd]enied")])
def test_a_disk_that_refuses_in_mid_run(whole, tmp_path, monkeypatch, disk, says):
    with disk(tmp_path / "disk") as (refuse, free):
        out, ran, original = tmp_path / "disk" / "out", [], Faulty.run_tile

        def run_tile(self, tile, execution):
            ran.append(tile)
            if len(ran) == 3:
                refuse()
            return original(self, tile, execution)

        monkeypatch.setattr(Faulty, "run_tile", run_tile)
        with pytest.raises(
            UsageError, match=rf"^--out: cannot write .*({says}).*; make room .* the same command goes on"
        ):
            train(out)
        free()
        store = Store.open(out / "results.zarr")
        assert (~store.pending("runs")).sum() == sum(tile.num_runs for tile in ran[:2])
        store.verify()
        train(out)
        assert len(ran) == 5  # Four tiles, one of them twice.
        assert files(out) == files(whole)


def test_shards_of_another_number_are_refused(copy):
    with journal.locked(copy, 0, 2), journal.locked(copy, 1, 2):
        assert journal.shards_at_work(copy) == [(0, 2), (1, 2)]
        with pytest.raises(UsageError, match=r"^--out: another run is writing to .*sweeps\.status"):
            train(copy, shard_index=1, shard_count=2)
        with pytest.raises(UsageError, match=r"^--shard_count: 1, but another run shares .* among 2; wait"):
            train(copy)
    assert journal.shards_at_work(copy) == []
    train(copy)


def test_shards_of_one_number_of_process_write_the_same_file(tmp_path):
    """As those in containers do, where every process is the first."""
    path = tmp_path / "config.json"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: journal.write(path, "x" * 1000), range(300)))
    assert path.read_text() == "x" * 1000
    assert list(tmp_path.iterdir()) == [path]


def test_a_clock_that_jumps(whole, tmp_path, monkeypatch):
    generator, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + generator.choice([-1, 1]) * 86_400)
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    remove(out / "results.zarr" / "runs" / "status" / "c")
    leftover = out / "results.zarr" / "runs" / "value" / "c" / "0" / "0.abc.partial"
    leftover.touch()
    os.utime(leftover, (real() + 1e6,) * 2)
    said = []
    monkeypatch.setattr(
        session.Progress, "tick", lambda self, last=False: said.append(self._forecast.left(time.monotonic()))
    )
    train(out)
    assert files(out) == files(whole)
    assert 0 < lines(out)[-1]["seconds"] < 60
    assert max(said) < 60
    assert min(said) == 0
    fresh = out / "results.zarr" / "fresh.partial"
    fresh.touch()
    Store.open(out / "results.zarr").clean(older_than=3600)
    assert fresh.exists()


def test_a_run_that_diverges_is_a_result(whole):
    statuses = Store.open(whole / "results.zarr").read("runs")["status"].values
    assert {Status.CONVERGED, Status.DIVERGED} == set(statuses.ravel())
    assert not attempts.Work(iter([]), bool).in_hand
