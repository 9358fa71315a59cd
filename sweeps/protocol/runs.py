"""A run of a protocol: trained from its draw, and read off."""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from relu_sgd import Descent, Params, inclusion, measurements
from relu_sgd.clarke import selections
from relu_sgd.descent import Criterion, DescentResult, DescentState, mean_squared_error_below, relative_error_below
from relu_sgd.dynamics import Status
from relu_sgd.network import TrainedLayers
from relu_sgd.network import loss as loss_of
from sweeps.protocol import laws
from sweeps.protocol.draw import Run, draw_tile, networks, padded, resize, roomy, x64
from sweeps.protocol.presets import Conditions, Protocol, relative_tolerance
from sweeps.runtime import arithmetic
from sweeps.runtime.compilation import compile_quickly
from sweeps.runtime.engine import STEPS_PER_CHUNK, Start, default_lanes, lanes_in_memory, map_on_devices, run_on_devices
from sweeps.study import Execution, Tile, Timings, UsageError

if TYPE_CHECKING:
    from relu_sgd.kernels import MomentumDescent
    from sweeps.proving import TileProofs

__all__ = [
    "METRICS",
    "STATUSES",
    "STOPPED",
    "End",
    "descent_of",
    "devices_of",
    "follow_inclusion",
    "kernel_of",
    "map_cells",
    "measure_run",
    "measure_tile",
    "metrics",
    "network_cost",
    "starts_of",
    "train_runs",
    "train_tile",
]

# What a status of a run means; 0 is pending.
STATUSES = {1: "converged", 2: "step limit", 3: "diverged"}
# And what a run has besides that is ended by a theorem (--stop=decided).
STOPPED = (int(Status.STOPPED), "stopped: its last steps move around a local minimum that is proved")

# What is kept of a run: name, type (None for the precision of the run) and description.
METRICS: dict[str, tuple[type | None, str]] = {
    "converged_at": (np.int32, "first step at which the criterion held; -1 for never"),
    "relative_error": (None, "||Y - Yhat||_F / ||Y||_F at the last step; infinite when diverged"),
    "best_relative_error": (None, "least ||Y - Yhat||_F / ||Y||_F of all steps"),
    "numerical_zeros": (np.int32, "preactivations below zero_threshold at the last step; -1 when diverged"),
    "zeros_at_rounding": (
        np.int32,
        "preactivations below zero_multiple eps ||x_i|| ||w_j|| at the last step; -1 when diverged",
    ),
    "dead_samples": (np.int32, "samples on which no neuron is active at the last step; -1 when diverged"),
    "steps": (np.int32, "updates made"),
    "status": (np.int8, ", ".join(f"{code} {name}" for code, name in {0: "pending", **STATUSES}.items())),
}


# What is kept besides when the inclusion is followed.
INCLUSION_METRICS: dict[str, tuple[type | None, str]] = {
    "flow_time": (None, "when the run ended, in units of the flow of L"),
    "sliding": (np.int32, "preactivations held at 0 at the end; -1 when diverged"),
    "resting": (np.int32, "neurons that rest at W_j = 0 at the end; their preactivations are not sliding"),
    "energy_residual": (None, "|L(0) - L(t) - integral of ||theta'||^2| / L(0) at the end; infinite when diverged"),
    "branched_at": (None, "flow time of the first branching kink, from where the run follows one of several solutions"),
    "out_of_kinks": (np.int32, "1 when the run stopped because a neuron had too many kinks (status 2), 0 otherwise"),
}


def metrics(protocol: Conditions) -> dict[str, tuple[type | None, str]]:
    """What is kept of a run: name, type (None for the precision of the run) and description."""
    if protocol.dynamics == "descent" and protocol.stop == "decided":
        kind, text = METRICS["status"]
        return METRICS | {"status": (kind, f"{text}, {STOPPED[0]} {STOPPED[1]}")}
    if protocol.dynamics == "descent":
        return METRICS
    status = METRICS["status"]
    return {name: kind for name, kind in METRICS.items() if name != "status"} | INCLUSION_METRICS | {"status": status}


def _criterion(protocol: Protocol) -> Criterion:
    if laws.is_own(protocol.criterion):
        return functools.partial(laws.call, "criterion", protocol.criterion)
    below = relative_error_below if protocol.criterion == "relative_error" else mean_squared_error_below
    return below(protocol.tolerance)


def _at_zero(protocol: Protocol) -> Any:
    match protocol.relu_at_zero:
        case "random":
            return selections.random()
        case "minimum_norm":
            return selections.minimum_norm()
        case slope:
            return slope


