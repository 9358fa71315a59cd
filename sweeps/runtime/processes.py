"""Tiles through worker processes, each pinned to a core.

XLA's thread pool costs small networks dearly, so on a CPU a process a core beats one process with a device a core.
A worker that dies is replaced, and its task goes back to whoever gave it.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, TypeVar

__all__ = ["GRACE", "Died", "WorkerError", "available_cores", "map_unordered", "one_thread"]

Task = TypeVar("Task")

# Seconds that tasks in hand have to end, after somebody asked to stop.
GRACE = 3.0
# Workers that die one after another before any of them was ready.
_MOST_FALSE_STARTS = 3


class WorkerError(RuntimeError):
    """Worker processes cannot start; the message is one line."""


class Died(NamedTuple):
    """What comes instead of a result when the worker died at its task.

    Attributes:
      exit_code: of the process; -9 when it was killed by signal 9, as the system does when memory is short.
    """

    exit_code: int

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"ended with status {self.exit_code}"
        killed = f"was killed by signal {-self.exit_code}"
        return f"{killed} (out of memory?)" if self.exit_code == -signal.SIGKILL else killed


def one_thread() -> dict[str, str]:
    """Variables for the environment of workers, which are pinned to a core each; what the user has set stays."""
    # A network trains on one core; splitting its small products over threads costs more than it gains.
    flags = os.environ.get("XLA_FLAGS", "")
    single = "" if "xla_cpu_multi_thread_eigen" in flags else " --xla_cpu_multi_thread_eigen=false"
    # Threads of BLAS would fight for the core.
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
    return {
        "XLA_FLAGS": f"{flags}{single}".strip(),
        **{name: os.environ.get(name, one) for name, one in threads.items()},
    }


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _signals_later() -> Iterator[None]:
    """What is started here begins with these signals blocked; they reach this process when it is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Any, core: int, initialize: Callable[[], None], function: Callable[[Any], Any]) -> None:
    """A worker: one core, no signals (the parent decides when to leave), and no longer than the parent."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    initialize()
    with suppress(BrokenPipeError):  # The parent is dead, and this process about to be.
        connection.send(None)
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            done: tuple[Any, Exception | None] = function(task), None
        except Exception as error:
            done = None, _portable(error)
        connection.send(done)


def _portable(error: Exception) -> Exception:
    """An error that another process can read, with what it said here."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note("in a worker process:\n" + traceback.format_exc())
    return error


class _Worker:
    """A worker process as its parent sees it.

    Attributes:
      core: that it is pinned to.
      is_ready: whether it has begun.
      task: what it has in hand, in a list of at most one.
    """

    def __init__(self, context: Any, initialize: Callable[[], None], function: Callable[[Any], Any], core: int) -> None:
        self.core, self.is_ready = core, False
        self.task: list[Any] = []
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, core, initialize, function))
        # Begun by the first start otherwise, it would let signals through in the middle of it.
        resource_tracker.ensure_running()
        with _signals_later():
            self.process.start()
        theirs.close()

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.task

    @property
    def waits_for(self) -> tuple[Any, Any]:
        """Ready when it says something, or is dead."""
        return self.connection, self.process.sentinel

    def begin(self, task: Any) -> None:
        """Gives it a task."""
        self.task = [task]
        with suppress(OSError):  # It is dead: that is seen when it is asked.
            self.connection.send(task)

    def ask(self) -> tuple[Any, Exception | None] | None:
        """A result or an error; None when it has begun.

        Raises:
          EOFError: it is dead.
        """
        try:
            if not self.connection.poll():
                raise EOFError
            said = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        self.is_ready = True
        return said

    def end(self, *, at_once: bool = False) -> int:
        """Ends it, and returns its exit code."""
        self.connection.close()
        if at_once:
            self.process.kill()
        self.process.join(5)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return int(self.process.exitcode or 0)


def map_unordered(
    function: Callable[[Task], Any],
    tasks: Iterable[Task],
    num_processes: int,
    initialize: Callable[[], None],
    stop: Callable[[], bool],
    tick: Callable[[], None] = lambda: None,
    grace: float = GRACE,
) -> Generator[tuple[Task, Any], None, None]:
    """(task, function(task)) as they are done, the tasks begun in their order, each taken when a process is free.

    Args:
      function: what is done to a task; picklable when there are several processes, like the tasks and results.
      tasks: what to do; asked again after it had none while something was in hand.
      num_processes: 1 does everything in this process.
      initialize: called once in every process before its first task.
      stop: asked before every new task; once it says True no other begins.
      tick: called about twice a second while there are several processes.
      grace: seconds that tasks in hand have to end after `stop`; then their workers are killed.

    Yields:
      The task and its result, or `Died` where the worker died at it; another worker takes its place.

    Raises:
      WorkerError: workers do not start.
      Exception: whatever the function raises.
    """
    queue = iter(tasks)
    if num_processes == 1:
        initialize()
        while not stop() and (following := next(queue, None)) is not None:
            yield following, function(following)
        return
    begin = functools.partial(_Worker, multiprocessing.get_context("spawn"), initialize, function)
    cores, false_starts, asked = available_cores(), 0, None
    workers: list[_Worker] = []
    try:
        for index in range(num_processes):
            workers.append(begin(cores[index % len(cores)]))
        while True:
            if stop():
                asked = time.monotonic() if asked is None else asked
                if time.monotonic() - asked >= grace:
                    return
            elif false_starts == _MOST_FALSE_STARTS:
                raise WorkerError("worker processes end before they have begun; the lines above say why")
            else:
                for worker in workers:
                    if worker.is_idle and (following := next(queue, None)) is not None:
                        worker.begin(following)
            if not any(worker.task for worker in workers) and (asked or any(worker.is_idle for worker in workers)):
                return
            ready = multiprocessing.connection.wait([part for worker in workers for part in worker.waits_for], 0.5)
            tick()
            for index, worker in enumerate(workers):
                if not set(worker.waits_for) & set(ready):
                    continue
                task, worker.task = worker.task, []
                try:
                    said = worker.ask()
                except EOFError:
                    false_starts += not worker.is_ready
                    workers[index] = begin(worker.core)
                    died = Died(worker.end())
                    if task:
                        yield task[0], died
                    continue
                false_starts = 0
                if said is not None:
                    result, error = said
                    if error is not None:
                        raise error
                    yield task[0], result
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            worker.end(at_once=bool(worker.task) or not worker.is_ready)
