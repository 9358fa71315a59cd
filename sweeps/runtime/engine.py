"""Many runs on the devices of one process: a mesh, shard_map over it, and lanes inside every device.

A device trains its networks side by side in lanes, in chunks of steps; between two chunks the lanes that are done are
read off and given the next runs, by the host: what is compiled is a chunk and nothing else, and a sweep compiles one
for every tile. A CPU wants a handful of lanes, to spread the cost of starting an operation over several small networks
while they stay inside the core's cache; a GPU or TPU wants hundreds. With one lane the networks are trained one after
another. Either way a run asks itself at every step, inside the compiled loop, whether it is done
(`relu_sgd.Dynamics`). No collective runs inside a compiled chunk.

Pure functions that are not interrupted are mapped in batches, the next when all of the last are done
(`map_on_devices`).
"""

import dataclasses
import functools
import inspect
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int, PyTree

from relu_sgd._checks import whole_number
from relu_sgd.dynamics import Dynamics
from sweeps.runtime.compilation import compile_quickly

__all__ = [
    "STEPS_PER_CHUNK",
    "Lane",
    "Start",
    "Timings",
    "begin",
    "chunk",
    "default_lanes",
    "lanes_in_memory",
    "map_on_devices",
    "raw",
    "run_on_devices",
    "typed",
]

LANES = PartitionSpec("lanes")
STEPS_PER_CHUNK = 200

State: TypeAlias = PyTree
Record: TypeAlias = PyTree
# Seconds by what they went into.
Timings: TypeAlias = dict[str, float]
# From which run is in each lane, their `Lane`s and which of them are done, to what is put in the place of some.
Between: TypeAlias = Callable[[np.ndarray, "Lane", np.ndarray], Mapping[int, "Lane"]]


class Start(NamedTuple):
    """What `Dynamics.init` begins with.

    Attributes:
      problem: the training set, or what else the dynamics take.
      params: theta_0.
      key: a random key, or None.
    """

    problem: PyTree
    params: PyTree = None
    key: Any = None


class Lane(NamedTuple):
    """A run under way.

    Attributes:
      step: the step that it was told to advance to.
      state: the state of the run, random keys as raw data.
    """

    step: Int[Array, ""]
    state: State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _RawKey:
    """A random key as data that NumPy can hold, and the name of its generator."""

    data: Any
    generator: str = dataclasses.field(metadata={"static": True})


def raw(tree: PyTree) -> PyTree:
    """A pytree with its random keys as raw data, which the host can take apart, put together and save."""

    def unwrap(leaf: Any) -> Any:
        is_key = jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
        return _RawKey(jax.random.key_data(leaf), str(jax.random.key_impl(leaf))) if is_key else leaf

    return jax.tree.map(unwrap, tree)


def typed(tree: PyTree) -> PyTree:
    """The inverse of `raw`."""
    is_raw = lambda leaf: isinstance(leaf, _RawKey)
    wrap = lambda leaf: jax.random.wrap_key_data(leaf.data, impl=leaf.generator) if is_raw(leaf) else leaf
    return jax.tree.map(wrap, tree, is_leaf=is_raw)


def begin(dynamics: Dynamics[Any, Any]) -> Callable[[Start], Lane]:
    """From what describes a run, its keys as `raw` data, to the lane that it begins with."""
    return lambda start: Lane(jnp.int32(0), raw(dynamics.init(*typed(start))))


def default_lanes(backend: str, num_weights: int = 0, *, interruptible: bool = True) -> int:
    """How many runs a device trains side by side unless told otherwise.

    512 on an accelerator (fewer where `lanes_in_memory` says so). On a CPU 8 for networks of up to 200 weights in the
    hidden layer, 4 up to 500, and 1 for larger ones: the more lanes, the cheaper the start of an operation is for each
    of them, and the more of them are idle at a tile's end; 1 for functions that are mapped, which wait for each other.
    """
    if backend != "cpu":
        return 512
    return 1 if not interruptible else 8 if num_weights <= 200 else 4 if num_weights <= 500 else 1