@functools.lru_cache(maxsize=8)  # One object, so that compiled programs are used again.
def descent_of(protocol: Protocol, trained_layers: TrainedLayers) -> Descent:
    """The descent that the protocol of one variant asks for."""
    return Descent(
        optimizer=optax.sgd(protocol.learning_rate, momentum=protocol.momentum or None),
        normalization=protocol.normalization,
        trained_layers=trained_layers,
        batch_size=protocol.batch_size or None,
        at_zero=_at_zero(protocol),
        criterion=_criterion(protocol),
        stop="never" if protocol.stop == "never" else "first_passage",
        stopping_rule=_is_stopped if protocol.stop == "decided" else None,
    )


@functools.lru_cache(maxsize=8)
def kernel_of(name: str, protocol: Protocol, trained_layers: TrainedLayers) -> "MomentumDescent":
    """The descent that a protocol asks for by another kernel than XLA's, "native" or "pallas".

    Raises:
      UsageError: it cannot do what the protocol asks for, or is not to be had.
    """
    from relu_sgd.kernels import FusedDescent, NativeDescent, NativeError  # Not loaded by who does without.

    kernels: dict[str, type[MomentumDescent]] = {"native": NativeDescent, "pallas": FusedDescent}
    asks = {
        "dynamics": protocol.dynamics != "descent",
        "batch_size": protocol.batch_size,
        "relu_at_zero": isinstance(protocol.relu_at_zero, str),
        "criterion": laws.is_own(protocol.criterion),
        "precision": name == "pallas" and protocol.precision != "float32",
    }
    if flags := [flag for flag, is_asked in asks.items() if is_asked]:
        value = laws.plain_name(str(getattr(protocol, flags[0])))
        raise UsageError(f"--kernel: {name} has no --{flags[0]}={value}; --kernel=xla has")
    if name == "native" and jax.default_backend() != "cpu":
        raise UsageError(f"--kernel: native is for a CPU, not for a {jax.default_backend()}")
    try:
        return kernels[name](
            learning_rate=protocol.learning_rate,
            momentum=protocol.momentum,
            normalization=protocol.normalization,
            trained_layers=trained_layers,
            at_zero=float(protocol.relu_at_zero),
            criterion="relative_error" if protocol.criterion == "relative_error" else "mean_squared_error",
            tolerance=protocol.tolerance,
            stop="never" if protocol.stop == "never" else "first_passage",
            stoppable=protocol.stop == "decided",
        )
    except NativeError as error:
        raise UsageError(f"--kernel: {error}; --kernel=xla needs none") from error


def _is_stopped(state: DescentState) -> Array:
    """The stopping rule of a descent that is ended from outside, between two chunks: whether it was."""
    return state.stopped


class End(NamedTuple):
    """A run after its last step.

    Attributes:
      params: theta at the last step, padded.
      status, steps, converged_at: as `descend` returns them.
      loss, best_loss: of the last step, and the least of all steps.
      extra: what `INCLUSION_METRICS` names; empty for descent.
    """

    params: Params
    status: Array
    steps: Array
    converged_at: Array
    loss: Array
    best_loss: Array
    extra: dict[str, Array]


def starts_of(runs: Run) -> Start:
    """What a descent begins with, of runs stacked along a leading axis."""
    return Start(runs.problem, runs.params, arithmetic.wrap(runs.batches))


def _end_of(result: DescentResult) -> End:
    return End(result.params, result.status, result.steps, result.converged_at, result.loss, result.best_loss, {})


@functools.lru_cache(maxsize=8)
def follow_inclusion(protocol: Protocol, trained_layers: TrainedLayers) -> Callable[[Run], End]:
    """A run that follows the differential inclusion; `protocol` is that of the variant.

    It goes on past branching and undecided kinks, and stops at the first network that meets the criterion.
    """
    tolerance = relative_tolerance(protocol.criterion, protocol.tolerance, protocol.num_samples)

    def follow(run: Run) -> End:
        found = inclusion.solve(
            run.params,
            run.problem,
            protocol.flow_time,
            trained_layers=trained_layers,
            tolerance=protocol.path_tolerance,
            relative_error=tolerance,
            max_steps=10_000_000,
            max_kinks=min(protocol.num_samples, 32),
            stop_at_branching=False,
        )
        loss, diverged = found.loss[0], found.status == inclusion.Status.DIVERGED
        meets = jnp.sqrt(2 * loss) < tolerance * jnp.linalg.norm(run.problem.Y)
        status = jnp.where(meets, Status.CONVERGED, jnp.where(diverged, Status.DIVERGED, Status.MAX_STEPS_REACHED))
        return End(
            params=jax.tree.map(lambda leaf: leaf[0], found.params),
            status=status.astype(jnp.int8),
            steps=found.steps,
            converged_at=jnp.where(meets, found.steps, -1),
            loss=loss,
            best_loss=loss,  # It never grows along a solution.
            extra={
                "flow_time": found.times[0],
                "sliding": jnp.where(diverged, -1, jnp.sum(found.sliding[0] & run.neurons, dtype=jnp.int32)),
                "resting": found.resting[0],
                "energy_residual": jnp.where(
                    diverged, jnp.inf, jnp.abs(found.energy_residual[0]) / loss_of(run.params, run.problem)
                ),
                "branched_at": found.branched_at,
                "out_of_kinks": (found.status == inclusion.Status.KINK_LIMIT).astype(jnp.int32),
            },
        )

    return follow


