"""Processes that do one study together, over the loopback interface; none of them survives the death of another."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from support import ROOT
from support.faulty import train

from sweeps.runtime import cluster, journal
from sweeps.runtime.store import Store
from sweeps.study import Execution, UsageError

pytestmark = pytest.mark.compiled_in_full

SLURM = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def files(out):
    """The store to the bit."""
    root = out / "results.zarr"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def free_port(low=1024):
    """A port that nobody has, not below `low`."""
    generator = random.Random(os.getpid() + time.monotonic_ns())
    while True:
        port = generator.randrange(low, 2**16)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def begin(*words, **variables):
    """A program of Python, whose errors are read."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_"))}
    known |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=known | variables)


def begin_shard(out, index, count, *flags):
    return begin(
        "-m", "support.faulty", f"--out={out}", "--compilation_cache=", "--num_processes=1",
        f"--shard_index={index}", f"--shard_count={count}", *flags,
    )  # fmt: skip


def ended(*programs):
    """The status and what it said of each."""
    said = [program.communicate(timeout=60)[1] for program in programs]
    return [(program.returncode, text) for program, text in zip(programs, said, strict=True)]


def wait_for(said):
    deadline = time.monotonic() + 60
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(out)
    return files(out)


def test_three_processes_make_the_store_of_one(tmp_path, whole):
    out, address = tmp_path / "out", f"--coordinator=127.0.0.1:{free_port()}"
    # The last has most to do: the first waits for it, and reports.
    programs = [begin_shard(out, index, 3, address, f"--seconds={index / 4}") for index in range(3)]
    for index, (status, text) in enumerate(ended(*programs)):
        assert status == 0, text
        assert f"process {index} of 3" in text
        assert ("drawing figures" in text) == (index == 0)
    assert files(out) == whole
    assert (out / "summary.csv").exists()
    assert {line["shard"] for line in journal.sessions(out)} == {"0 of 3", "1 of 3", "2 of 3"}


def test_one_that_dies_ends_the_others_and_nothing_is_lost(tmp_path, whole):
    out, address = tmp_path / "out", f"--coordinator=localhost:{free_port()}"
    programs = [begin_shard(out, index, 2, address, "--seconds=0.5") for index in range(2)]
    status = out / "results.zarr" / "runs" / "status" / "c"
    wait_for(status.exists)
    programs[0].kill()
    (_, (code, text)) = ended(*programs)
    assert code not in (0, 130)
    assert "another task died" in text
    left = Store.open(out / "results.zarr").pending("runs")
    assert left.any()
    assert not left.all()
    for index in range(2):
        train(out, shard_index=index, shard_count=2)
    assert files(out) == whole
    assert "killed" in {line["how"] for line in journal.sessions(out)}


def test_a_job_of_an_array_that_was_killed_is_begun_again(tmp_path, whole):
    out = tmp_path / "out"
    program = begin_shard(out, 1, 2, "--seconds=100")
    wait_for(lambda: journal.note(out, 1, 2).get("in_hand") if out.exists() else None)
    program.send_signal(signal.SIGKILL)
    program.communicate()
    train(out, shard_index=0, shard_count=2)
    assert Store.open(out / "results.zarr").pending("runs").any()
    train(out, shard_index=1, shard_count=2)
    assert files(out) == whole


OWN = """
import sys
import jax
import jax.numpy as jnp
from sweeps import sweep

def run(key, d0):
    return {"length": jnp.linalg.norm(jax.random.normal(key, (d0,)))}

if __name__ == "__main__":
    places = dict(out=sys.argv[1], coordinator=sys.argv[2], num_processes=1, compilation_cache="")
    lengths = sweep(run, axes={"d0": (3, 5)}, seeds=4, precision="float32", **places)["length"]
    assert not lengths.isnull().any()
"""


def test_slurm_is_found(tmp_path):
    """From Python; both processes have the results."""
    script = tmp_path / "own.py"
    script.write_text(OWN)
    port = free_port(65536 - 4096)
    slurm = {**SLURM, "SLURM_JOB_ID": str(port), "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
    programs = [
        begin(str(script), str(tmp_path / "two"), "auto", **slurm | {"SLURM_PROCID": index, "SLURM_LOCALID": index})
        for index in "01"
    ]
    alone = begin(str(script), str(tmp_path / "one"), "")
    for status, text in ended(*programs, alone):
        assert status == 0, text
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(journal.sessions(tmp_path / "two")) == 2


# Refusals.

IN_TURN = """
import sys, socket
from pathlib import Path
from sweeps.runtime import cluster
from sweeps.study import Execution, UsageError

def refused(**execution):
    try:
        with cluster.joined(Execution(out=Path("none"), **execution), "study"):
            print("joined", file=sys.stderr)
    except UsageError as error:
        print(error, file=sys.stderr)

refused(coordinator="auto")
with socket.create_server(("127.0.0.1", 0)) as taken:
    refused(coordinator=f"127.0.0.1:{taken.getsockname()[1]}", shard_count=2)
cluster.PATIENCE = 1
refused(coordinator=sys.argv[1], shard_index=1, shard_count=2)
"""


def test_no_cluster_no_port_and_no_first_process():
    address = f"127.0.0.1:{free_port()}"
    begun = time.monotonic()
    ((status, text),) = ended(begin("-c", IN_TURN, address))
    lines = [line for line in text.splitlines() if "add_port.cc" not in line]  # The library's own word.
    assert status == 2, text
    assert len(lines) == 3, text
    assert lines[0].startswith("--coordinator: auto finds no cluster of SLURM, Kubernetes, Open MPI or Cloud TPU (")
    assert "Failed to start RPC server" in lines[1]
    assert lines[2].startswith(f"study: --coordinator: the processes of {address} were not all there within 1 seconds;")
    assert time.monotonic() - begun < 30


def join(out, **execution):
    with cluster.joined(Execution(out=out, **execution), "study"):
        raise AssertionError


@pytest.mark.parametrize("missing", [*SLURM, "SLURM_JOB_ID"])
def test_slurm_in_part(missing, tmp_path, monkeypatch):
    for name, value in {**SLURM, "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(missing)
    with pytest.raises(UsageError, match=rf"^--coordinator: this is a job of SLURM without {missing}; start .* srun$"):
        join(tmp_path / "out", coordinator="auto")


def test_a_shard_that_is_at_work_is_left_alone(tmp_path):
    with (
        journal.locked(tmp_path, 1, 2),
        pytest.raises(UsageError, match=r"^--out: another run is writing to .*sweeps\.status"),
    ):
        join(tmp_path, coordinator="127.0.0.1:9", shard_index=1, shard_count=2)


def test_it_is_too_late_when_jax_has_computed(tmp_path):
    jax.local_devices()
    with pytest.raises(
        UsageError, match=r"^--coordinator: jax.distributed.initialize\(\) must be called before [^\n]*$"
    ):
        join(tmp_path, coordinator="127.0.0.1:9", shard_index=1, shard_count=2)


def test_without_a_coordinator_nothing_changes(tmp_path):
    execution = Execution(out=tmp_path, shard_index=1, shard_count=2)
    with cluster.joined(execution, "study") as share:
        assert share is execution


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("[::1]", True),
        ("localhost", True),
        ("10.0.0.1", False),
        ("n1", False),
    ],
)
def test_only_a_loopback_address_is_served_there_alone(host, is_loopback, tmp_path):
    told = cluster._arguments(Execution(out=tmp_path, coordinator=f"{host}:99", shard_count=2))
    assert told["coordinator_bind_address"] == (f"{host}:99" if is_loopback else None)
    assert (told["process_id"], told["num_processes"]) == (0, 2)