def lanes_in_memory(device: jax.Device, num_bytes: int) -> int:
    """How many runs of so many bytes fit into half of a device's memory; no bound where the device does not say."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return sys.maxsize if not limit else max(1, int(limit) // (2 * num_bytes))


def _take(runs: PyTree, index: Int[Array, "..."] | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], runs)


def _put(rows: PyTree, into: PyTree, index: np.ndarray) -> None:
    """Overwrites some rows of NumPy arrays."""
    for leaf, new in zip(jax.tree.leaves(into), jax.tree.leaves(rows), strict=True):
        leaf[index] = new


def _count(runs: PyTree) -> int:
    return jax.tree.leaves(runs)[0].shape[0]


# Programs that were compiled last, by what they compute and the shapes that they are for.
_PROGRAMS: dict[Hashable, Any] = {}
_NUM_PROGRAMS = 96


# What of JAX's configuration decides a program.
_CONFIGURATION = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_debug_nans",
)


def _may_change(value: Any) -> bool:
    """Whether something may come to compute something else and still be equal to itself: an object that is hashed by
    its identity, or a method of one.
    """
    if isinstance(value, tuple):
        return any(_may_change(entry) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return not frozen or any(_may_change(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, functools.partial):
        return _may_change((value.func, *value.args, *value.keywords.values()))
    if inspect.ismethod(value):
        return _may_change(value.__self__)
    if inspect.isroutine(value) or isinstance(value, type) or value is None:
        return False
    by_identity: Any = object.__hash__
    return type(value).__hash__ is by_identity and not isinstance(value, Mesh | jax.stages.Wrapped)


def _compiled(key: Hashable, function: Any, *arguments: PyTree, once: bool = False) -> Any:
    """The jitted function compiled for arguments of such shapes, or the program of an earlier call with the same key.

    Args:
      key: what decides the function; one that is not hashable, or that may change, has its program compiled anew.
      function: jitted.
      arguments: as it will be called with.
      once: whether it has no loop that is worth a better program.
    """
    make = compile_quickly if once else jax.stages.Lowered.compile
    leaves, structure = jax.tree.flatten(arguments)
    configuration = tuple(getattr(jax.config, name) for name in _CONFIGURATION)
    whole = (key, structure, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves), configuration)
    if _may_change(key):
        return make(function.lower(*arguments))
    try:
        known = _PROGRAMS.pop(whole, None)
    except TypeError:
        return make(function.lower(*arguments))
    _PROGRAMS[whole] = make(function.lower(*arguments)) if known is None else known
    while len(_PROGRAMS) > _NUM_PROGRAMS:
        del _PROGRAMS[next(iter(_PROGRAMS))]
    return _PROGRAMS[whole]


def _mesh(devices: list[jax.Device] | None) -> Mesh:
    return Mesh(np.asarray(jax.local_devices() if devices is None else devices), ("lanes",))


def _mapped(
    key: Hashable, function: Callable[[PyTree], Record], inputs: PyTree, mesh: Mesh, lanes: int
) -> tuple[Record, Timings]:
    """All inputs in one compiled program, dealt out over the devices, on each so many side by side at a time."""
    # Dealt out like cards, so that neighbours, which take about as long, go to different devices. Repeats of the last
    # one fill the last round.
    count, num_devices = _count(inputs), mesh.size
    per_device = -(-count // (num_devices * lanes)) * lanes
    dealt = np.arange(per_device * num_devices).reshape(per_device, num_devices).T.ravel()
    # A batch of one would be a vmap, which costs a CPU its fast products.
    mapped = jax.shard_map(
        lambda rows: jax.lax.map(function, rows, batch_size=lanes if lanes > 1 else None),
        mesh=mesh,
        in_specs=LANES,
        out_specs=LANES,
        check_vma=False,  # Loops that nothing crosses: every value may differ between devices.
    )
    begun = time.perf_counter()
    dealt_inputs = jax.device_put(_take(inputs, np.minimum(dealt, count - 1)), NamedSharding(mesh, LANES))
    compiled = _compiled(("mapped", key, mesh, lanes), jax.jit(mapped), dealt_inputs)
    compilation = time.perf_counter() - begun
    records = jax.device_get(compiled(dealt_inputs))
    place = np.empty(len(dealt), dtype=np.intp)
    place[dealt] = np.arange(len(dealt))
    timings = {"compilation": compilation, "running": time.perf_counter() - begun - compilation}
    return _take(records, place[:count]), timings


def map_on_devices(
    function: Callable[[PyTree], Record],
    inputs: PyTree,
    *,
    lanes: int,
    devices: list[jax.Device] | None = None,
) -> tuple[Record, Timings]:
    """A pure function on every input, in one compiled program.

    Args:
      function: from a pytree of arrays to another.
      inputs: what it is mapped over, stacked along a leading axis.
      lanes: how many are computed side by side on every device, at most; the next follow when all of them are done.
      devices: all local ones when None.

    Returns:
      As `run_on_devices`. The program of an earlier call is used again when the function is the same object (or an
      equal one) and the shapes are the same.

    Raises:
      ValueError: lanes is no whole number, or too small.
    """
    lanes = whole_number("lanes", lanes)
    mesh = _mesh(devices)
    inputs = jax.device_get(raw(inputs))
    lanes = min(lanes, -(-_count(inputs) // mesh.size))
    return _mapped(function, lambda rows: raw(function(typed(rows))), inputs, mesh, lanes)


def _is_on_host(states: State) -> bool:
    return all(device.platform == "cpu" for device in jax.tree.leaves(states)[0].devices())


def _exchange(states: State, lanes: np.ndarray, entering: State) -> tuple[State, State]:
    """Puts other runs into some lanes; what was there, on the host, and the new states.

    On a CPU it is done with NumPy: the programs for it would take as long to compile as the chunk itself. Elsewhere
    only the lanes that change travel.
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


