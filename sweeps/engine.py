"""Many runs on the devices of one process: a mesh, shard_map over it, and lanes inside every device.

A device trains its networks side by side in lanes, in chunks of steps; between two chunks the lanes that are done are read
off and given the next runs, by the host: what is compiled is a chunk and nothing else, and a sweep compiles one for every
tile. A CPU wants a handful of lanes, to spread the cost of starting an operation over several small networks while they stay
inside the core's cache; a GPU or TPU wants hundreds. With one lane the networks are trained one after another and each leaves
its loop when it is done. No collective runs inside a compiled chunk.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["STEPS_PER_CHUNK", "Timings", "Work", "chunk", "default_lanes", "in_one_go", "run_on_devices"]

LANES = PartitionSpec("lanes")
STEPS_PER_CHUNK = 200

State: TypeAlias = PyTree
Record: TypeAlias = PyTree
# Seconds by what they went into.
Timings: TypeAlias = dict[str, float]


class Work(NamedTuple):
    """A run that can be interrupted, as pure functions.

    Attributes:
      start: from what describes a run, any pytree of arrays, to its state.
      advance: from a state and a number of steps to the state after at most so many; a state that is done stays.
      is_done: whether a state takes no more steps.
      finish: from a state that is done to what is kept of it.
      num_steps: the largest number of steps of any run.
    """

    start: Callable[[PyTree], State]
    advance: Callable[[State, int | Int[Array, ""]], State]
    is_done: Callable[[State], Bool[Array, ""]]
    finish: Callable[[State], Record]
    num_steps: int


def in_one_go(follow: Callable[[PyTree], Record]) -> Work:
    """A run that is not interrupted: `follow` goes from what describes it to what is kept of it."""
    return Work(
        start=follow,
        advance=lambda record, _: record,
        is_done=lambda _: jnp.bool_(True),
        finish=lambda record: record,
        num_steps=1,
    )


def default_lanes(backend: str, num_weights: int) -> int:
    """How many runs a device trains side by side unless told otherwise.

    512 on an accelerator. On a CPU 8 for networks of up to 200 weights in the hidden layer, 4 up to 500, and 1 for larger ones:
    the more lanes, the cheaper the start of an operation is for each of them, and the more of them are idle at a tile's end.
    """
    if backend != "cpu":
        return 512
    return 8 if num_weights <= 200 else 4 if num_weights <= 500 else 1


def _take(runs: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _put(rows: PyTree, into: PyTree, index: np.ndarray) -> None:
    """Overwrites some rows of NumPy arrays."""
    for leaf, new in zip(jax.tree.leaves(into), jax.tree.leaves(rows), strict=True):
        leaf[index] = new


def _count(runs: PyTree) -> int:
    return jax.tree.leaves(runs)[0].shape[0]


def _one_after_another(work: Work, runs: PyTree, mesh: Mesh) -> tuple[Record, Timings]:
    """All runs in one compiled program, dealt out over the devices."""
    # Dealt out like cards, so that neighbours, which take about as long, go to different devices. Repeats fill the last
    # round.
    num_runs, num_devices = _count(runs), mesh.size
    per_device = -(-num_runs // num_devices)
    dealt = np.arange(per_device * num_devices).reshape(per_device, num_devices).T.ravel()
    follow = lambda run: work.finish(work.advance(work.start(run), work.num_steps))
    mapped = jax.shard_map(
        lambda rows: jax.lax.map(follow, rows),
        mesh=mesh,
        in_specs=LANES,
        out_specs=LANES,
        check_vma=False,  # Loops that nothing crosses: every value may differ between devices.
    )
    begun = time.perf_counter()
    dealt_runs = jax.device_put(_take(runs, np.minimum(dealt, num_runs - 1)), NamedSharding(mesh, LANES))
    compiled = jax.jit(mapped).lower(dealt_runs).compile()
    compilation = time.perf_counter() - begun
    records = jax.device_get(compiled(dealt_runs))
    place = np.empty(len(dealt), dtype=np.intp)
    place[dealt] = np.arange(len(dealt))
    timings = {"compilation": compilation, "running": time.perf_counter() - begun - compilation}
    return _take(records, place[:num_runs]), timings


def _is_on_host(states: State) -> bool:
    return all(device.platform == "cpu" for device in jax.tree.leaves(states)[0].devices())


def _exchange(states: State, lanes: np.ndarray, entering: State) -> tuple[State, State]:
    """Puts other runs into some lanes; what was there, on the host, and the new states.

    On a CPU it is done with NumPy: the programs for it would take as long to compile as the chunk itself. Elsewhere only the
    lanes that change travel.
    """
    sharding = jax.tree.map(lambda leaf: leaf.sharding, states)
    if _is_on_host(states):
        states = jax.tree.map(np.array, states)  # Copies that can be written to.
        left = _take(states, lanes)
        _put(entering, states, lanes)
    else:
        left = jax.device_get(_take(states, lanes))
        states = jax.tree.map(lambda leaf, new: leaf.at[lanes].set(new), states, entering)
    return left, jax.device_put(states, sharding)


def chunk(work: Work, num_steps: int) -> Callable[[State], tuple[State, Bool[Array, " lanes"]]]:
    """So many steps of the runs that stand side by side in the states, and which of them are done; this is what is compiled."""

    def advance(states: State) -> tuple[State, Bool[Array, " lanes"]]:
        states = jax.vmap(lambda state: work.advance(state, num_steps))(states)
        return states, jax.vmap(work.is_done)(states)

    return advance


def _in_lanes(work: Work, runs: PyTree, mesh: Mesh, lanes: int, steps_per_chunk: int) -> tuple[Record, Timings]:
    """All runs through `lanes` lanes of every device; a lane that is done is read off and takes the next run."""
    num_runs, num_lanes = _count(runs), lanes * mesh.size
    begun = time.perf_counter()
    start, finish = (jax.jit(jax.vmap(part)) for part in (work.start, work.finish))
    starts = jax.device_get(start.lower(runs).compile()(runs))

    # More lanes than runs: the last run is done more than once.
    owners = np.minimum(np.arange(num_lanes), num_runs - 1)
    states = jax.device_put(_take(starts, owners), NamedSharding(mesh, LANES))
    mapped = jax.shard_map(chunk(work, steps_per_chunk), mesh=mesh, in_specs=LANES, out_specs=LANES, check_vma=False)
    advance = jax.jit(mapped, donate_argnums=0).lower(states).compile()
    compilation = time.perf_counter() - begun

    ends = jax.tree.map(np.zeros_like, starts)

    following = num_lanes
    while True:
        states, done = advance(states)
        free = np.flatnonzero(done)
        if following >= num_runs:
            if len(free) == num_lanes:
                break
        elif len(free):
            entering = np.arange(following, min(following + len(free), num_runs))
            free, following = free[: len(entering)], following + len(entering)
            left, states = _exchange(states, free, _take(starts, entering))
            _put(left, ends, owners[free])
            owners[free] = entering
    _put(jax.device_get(states), ends, owners)
    running = time.perf_counter()
    finished = finish.lower(ends).compile()
    compilation += time.perf_counter() - running
    records = jax.device_get(finished(ends))
    return records, {"compilation": compilation, "running": time.perf_counter() - begun - compilation}


def run_on_devices(
    work: Work,
    runs: PyTree,
    *,
    lanes: int,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    devices: list[jax.Device] | None = None,
) -> tuple[Record, Timings]:
    """`work` from start to finish on every run.

    Args:
      work: the run.
      runs: what describes them, stacked along a leading axis.
      lanes: runs side by side on every device; 1 for one after another.
      steps_per_chunk: steps between two looks at which lanes are done; without effect when `lanes` is 1.
      devices: all local ones when None.

    Returns:
      The records in the order of `runs`, on the host, and the seconds that went into compilation (tracing, lowering, and
      compiling or reading the compiled program from the disk) and into running. A record depends on its own run and on
      `lanes`, not on the other runs.
    """
    devices = jax.local_devices() if devices is None else devices
    mesh = Mesh(np.asarray(devices), ("lanes",))
    # On the host, where rows are picked with NumPy: JAX would compile a program for every shape.
    runs = jax.device_get(runs)
    lanes = min(lanes, -(-_count(runs) // len(devices)))
    if lanes == 1:
        return _one_after_another(work, runs, mesh)
    return _in_lanes(work, runs, mesh, lanes, steps_per_chunk)
