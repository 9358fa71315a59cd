"""Many runs on the devices of one process: a mesh, shard_map over it, and lanes inside every device.

A device trains its networks side by side in lanes, in chunks of steps; between two chunks the lanes that are done are read
off and given the next runs, by the host: what is compiled is a chunk and nothing else, and a sweep compiles one for every
tile. A CPU wants a handful of lanes, to spread the cost of starting an operation over several small networks while they stay
inside the core's cache; a GPU or TPU wants hundreds. With one lane the networks are trained one after another. Either
way a run is asked at every step, inside the compiled loop, whether it is done. No collective runs inside a compiled
chunk.

Runs that cannot be interrupted (`InOneGo`) fill the lanes in batches, the next when all of the last are done.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["STEPS_PER_CHUNK", "InOneGo", "Lane", "Timings", "Work", "begin", "chunk", "default_lanes", "run_on_devices"]

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
      advance: from a state and a number of steps to the state after so many; with 0 steps, to the state that has been
        looked at, of which `is_done` can be asked.
      is_done: whether a state takes no more steps.
      finish: from the last state to what is kept of it.
      num_steps: the largest number of steps of any run.
      asks_itself: a promise that `advance` takes no step of a state that is done. The engine then hands over many steps
        at once, which is faster; otherwise it takes them one by one, and asks before each.
    """

    start: Callable[[PyTree], State]
    advance: Callable[[State, int | Int[Array, ""]], State]
    is_done: Callable[[State], Bool[Array, ""]]
    finish: Callable[[State], Record]
    num_steps: int
    asks_itself: bool = False


class InOneGo(NamedTuple):
    """A run that is not interrupted.

    Attributes:
      follow: from what describes it, any pytree of arrays, to what is kept of it.
    """

    follow: Callable[[PyTree], Record]


class Lane(NamedTuple):
    """A run under way.

    Attributes:
      taken: steps that it was given.
      state: of the run.
    """

    taken: Int[Array, ""]
    state: State


def begin(work: Work) -> Callable[[PyTree], Lane]:
    """From what describes a run to the lane that it begins with."""
    return lambda run: Lane(jnp.int32(0), work.start(run))


def _advance(work: Work, lane: Lane, num_steps: int) -> Lane:
    """So many more steps at most; fewer when the run is done, or has taken all of its own."""
    left = jnp.minimum(num_steps, work.num_steps - lane.taken)
    taken = lane.taken + left
    if work.asks_itself:
        return Lane(taken, work.advance(lane.state, left))

    def is_due(now: tuple[Array, State]) -> Array:
        # Whether a state is done is known once it has been looked at.
        return (now[0] <= 0) | ((now[0] <= left) & ~work.is_done(now[1]))

    def step(now: tuple[Array, State]) -> tuple[Array, State]:
        return now[0] + 1, work.advance(now[1], jnp.minimum(now[0], 1))

    return Lane(taken, jax.lax.while_loop(is_due, step, (jnp.int32(0), lane.state))[1])


def _is_done(work: Work, lane: Lane) -> Bool[Array, ""]:
    return work.is_done(lane.state) | (lane.taken >= work.num_steps)


def default_lanes(backend: str, num_weights: int, *, in_one_go: bool = False) -> int:
    """How many runs a device trains side by side unless told otherwise.

    512 on an accelerator. On a CPU 8 for networks of up to 200 weights in the hidden layer, 4 up to 500, and 1 for larger ones:
    the more lanes, the cheaper the start of an operation is for each of them, and the more of them are idle at a tile's
    end; 1 for runs in one go, which wait for each other.
    """
    if backend != "cpu":
        return 512
    return 1 if in_one_go else 8 if num_weights <= 200 else 4 if num_weights <= 500 else 1


def _take(runs: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _put(rows: PyTree, into: PyTree, index: np.ndarray) -> None:
    """Overwrites some rows of NumPy arrays."""
    for leaf, new in zip(jax.tree.leaves(into), jax.tree.leaves(rows), strict=True):
        leaf[index] = new


def _count(runs: PyTree) -> int:
    return jax.tree.leaves(runs)[0].shape[0]


def _in_batches(follow: Callable[[PyTree], Record], runs: PyTree, mesh: Mesh, lanes: int) -> tuple[Record, Timings]:
    """All runs in one compiled program, dealt out over the devices; on each so many side by side, then as many again."""
    # Dealt out like cards, so that neighbours, which take about as long, go to different devices. Repeats of the last
    # run fill the last round.
    num_runs, num_devices = _count(runs), mesh.size
    per_device = -(-num_runs // (num_devices * lanes)) * lanes
    dealt = np.arange(per_device * num_devices).reshape(per_device, num_devices).T.ravel()
    # A batch of one would be a vmap, which costs a CPU its fast products.
    mapped = jax.shard_map(
        lambda rows: jax.lax.map(follow, rows, batch_size=lanes if lanes > 1 else None),
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


def chunk(work: Work, num_steps: int) -> Callable[[Lane], tuple[Lane, Bool[Array, " lanes"]]]:
    """So many steps of the runs that stand side by side, and which of them are done; this is what is compiled."""

    def advance(lanes: Lane) -> tuple[Lane, Bool[Array, " lanes"]]:
        lanes = jax.vmap(lambda lane: _advance(work, lane, num_steps))(lanes)
        return lanes, jax.vmap(lambda lane: _is_done(work, lane))(lanes)

    return advance


def _in_lanes(work: Work, runs: PyTree, mesh: Mesh, lanes: int, steps_per_chunk: int) -> tuple[Record, Timings]:
    """All runs through `lanes` lanes of every device; a lane that is done is read off and takes the next run."""
    num_runs, num_lanes = _count(runs), lanes * mesh.size
    begun = time.perf_counter()
    start = jax.jit(jax.vmap(begin(work)))
    finish = jax.jit(jax.vmap(lambda lane: work.finish(lane.state)))
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
    work: Work | InOneGo,
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
      lanes: runs side by side on every device, at most; 1 for one after another.
      steps_per_chunk: steps between two looks at which lanes are done; without effect when `lanes` is 1 and for runs in
        one go.
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
    if isinstance(work, InOneGo):
        return _in_batches(work.follow, runs, mesh, lanes)
    if lanes == 1:
        follow = lambda run: work.finish(_advance(work, begin(work)(run), work.num_steps).state)
        return _in_batches(follow, runs, mesh, lanes)
    return _in_lanes(work, runs, mesh, lanes, steps_per_chunk)