def chunk(
    dynamics: Dynamics[Any, Any], steps_per_chunk: int, num_steps: int
) -> Callable[[Lane], tuple[Lane, Bool[Array, " lanes"]]]:
    """So many steps of the runs that stand side by side, and which of them are done; this is what is compiled."""

    def advance(lane: Lane) -> Lane:
        step = jnp.minimum(lane.step + steps_per_chunk, num_steps)
        return Lane(step, raw(dynamics.advance_to(typed(lane.state), step)))

    def advance_all(lanes: Lane) -> tuple[Lane, Bool[Array, " lanes"]]:
        if _count(lanes) == 1:  # Batched products of one network cost a CPU its fast ones.
            lanes = jax.tree.map(lambda leaf: leaf[None], advance(jax.tree.map(lambda leaf: leaf[0], lanes)))
        else:
            lanes = jax.vmap(advance)(lanes)
        return lanes, jax.vmap(lambda lane: dynamics.done(typed(lane.state)) | (lane.step >= num_steps))(lanes)

    return advance_all


def _replace(states: State, rows: Mapping[int, State]) -> State:
    """Some lanes by others, through the host."""
    sharding = jax.tree.map(lambda leaf: leaf.sharding, states)
    states = jax.tree.map(np.array, states)
    for lane, row in rows.items():
        _put(row, states, np.asarray(lane))
    return jax.device_put(states, sharding)


