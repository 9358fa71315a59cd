"""Processes that do one study together, over the loopback interface; none of them survives the death of another."""

import contextlib
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from support import ROOT

from sweeps.command import app
from sweeps.runtime import cluster, journal, session
from sweeps.runtime.store import Store
from sweeps.study import Execution, UsageError

pytestmark = pytest.mark.compiled_alike

SLURM = {"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from support.faulty import Faulty
from sweeps.command import app

waves = jax.jit(lambda x: jnp.sin(x[:, None] * jnp.arange(9.0)) @ jnp.cos(jnp.arange(9.0)))

class Waves(Faulty):
    name = "waves"

    def run_tile(self, tile, execution):
        records, timings = super().run_tile(tile, execution)
        return {**records, "value": waves(records["value"])}, timings

if __name__ == "__main__":
    app.main(Waves, sys.argv)
"""


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
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *words], stderr=subprocess.PIPE, text=True, env=known | variables
    )


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A study whose tiles are a product each."""
    path = tmp_path_factory.mktemp("program") / "waves.py"
    path.write_text(PROGRAM)
    return path


def begin_shard(program, out, index, count, *flags):
    flags = (*flags, f"--shard_index={index}", f"--shard_count={count}")
    return begin(program, f"--out={out}", "--compilation_cache=", "--num_processes=1", *flags)


def train(program, out, **execution):
    """The same in this process."""
    with app.as_a_program():
        study = runpy.run_path(str(program))["Waves"].make()
        session.train(study, Execution(out=out, num_processes=1, compilation_cache="", **execution))


def ended(*programs):
    """The status and what it said of each; those that hang say where."""
    deadline, said = time.monotonic() + 60, []
    for program in programs:
        try:
            said.append(program.communicate(timeout=max(deadline - time.monotonic(), 0.1))[1])
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGABRT)
            said.append(program.communicate()[1])
    return [(program.returncode, text) for program, text in zip(programs, said, strict=True)]


def wait_for(said):
    deadline = time.monotonic() + 60
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("whole") / "out"
    train(program, out)
    return files(out)


def test_three_processes_make_the_store_of_one(tmp_path, program, whole):
    out, address = tmp_path / "out", f"--coordinator=127.0.0.1:{free_port()}"
    # The last has most to do: the first waits for it, and reports.
    programs = [begin_shard(program, out, index, 3, address, f"--seconds={index / 4}") for index in range(3)]
    for index, (status, text) in enumerate(ended(*programs)):
        assert status == 0, text
        assert f"process {index} of 3" in text
        assert ("drawing figures" in text) == (index == 0)
    assert files(out) == whole
    assert (out / "summary.csv").exists()
    assert {line["shard"] for line in journal.sessions(out)} == {"0 of 3", "1 of 3", "2 of 3"}


def test_one_that_dies_ends_the_others_and_nothing_is_lost(tmp_path, program, whole):
    out, address = tmp_path / "out", f"--coordinator=localhost:{free_port()}"
    programs = [begin_shard(program, out, index, 2, address, "--seconds=1") for index in range(2)]
    wait_for(lambda: journal.note(out, 0, 2).get("tiles") if out.exists() else None)
    programs[0].kill()
    (_, (code, text)) = ended(*programs)
    assert code not in (0, 130)
    assert "another task died" in text
    left = Store.open(out / "results.zarr").pending("runs")
    assert left.any()
    assert not left.all()
    for index in range(2):
        train(program, out, shard_index=index, shard_count=2)
    assert files(out) == whole
    assert "killed" in {line["how"] for line in journal.sessions(out)}


def test_a_job_of_an_array_that_was_killed_is_begun_again(tmp_path, program, whole):
    out = tmp_path / "out"
    job = begin_shard(program, out, 1, 2, "--seconds=100")
    wait_for(lambda: journal.note(out, 1, 2).get("in_hand") if out.exists() else None)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    train(program, out, shard_index=0, shard_count=2)
    assert Store.open(out / "results.zarr").pending("runs").any()
    train(program, out, shard_index=1, shard_count=2)
    assert files(out) == whole


def test_slurm_is_found(tmp_path, program, whole):
    port = free_port(65536 - 4096)  # JAX takes one of these, by the number of the job.
    slurm = {**SLURM, "SLURM_JOB_ID": str(port), "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
    flags = (f"--out={tmp_path / 'out'}", "--compilation_cache=", "--num_processes=1", "--coordinator=auto")
    programs = [begin(program, *flags, **slurm | {"SLURM_PROCID": index, "SLURM_LOCALID": index}) for index in "01"]
    for status, text in ended(*programs):
        assert status == 0, text
    assert files(tmp_path / "out") == whole
    assert {line["num_devices"] for line in journal.sessions(tmp_path / "out")} == {1}


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
    assert status == 2, text
    no_cluster, taken, alone = text.splitlines()
    assert no_cluster.startswith("--coordinator: auto finds no cluster of SLURM, Kubernetes, Open MPI or Cloud TPU (")
    assert re.fullmatch(r"--coordinator: cannot serve at 127.0.0.1:\d+: Address already in use.*", taken)
    assert alone.startswith(f"study: --coordinator: the processes of {address} were not all there within 1 seconds;")
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
    told = cluster._arguments(Execution(out=tmp_path, coordinator=f"{host}:99", shard_index=1, shard_count=2))
    assert told["coordinator_bind_address"] == (f"{host}:99" if is_loopback else None)
    assert (told["process_id"], told["num_processes"]) == (1, 2)
