"""Many runs on the devices of one process: a mesh, shard_map over it, and lanes inside every device.

With one lane a device trains its networks one after another, each inside the core's cache and each leaving its loop when
it is done: that is what a CPU wants. With hundreds of lanes it trains them side by side in chunks of steps; between two
chunks the lanes that are done are read off and given the next runs: that is what a GPU or TPU wants. No collective
runs inside the compiled program.
"""

import time
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

__all__ = ["Timings", "Work", "default_lanes", "map_runs", "run_on_devices"]

State: TypeAlias = PyTree
Record: TypeAlias = dict[str, Array]
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


def default_lanes(backend: str) -> int:
    """How many runs a device trains side by side unless told otherwise: 1 on a CPU, 512 elsewhere."""
    return 1 if backend == "cpu" else 512


def _take(runs: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _count(runs: PyTree) -> int:
    return jax.tree.leaves(runs)[0].shape[0]


def _in_lanes(work: Work, runs: PyTree, lanes: int, steps_per_chunk: int) -> Record:
    """All runs through `lanes` lanes; a lane that is done takes the next run. Lane i begins with run i."""
    num_runs = _count(runs)
    start = jax.vmap(work.start)
    kept = jax.eval_shape(jax.vmap(work.finish), jax.eval_shape(start, runs))
    records = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)

    def select(mask: Bool[Array, " lanes"], new: State, old: State) -> State:
        return jax.tree.map(lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old)

    def refill(carry):
        states, owner, following, records, done = carry
        finished = jax.vmap(work.finish)(states)
        slot = jnp.where(done, owner, num_runs)  # Out of range, and dropped, for the lanes that go on.
        records = jax.tree.map(lambda all_, new: all_.at[slot].set(new, mode="drop"), records, finished)
        successor = jnp.minimum(following + jnp.cumsum(done) - 1, num_runs)
        owner = jnp.where(done, successor, owner)
        fresh = start(_take(runs, jnp.minimum(owner, num_runs - 1)))
        return select(done, fresh, states), owner, following + jnp.sum(done), records

    def visit(carry):
        states, owner, following, records = carry
        busy = owner < num_runs
        states = jax.vmap(work.advance)(states, jnp.where(busy, steps_per_chunk, 0))
        done = jax.vmap(work.is_done)(states) & busy
        return jax.lax.cond(jnp.any(done), refill, lambda carry: carry[:-1], (states, owner, following, records, done))

    owner = jnp.arange(lanes)
    carry = (start(_take(runs, owner)), owner, jnp.asarray(lanes), records)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] < num_runs), visit, carry)[3]


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
    steps_per_chunk: int = 500,
    devices: list[jax.Device] | None = None,
) -> tuple[dict[str, np.ndarray], Timings]:
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
    dealt_runs = jax.device_put(_take(runs, order), NamedSharding(mesh, spec))
    compiled = jax.jit(mapped).lower(dealt_runs).compile()
    compilation = time.perf_counter() - started
    records = jax.device_get(compiled(dealt_runs))
    place = np.empty(len(order), dtype=np.intp)
    place[dealt] = np.arange(len(order))
    timings = {"compilation": compilation, "running": time.perf_counter() - started - compilation}
    return {name: values[place[:num_runs]] for name, values in records.items()}, timings