def _in_lanes(
    dynamics: Dynamics[Any, Any],
    starts: Start,
    num_steps: int,
    mesh: Mesh,
    lanes: int,
    steps_per_chunk: int,
    between: Between | None = None,
) -> tuple[Record, Timings]:
    """All runs through `lanes` lanes of every device; a lane that is done is read off and takes the next run."""
    num_runs, num_lanes = _count(starts), lanes * mesh.size
    begun = time.perf_counter()
    start = _compiled(("begin", dynamics), jax.jit(jax.vmap(begin(dynamics))), starts, once=True)
    first = jax.device_get(start(starts))

    # More lanes than runs: the last run is done more than once.
    owners = np.minimum(np.arange(num_lanes), num_runs - 1)
    states = jax.device_put(_take(first, owners), NamedSharding(mesh, LANES))
    advance_all = chunk(dynamics, steps_per_chunk, num_steps)
    mapped = jax.shard_map(advance_all, mesh=mesh, in_specs=LANES, out_specs=LANES, check_vma=False)
    key = ("chunk", dynamics, steps_per_chunk, num_steps, mesh)
    advance = _compiled(key, jax.jit(mapped, donate_argnums=0), states)
    compilation = time.perf_counter() - begun

    ends = jax.tree.map(np.zeros_like, first)

    following = num_lanes
    while True:
        states, done = advance(states)
        if between is not None and (changed := between(owners, states, np.asarray(done))):
            states = _replace(states, changed)
        free = np.flatnonzero(done)
        if following >= num_runs:
            if len(free) == num_lanes:
                break
        elif len(free):
            entering = np.arange(following, min(following + len(free), num_runs))
            free, following = free[: len(entering)], following + len(entering)
            left, states = _exchange(states, free, _take(first, entering))
            _put(left, ends, owners[free])
            owners[free] = entering
    _put(jax.device_get(states), ends, owners)
    running = time.perf_counter()
    finish = jax.jit(jax.vmap(lambda lane: raw(dynamics.result(typed(lane.state)))))
    finished = _compiled(("finish", dynamics), finish, ends, once=True)
    compilation += time.perf_counter() - running
    records = jax.device_get(finished(ends))
    return records, {"compilation": compilation, "running": time.perf_counter() - begun - compilation}


def run_on_devices(
    dynamics: Dynamics[Any, Any],
    starts: Start,
    num_steps: int,
    *,
    lanes: int,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    devices: list[jax.Device] | None = None,
    between: Between | None = None,
) -> tuple[Record, Timings]:
    """Runs from start to end.

    Args:
      dynamics: what a run is.
      starts: problems, parameters and keys, stacked along a leading axis.
      num_steps: the step at which a run ends that has not ended by itself.
      lanes: runs side by side on every device, at most; 1 for one after another.
      steps_per_chunk: steps between two looks at which lanes are done; without effect when `lanes` is 1 and there is
        no `between`.
      devices: all local ones when None.
      between: called on the host after every chunk with the run that is in each lane (an index into `starts`), the
        lanes (on their devices, keys as `raw` data) and which of them are done; it returns the lanes that shall go on
        from another `Lane`. One whose new state is done is read off after the next chunk, in which it takes no step.
        With it a single lane is advanced in chunks too.

    Returns:
      The results in the order of `starts`, on the host, random keys as raw data, and the seconds that went into
      compilation (tracing, lowering, and compiling or reading the compiled program from the disk) and into running. A
      result depends on its own run and on `lanes`, not on the other runs. Programs of earlier calls are used again
      when the dynamics are hashable and equal, and the shapes and options are the same.

    Raises:
      ValueError: num_steps, lanes or steps_per_chunk are no whole numbers, or too small.
    """
    num_steps, lanes = whole_number("num_steps", num_steps, 0), whole_number("lanes", lanes)
    steps_per_chunk = whole_number("steps_per_chunk", steps_per_chunk)
    mesh = _mesh(devices)
    # On the host, where rows are picked with NumPy: JAX would compile a program for every shape.
    starts = jax.device_get(raw(starts))
    lanes = min(lanes, -(-_count(starts) // mesh.size))
    if lanes == 1 and between is None:

        def follow(start: Start) -> Record:
            return raw(dynamics.result(dynamics.advance_to(dynamics.init(*typed(start)), num_steps)))

        return _mapped((dynamics, num_steps), follow, starts, mesh, lanes)
    return _in_lanes(dynamics, starts, num_steps, mesh, lanes, steps_per_chunk, between)
