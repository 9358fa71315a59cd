"""Many runs on the devices of one process: a mesh, shard_map over it, and lanes inside every device.

A device trains its networks side by side in lanes, in chunks of steps; between two chunks the lanes that are done are read
off and given the next runs. A CPU wants a handful, to spread the cost of starting an operation over several small networks
while they stay inside the core's cache; a GPU or TPU wants hundreds. With one lane the networks are trained one after another
and each leaves its loop when it is done. No collective runs inside the compiled program.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["Timings", "Work", "default_lanes", "in_one_go", "map_runs", "run_on_devices"]

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

    512 on an accelerator. On a CPU 8 for networks of up to 1,000 weights in the hidden layer, and 1 for larger ones, which
    are faster alone (`scripts/benchmark` times both).
    """
    if backend != "cpu":
        return 512
    return 8 if num_weights <= 1000 else 1


def _take(runs: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _count(runs: PyTree) -> int:
    return jax.tree.leaves(runs)[0].shape[0]


def _in_lanes(work: Work, runs: PyTree, lanes: int, steps_per_chunk: int) -> Record:
    """All runs through `lanes` lanes; a lane that is done is read off and takes the next run."""
    num_runs = _count(runs)
    start, finish = jax.vmap(work.start), jax.vmap(work.finish)
    states_like = jax.eval_shape(start, _take(runs, jnp.zeros(lanes, jnp.int32)))
    records_like = jax.eval_shape(finish, states_like)
    # Every lane begins empty: it is done, and its owner is no run.
    states = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), states_like)
    records = jax.tree.map(lambda leaf: jnp.zeros((num_runs, *leaf.shape[1:]), leaf.dtype), records_like)
    empty = jnp.full(lanes, num_runs)

    def select(mask: Bool[Array, " rows"], new: State, old: State) -> State:
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)

    def refill(carry):
        states, owner, done, following, records = carry
        # Which lane has just finished a run, if any has. Comparing all runs with all lanes compiles in a fraction of the time
        # that scattering and accumulating take.
        from_lane = (jnp.arange(num_runs)[:, None] == owner) & done
        lane, finished = jnp.argmax(from_lane, axis=1), jnp.any(from_lane, axis=1)
        records = select(finished, _take(finish(states), lane), records)
        earlier = jnp.tril(jnp.ones((lanes, lanes), bool), -1) & done
        owner = jnp.where(done, jnp.minimum(following + jnp.sum(earlier, axis=1), num_runs), owner)
        fresh = start(_take(runs, jnp.minimum(owner, num_runs - 1)))
        return select(done, fresh, states), owner, jnp.zeros_like(done), following + jnp.sum(done), records

    def visit(carry):
        states, owner, _, following, records = jax.lax.cond(jnp.any(carry[2]), refill, lambda carry: carry, carry)
        busy = owner < num_runs
        states = jax.vmap(work.advance)(states, jnp.where(busy, steps_per_chunk, 0))
        return states, owner, jax.vmap(work.is_done)(states) & busy, following, records

    carry = (states, empty, jnp.ones(lanes, bool), jnp.asarray(0), records)
    unfinished = lambda carry: jnp.any(carry[1] < num_runs) | (carry[3] < num_runs)
    return jax.lax.while_loop(unfinished, visit, carry)[4]


def map_runs(work: Work, runs: PyTree, lanes: int, steps_per_chunk: int) -> Record:
    """`work` from start to finish on every row of `runs`, on one device.

    Args:
      work: the run.
      runs: what describes them, stacked along a leading axis.
      lanes: runs side by side; 1 for one after another.
      steps_per_chunk: steps between two looks at which lanes are done; without effect when `lanes` is 1.

    Returns:
      The records, stacked in the order of `runs`. A record depends on its own run and on `lanes`, not on the others.
    """
    lanes = min(lanes, _count(runs))
    if lanes == 1:
        return jax.lax.map(lambda run: work.finish(work.advance(work.start(run), work.num_steps)), runs)
    return _in_lanes(work, runs, lanes, steps_per_chunk)


def run_on_devices(
    work: Work,
    runs: PyTree,
    *,
    lanes: int,
    steps_per_chunk: int = 100,
    devices: list[jax.Device] | None = None,
) -> tuple[Record, Timings]:
    """`map_runs` with the runs dealt out over devices, in one compiled program.

    Args:
      work: the run.
      runs: what describes them, stacked along a leading axis.
      lanes, steps_per_chunk: as for `map_runs`, on every device.
      devices: all local ones when None.

    Returns:
      The records in the order of `runs`, on the host, and the seconds that went into compilation (tracing, lowering, and
      compiling or reading the compiled program from the disk) and into running (training and measuring).
    """
    devices = jax.local_devices() if devices is None else devices
    # Dealt out like cards, so that neighbours, which take about as long, go to different devices. Repeats fill the last
    # round.
    num_runs = _count(runs)
    per_device = -(-num_runs // len(devices))
    dealt = np.arange(per_device * len(devices)).reshape(per_device, len(devices)).T.ravel()
    order = np.minimum(dealt, num_runs - 1)
    mesh = Mesh(np.asarray(devices), ("runs",))
    spec = PartitionSpec("runs")
    mapped = jax.shard_map(
        lambda rows: map_runs(work, rows, lanes, steps_per_chunk),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,  # Loops that nothing crosses: every value may differ between devices.
    )
    started = time.perf_counter()
    # Rows are picked with NumPy: JAX would compile a program for every shape.
    dealt_runs = jax.device_put(_take(jax.device_get(runs), order), NamedSharding(mesh, spec))
    compiled = jax.jit(mapped).lower(dealt_runs).compile()
    compilation = time.perf_counter() - started
    records = jax.device_get(compiled(dealt_runs))
    place = np.empty(len(order), dtype=np.intp)
    place[dealt] = np.arange(len(order))
    timings = {"compilation": compilation, "running": time.perf_counter() - started - compilation}
    return _take(records, place[:num_runs]), timings