def measure_run(protocol: Protocol, run: Run, end: End) -> dict[str, Array]:
    """What is kept of a run: see `METRICS`."""
    diverged = end.status == Status.DIVERGED
    label_norm = jnp.linalg.norm(run.problem.Y)
    params, data, neurons = end.params, run.problem, run.neurons
    counts = {
        "numerical_zeros": measurements.numerical_zeros(params, data, protocol.zero_threshold, neurons=neurons),
        "zeros_at_rounding": measurements.numerical_zeros_at_rounding(
            params, data, protocol.zero_multiple, neurons=neurons
        ),
        "dead_samples": measurements.dead_samples(params, data, neurons=neurons),
    }
    return {
        "converged_at": end.converged_at,
        "relative_error": jnp.where(diverged, jnp.inf, jnp.sqrt(2 * end.loss) / label_norm),
        "best_relative_error": jnp.sqrt(2 * end.best_loss) / label_norm,
        **{name: jnp.where(diverged, -1, count) for name, count in counts.items()},
        "steps": end.steps,
        **end.extra,
        "status": end.status,
    }


@functools.lru_cache(maxsize=16)
def _compiled_measurements(protocol: Protocol, shapes: Any, precision: bool) -> jax.stages.Compiled:
    del precision
    measure_all = jax.jit(lambda runs, ends: jax.lax.map(lambda both: measure_run(protocol, *both), (runs, ends)))
    leaves, structure = shapes
    arguments = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    return compile_quickly(measure_all.lower(*arguments))


def measure_tile(protocol: Protocol, tile: Tile, runs: Run, ends: End) -> dict[str, np.ndarray]:
    """What is kept of the runs of a tile; `runs` and `ends` are on the host, stacked along a leading axis."""
    runs = resize(runs, ends.params, *roomy(padded(tile)))
    ends = ends._replace(params=runs.params)
    leaves, structure = jax.tree.flatten((runs, ends))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure
    return jax.device_get(_compiled_measurements(protocol, shapes, x64())(runs, ends))


def network_cost(tile: Tile) -> float:
    """A rough measure of a tile's longest possible time: runs x (products + a constant a neuron and a step)."""
    axes = tile.within or tile.axes  # Not as padded: what is added to d0 costs little.
    return tile.num_runs * ((max(axes["d0"]) + 20) * max(axes["d1"]) + 200)


def devices_of(execution: Execution) -> list[jax.Device]:
    """The devices that this process uses."""
    return jax.local_devices()[: execution.num_devices or None]


def map_cells(
    protocol: Protocol,
    sizes: tuple[int, int],
    tile: Tile,
    follow: Callable[[Mapping[str, Any]], Callable[[Run], dict[str, Array]]],
    execution: Execution,
) -> tuple[dict[str, np.ndarray], Timings]:
    """The same starts through every cell of a tile whose axes are not (d0, d1).

    Args:
      protocol: that of the variant; the starts are drawn from it.
      sizes: (d0, d1) of the networks.
      tile: what is run.
      follow: from the values of a cell to what is done to a run.
      execution: lanes and devices.

    Returns:
      The records of all cells in the tile's order, and the seconds that went into each part of the work.
    """
    begun = time.perf_counter()
    starts = Tile(tile.variant, {"d0": (sizes[0],), "d1": (sizes[1],)}, tile.seeds)
    runs = draw_tile(protocol, starts)
    timings = {"drawing": time.perf_counter() - begun, "compilation": 0.0, "running": 0.0}
    lanes = execution.lanes or default_lanes(jax.default_backend(), interruptible=False)
    parts = []
    for cell in tile.cells():
        records, spent = map_on_devices(follow(cell), runs, lanes=lanes, devices=devices_of(execution))
        parts.append(records)
        timings |= {name: timings[name] + seconds for name, seconds in spent.items()}
    jax.clear_caches()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, timings


