"""Tiles through worker processes, each pinned to a core.

XLA's thread pool costs small networks dearly, so on a CPU a process a core beats one process with a device a core.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

__all__ = ["available_cores", "map_unordered", "one_thread"]

Task = TypeVar("Task")


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


def _begin(counter: Any, cores: list[int], initialize: Callable[[], None]) -> None:
    """In a new worker: one core, no signals (the parent decides when to leave), and no longer than the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    with counter.get_lock():
        index = counter.value
        counter.value += 1
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores[index % len(cores)]})
    initialize()


def map_unordered(
    function: Callable[[Task], Any],
    tasks: Iterable[Task],
    num_processes: int,
    initialize: Callable[[], None],
    stop: Callable[[], bool],
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Task, Any]]:
    """(task, function(task)) as they are done, the tasks begun in their order, each taken when a process is free.

    Args:
      function: what is done to a task; picklable when there are several processes, like the tasks and results.
      tasks: what to do.
      num_processes: 1 does everything in this process.
      initialize: called once in every process before its first task.
      stop: asked before every new task; once it says True no other begins, and those begun are finished.
      tick: called about twice a second while there are several processes.

    Raises:
      concurrent.futures.process.BrokenProcessPool: a worker died.
    """
    queue = iter(tasks)
    if num_processes == 1:
        initialize()
        for task in queue:
            if stop():
                return
            yield task, function(task)
        return
    context = multiprocessing.get_context("spawn")
    begin = functools.partial(_begin, context.Value("i", 0), available_cores(), initialize)
    with ProcessPoolExecutor(num_processes, mp_context=context, initializer=begin) as pool:
        running: dict[Any, Task] = {}
        try:
            while True:
                while len(running) < num_processes and not stop():
                    following = next(queue, None)
                    if following is None:
                        break
                    running[pool.submit(function, following)] = following
                if not running:
                    return
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                tick()
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()
