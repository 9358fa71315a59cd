"""One study in processes on many machines, which find each other through JAX's coordination service.

Each does its share of the tiles as it would alone, on its own devices; nothing is exchanged, and no device waits for
another's. They wait for each other twice: `jax.distributed.initialize` returns when all are there, and at the end
there is a barrier of the service, after which the first process alone reports.
"""

import atexit
import dataclasses
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from absl import logging

from sweeps.runtime.journal import locked
from sweeps.runtime.processes import GRACE
from sweeps.study import Execution, TileError, UsageError

__all__ = ["joined"]

# Seconds in which all processes must have come.
PATIENCE = 300
# And those that the first may wait for the last when its own share is done: twenty days.
_SHARES_DIFFER = 20 * 24 * 3600
# What JAX needs to know of SLURM; `srun` sets them all, `sbatch` alone some of them.
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_OPEN_MPI = "OMPI_MCA_orte_hnp_uri"  # `mpirun` inside a job of SLURM is a cluster of its own.


@contextmanager
def joined(execution: Execution, name: str) -> Iterator[Execution]:
    """The share of this process, among all that the coordinator brings together; they all leave it together.

    Without a coordinator it is what it was. Who leaves by an error waits for the others a few seconds only; JAX then
    ends them.

    Args:
      execution: with its coordinator.
      name: of the study, for what is said where nothing can be raised.

    Raises:
      UsageError: there is no cluster, its variables are not whole, JAX has computed already, or its service says no.

    Where the others do not come in time the program ends after one line, with status 2: the connection that waits for
    them cannot be called off.
    """
    if not execution.coordinator:
        yield execution
        return
    # What JAX itself offers runs on devices, or waits for five minutes (its `shutdown`). It takes a second to load.
    from orbax.checkpoint import multihost

    share = _join(execution, name)
    meet = multihost.get_barrier_sync_fn()
    try:
        try:
            yield share
        except TileError:  # What failed here is no reason to end the others.
            _wait(meet)
            raise
        _wait(meet)
    except BaseException as error:
        _leave_early(getattr(error, "exit_code", getattr(error, "code", 1)))
        raise
    with _interruptible():
        jax.distributed.shutdown()


def _join(execution: Execution, name: str) -> Execution:
    where = _arguments(execution)
    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _in_time(name, execution.coordinator), _interruptible():
            jax.distributed.initialize(**where, initialization_timeout=2 * PATIENCE)
            index, count = jax.process_index(), jax.process_count()
    except ValueError as error:
        raise UsageError(
            f"--coordinator: auto finds no cluster of SLURM, Kubernetes, Open MPI or Cloud TPU ({error}); give "
            "host:port of the first process, --shard_index and --shard_count"
        ) from error
    except Exception as error:  # Every kind of cluster has errors of its own.
        what = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"--coordinator: {what} ({execution.coordinator})") from error
    logging.info("process %d of %d", index, count)
    return dataclasses.replace(execution, coordinator="", shard_index=index, shard_count=count)


def _arguments(execution: Execution) -> dict[str, Any]:
    """What `jax.distributed.initialize` is told."""
    if execution.coordinator == "auto":
        missing = [name for name in _SLURM if name not in os.environ]
        if 0 < len(missing) < len(_SLURM) and _OPEN_MPI not in os.environ:
            raise UsageError(
                f"--coordinator: this is a job of SLURM without {', '.join(missing)}; start its processes by srun"
            )
        return {}
    if execution.out.is_dir():
        # A second process of one index would make JAX end the first, and with it all others.
        with locked(execution.out, execution.shard_index, execution.shard_count):
            pass
    is_loopback = _is_loopback(execution.coordinator)
    if execution.shard_index == 0:
        _check_port(execution.coordinator, is_loopback)
    return {
        "coordinator_address": execution.coordinator,
        "num_processes": execution.shard_count,
        "process_id": execution.shard_index,
        "cluster_detection_method": "deactivate",
        # On all interfaces otherwise, unless JAX's own variable says where.
        "coordinator_bind_address": execution.coordinator if is_loopback else None,
    }


def _check_port(address: str, is_loopback: bool) -> None:
    """Refuses a port that is taken, at which JAX's service dies now and then."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_server((host.strip("[]") if is_loopback else "", int(port))).close()
    except OSError as error:
        raise UsageError(f"--coordinator: cannot serve at {address}: {error.strerror or error}") from error


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _in_time(name: str, coordinator: str) -> Iterator[None]:
    """Ends the program where this takes too long: JAX would abort it, with a trace of its stack."""

    def end() -> None:
        print(
            f"{name}: --coordinator: the processes of {coordinator} were not all there within {PATIENCE} seconds; "
            "start them together, and see that they reach the first one",
            file=sys.stderr,
            flush=True,
        )
        os._exit(UsageError.exit_code)

    watch = threading.Timer(PATIENCE, end)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the program: Python's own handler would wait for the library to return."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(meet: Callable[..., None]) -> None:
    """Until all have done their share.

    Raises:
      TileError: one has left without.
    """
    logging.info("waiting for the other processes")
    try:
        with _interruptible():
            meet(key="shares_done", timeout_ms=1000 * _SHARES_DIFFER)
    except RuntimeError as error:
        raise TileError(
            "--coordinator: another process has left before its share was done; all finished tiles are kept, and the "
            "same command goes on"
        ) from error


def _leave_early(status: Any) -> None:
    """Leaves with the others when they leave now, and otherwise alone."""
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(GRACE)
    if leaving.is_alive():
        # Or JAX would wait for them when the interpreter ends.
        atexit.register(os._exit, status if isinstance(status, int) else 1)