def train_runs(
    protocol: Protocol,
    trained_layers: TrainedLayers,
    tile: Tile,
    runs: Run,
    *,
    lanes: int = 0,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    devices: list[jax.Device] | None = None,
    decider: "TileProofs | None" = None,
    kernel: str = "xla",
    descent: Descent | None = None,
) -> tuple[End, Timings]:
    """The runs of a tile from their starts to their ends, both on the host and stacked; see `train_tile`.

    A descent that is given is followed in place of the protocol's; it is for kernel="xla" and stop="first_passage".
    """
    # The fewest weights first: they are the likeliest to take every step, and what begins early leaves no lane idle
    # late.
    order = np.argsort(np.prod(networks(tile)[:, :2], axis=1), kind="stable")
    ordered = jax.tree.map(lambda leaf: leaf[order], runs)
    num_weights = math.prod(padded(tile))
    num_steps, follows_inclusion = protocol.num_steps, protocol.dynamics == "inclusion"
    # The compiled code takes one network after another, whatever the lanes; more are for looks between chunks.
    if kernel == "native" and not lanes and protocol.stop != "decided":
        lanes = 1
    if not lanes:
        lanes = default_lanes(jax.default_backend(), num_weights, interruptible=not follows_inclusion)
        # Data, weights, velocity and gradient, and what a step makes of size N x d1.
        (d0, d1), N = padded(tile), protocol.num_samples
        num_bytes = ordered.problem.X.dtype.itemsize * (N * d0 + 4 * N * d1 + 4 * d0 * d1)
        lanes = min(lanes, lanes_in_memory((devices or jax.local_devices())[0], num_bytes))
    if follows_inclusion:
        follow = follow_inclusion(protocol, trained_layers)
        ends, timings = map_on_devices(follow, ordered, lanes=lanes, devices=devices)
    else:
        is_native = kernel == "native"
        if is_native:  # It leaves padding out by itself, and so tiles share a program.
            ordered = resize(ordered, ordered.params, *roomy(padded(tile)))
        reference = descent or descent_of(protocol, trained_layers)
        dynamics: Any = reference if kernel == "xla" else kernel_of(kernel, protocol, trained_layers)
        between = None
        if protocol.stop == "decided":
            if decider is None:
                raise ValueError("stop='decided' needs somebody who decides: sweeps.proving.TileProofs")
            between = decider.between(reference, order)
            steps_per_chunk = decider.chunk(num_steps if is_native else steps_per_chunk)
        results, timings = run_on_devices(
            dynamics,
            starts_of(ordered),
            num_steps,
            lanes=lanes,
            steps_per_chunk=steps_per_chunk,
            devices=devices,
            between=between,
        )
        ends = _end_of(results)
    if decider is not None:
        timings["running"] -= decider.seconds
    return jax.tree.map(lambda leaf: leaf[np.argsort(order)], ends), timings


def train_tile(
    protocol: Protocol,
    trained_layers: TrainedLayers,
    tile: Tile,
    *,
    lanes: int = 0,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    devices: list[jax.Device] | None = None,
    decider: "TileProofs | None" = None,
    kernel: str = "xla",
) -> tuple[dict[str, np.ndarray], Timings]:
    """A tile from its draws to its records.

    Args:
      protocol: that of the tile's variant.
      trained_layers: those of the tile's variant.
      tile: what to train.
      lanes: as for `engine.run_on_devices`; 0 for `engine.default_lanes`.
      steps_per_chunk, devices: as for `engine.run_on_devices`.
      decider: what proves, and may end runs (a protocol with stop="decided" needs it); see `sweeps.proving`.
      kernel: "xla", or a name that `kernel_of` has.

    Returns:
      The records of its runs, and the seconds that went into each part of the work.
    """
    begun = time.perf_counter()
    runs = draw_tile(protocol, tile)
    drawing = time.perf_counter() - begun
    ends, timings = train_runs(
        protocol,
        trained_layers,
        tile,
        runs,
        lanes=lanes,
        steps_per_chunk=steps_per_chunk,
        devices=devices,
        decider=decider,
        kernel=kernel,
    )
    begun = time.perf_counter()
    records = measure_tile(protocol, tile, runs, ends)
    timings |= {"drawing": drawing, "measuring": time.perf_counter() - begun}
    if decider is not None:
        if decider.record:
            records |= decider.records(runs, ends.params, records["status"])
        timings["proving"] = decider.seconds
    return records, timings
