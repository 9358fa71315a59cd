"""A run of a protocol: drawn from its (d0, d1, seed), trained, and read off.

A run's data and weights depend on (d0, d1, seed) and the protocol alone, to the bit: not on its tile, padding, machine
or order. The streams of random numbers are: the sweep's base seed, folded with d0 and d1, then with 1 + seed (with 0 for
what the runs of a cell share), then with the number of the stream below.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Int, Key, UInt32

from relu_sgd import Descent, Params, Problem, inclusion, initialization, measurements, problem
from relu_sgd import _draws as draws
from relu_sgd.clarke import selections
from relu_sgd.descent import Criterion, DescentResult, mean_squared_error_below, relative_error_below
from relu_sgd.dynamics import Status
from relu_sgd.network import TrainedLayers
from relu_sgd.network import loss as loss_of
from sweeps import arithmetic
from sweeps.engine import STEPS_PER_CHUNK, Start, Timings, default_lanes, map_on_devices, run_on_devices
from sweeps.plan import Tile
from sweeps.protocol import Protocol, relative_tolerance

__all__ = [
    "METRICS",
    "End",
    "Run",
    "descent_of",
    "draw_run",
    "draw_tile",
    "follow_inclusion",
    "map_cells",
    "measure_run",
    "measure_tile",
    "metrics",
    "starts_of",
    "train_tile",
]

STREAMS = {"X": 0, "Y": 1, "W": 2, "V": 3, "batches": 4}

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
    "status": (np.int8, "0 pending, 1 converged, 2 step limit, 3 diverged"),
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


def metrics(protocol: Protocol) -> dict[str, tuple[type | None, str]]:
    """What is kept of a run: name, type (None for the precision of the run) and description."""
    if protocol.dynamics == "descent":
        return METRICS
    status = METRICS["status"]
    return {name: kind for name, kind in METRICS.items() if name != "status"} | INCLUSION_METRICS | {"status": status}


class Run(NamedTuple):
    """A run before its first step.

    Attributes:
      params: theta_0, padded.
      problem: the training set, padded.
      batches: the key of the mini-batches, as raw data, which NumPy can hold.
      neurons: which of the padded neurons are true ones.
    """

    params: Params
    problem: Problem
    batches: UInt32[Array, "2"]
    neurons: Bool[Array, " padded_d1"]


def _criterion(protocol: Protocol) -> Criterion:
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


@functools.lru_cache(maxsize=8)  # Of one object compiled programs are used again.
def descent_of(protocol: Protocol, trained_layers: TrainedLayers) -> Descent:
    """The descent that the protocol of one set-up asks for."""
    return Descent(
        optimizer=optax.sgd(protocol.learning_rate, momentum=protocol.momentum or None),
        normalization=protocol.normalization,
        trained_layers=trained_layers,
        batch_size=protocol.batch_size or None,
        at_zero=_at_zero(protocol),
        criterion=_criterion(protocol),
        stop=protocol.stop,
    )


def _draw_output(protocol: Protocol, key: Key[Array, ""], d1, padded_d1: int, labels: Array) -> Array:
    d2 = protocol.d2
    match protocol.output_law:
        case "normal":
            return initialization.lecun_output(key, d1, d2, padded_d1=padded_d1)
        case "uniform":
            return initialization.uniform_output(key, d1, d2, padded_d1=padded_d1)
        case "balanced_signs":
            return initialization.balanced_sign_output(d1, d2, padded_d1=padded_d1)
        case "shuffled_signs":
            return initialization.shuffled_sign_output(key, d1, d2, padded_d1=padded_d1)
        case "appendix_g":
            squares = draws.sum_of_squares(labels.reshape(1, -1))[0]
            magnitude = jnp.sqrt(squares / jnp.asarray(protocol.num_samples * d1, squares.dtype))
            return initialization.balanced_sign_output(d1, d2, magnitude=magnitude, padded_d1=padded_d1)
        case law:
            raise ValueError(f"unknown output law {law!r}")


def draw_run(protocol: Protocol, run: Int[Array, "3"], padded: tuple[int, int]) -> Run:
    """Data and weights of a run of a set-up (see `protocol.for_layers`).

    Args:
      protocol: of one set-up.
      run: (d0, d1, seed), traced or not.
      padded: (d0, d1) of the result.

    Raises:
      ValueError: the protocol names a law that does not exist.
    """
    d0, d1, seed = run[0], run[1], run[2]
    padded_d0, padded_d1 = padded
    cell = jax.random.fold_in(jax.random.fold_in(arithmetic.key(protocol.base_seed), d0), d1)
    own = jax.random.fold_in(cell, 1 + seed)
    data = jax.random.fold_in(cell, 0) if protocol.data_sharing == "cell" else own

    rows = {"sphere": problem.sphere_rows, "cube": problem.cube_rows}[protocol.data_law]
    radius = jnp.sqrt(jnp.asarray(d0, jnp.result_type(float))) if protocol.data_radius == "sqrt_d0" else 1.0
    X = rows(jax.random.fold_in(data, STREAMS["X"]), protocol.num_samples, d0, radius, padded_d0=padded_d0)
    labels = {
        "balanced": problem.balanced_labels,
        "random_signs": problem.random_sign_labels,
        "gaussian": problem.gaussian_labels,
    }[protocol.label_law]
    Y = labels(jax.random.fold_in(data, STREAMS["Y"]), protocol.num_samples, protocol.d2)

    key = jax.random.fold_in(own, STREAMS["W"])
    if protocol.hidden_law == "lecun":
        W = initialization.lecun_hidden(key, d0, d1, padded_d0=padded_d0, padded_d1=padded_d1)
    else:
        W = initialization.normal_hidden(
            key, d0, d1, protocol.hidden_standard_deviation, padded_d0=padded_d0, padded_d1=padded_d1
        )
    V = _draw_output(protocol, jax.random.fold_in(own, STREAMS["V"]), d1, padded_d1, Y)
    return Run(
        params=Params(W, V.astype(W.dtype)),
        problem=Problem(X, Y),
        batches=jax.random.key_data(jax.random.fold_in(own, STREAMS["batches"])),
        neurons=jnp.arange(padded_d1) < d1,
    )


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
    """A run that follows the differential inclusion; `protocol` is that of the set-up.

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
        status = jnp.where(meets, Status.CONVERGED, jnp.where(diverged, Status.DIVERGED, Status.STEP_LIMIT))
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


def _resize(run: Run, params: Params, d0: int, d1: int) -> Run:
    """Runs with other weights and more or less padding, stacked along a leading axis; with NumPy, so nothing compiles."""

    def fit(array: Any, *sizes: int) -> Any:
        array = array[(slice(None), *(slice(0, size) for size in sizes))]
        return np.pad(array, [(0, 0), *((0, size - old) for size, old in zip(sizes, array.shape[1:], strict=True))])

    (W, V), (X, Y) = params, run.problem
    data = Problem(fit(X, X.shape[1], d0), Y)
    return Run(Params(fit(W, d0, d1), fit(V, d1, V.shape[2])), data, run.batches, fit(run.neurons, d1))


# Drawing and measuring are done with more padding than training, up to a power of two: padding changes no draw and no
# count, and so a sweep compiles few programs for them. The random number generator alone takes longer to compile than the
# training. They are kept here, because they outlive the programs of the tiles.


def _roomy(sizes: tuple[int, int]) -> tuple[int, int]:
    d0, d1 = (max(64, 1 << (size - 1).bit_length()) for size in sizes)
    return d0, d1


@functools.lru_cache(maxsize=16)
def _compiled_draws(protocol: Protocol, num_runs: int, padded: tuple[int, int], precision: bool) -> jax.stages.Compiled:
    del precision  # JAX's, part of what is compiled.
    draw_all = jax.jit(lambda runs: jax.lax.map(lambda run: draw_run(protocol, run, padded), runs))
    return draw_all.lower(jax.ShapeDtypeStruct((num_runs, 3), jnp.int32)).compile()


@functools.lru_cache(maxsize=16)
def _compiled_measurements(protocol: Protocol, shapes: Any, precision: bool) -> jax.stages.Compiled:
    del precision
    measure_all = jax.jit(lambda runs, ends: jax.lax.map(lambda both: measure_run(protocol, *both), (runs, ends)))
    leaves, structure = shapes
    return measure_all.lower(*jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])).compile()


def draw_tile(protocol: Protocol, tile: Tile, widest: int = 0) -> Run:
    """The runs of a tile before their first steps, stacked along a leading axis, on the host.

    Tiles with one `widest` share the program that draws them, whatever their widths.

    Raises:
      ValueError: the tile's axes are no sizes of networks.
    """
    d0, d1 = tile.padded
    runs = tile.runs()
    if runs.dtype != np.int32:
        raise ValueError(f"networks have whole sizes, got d0 = {tile.d0} and d1 = {tile.d1}")
    draw_all = _compiled_draws(protocol, tile.num_runs, _roomy((d0, max(d1, widest))), _x64())
    drawn = jax.device_get(draw_all(runs))
    return _resize(drawn, drawn.params, *tile.padded)


def measure_tile(protocol: Protocol, tile: Tile, runs: Run, ends: End) -> dict[str, np.ndarray]:
    """What is kept of the runs of a tile; `runs` and `ends` are on the host, stacked along a leading axis."""
    runs = _resize(runs, ends.params, *_roomy(tile.padded))
    ends = ends._replace(params=runs.params)
    leaves, structure = jax.tree.flatten((runs, ends))
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves), structure
    return jax.device_get(_compiled_measurements(protocol, shapes, _x64())(runs, ends))


def map_cells(
    protocol: Protocol,
    networks: Tile,
    cells: Tile,
    follow: Callable[[float, float], Callable[[Run], dict[str, Array]]],
    *,
    lanes: int,
    devices: list[jax.Device],
) -> tuple[dict[str, np.ndarray], Timings]:
    """The same starts through every cell of a tile whose axes are not (d0, d1).

    Args:
      protocol: of one set-up; the starts are drawn from it.
      networks: a tile of one (d0, d1) and all seeds.
      cells: the tile.
      follow: from the values of a cell to what is done to a run.
      lanes, devices: as for `train_tile`.

    Returns:
      The records of all cells in the tile's order, and the seconds that went into each part of the work.
    """
    begun = time.perf_counter()
    runs = draw_tile(protocol, networks)
    timings = {"drawing": time.perf_counter() - begun, "compilation": 0.0, "running": 0.0}
    lanes = lanes or default_lanes(jax.default_backend(), interruptible=False)
    parts = []
    for row in cells.d0:
        for column in cells.d1:
            records, spent = map_on_devices(follow(row, column), runs, lanes=lanes, devices=devices)
            parts.append(records)
            timings |= {name: timings[name] + seconds for name, seconds in spent.items()}
    jax.clear_caches()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, timings


def train_tile(
    protocol: Protocol,
    trained_layers: TrainedLayers,
    tile: Tile,
    *,
    lanes: int = 0,
    steps_per_chunk: int = STEPS_PER_CHUNK,
    devices: list[jax.Device] | None = None,
) -> tuple[dict[str, np.ndarray], Timings]:
    """A tile from its draws to its records.

    Args:
      protocol: of the tile's set-up.
      trained_layers: of the tile's set-up.
      tile: what to train.
      lanes: as for `engine.run_on_devices`; 0 for `engine.default_lanes`.
      steps_per_chunk, devices: as for `engine.run_on_devices`.

    Returns:
      The records of its runs, and the seconds that went into each part of the work.
    """
    begun = time.perf_counter()
    runs = draw_tile(protocol, tile)
    # The fewest weights first: they are the likeliest to take every step, and what begins early leaves no lane idle late.
    order = np.argsort(np.prod(tile.runs()[:, :2], axis=1), kind="stable")
    ordered = jax.tree.map(lambda leaf: leaf[order], runs)
    drawing = time.perf_counter() - begun
    follows_inclusion = protocol.dynamics == "inclusion"
    num_weights = tile.padded[0] * tile.padded[1]
    lanes = lanes or default_lanes(jax.default_backend(), num_weights, interruptible=not follows_inclusion)
    if follows_inclusion:
        follow = follow_inclusion(protocol, trained_layers)
        ends, timings = map_on_devices(follow, ordered, lanes=lanes, devices=devices)
    else:
        results, timings = run_on_devices(
            descent_of(protocol, trained_layers),
            starts_of(ordered),
            protocol.num_steps,
            lanes=lanes,
            steps_per_chunk=steps_per_chunk,
            devices=devices,
        )
        ends = _end_of(results)
    begun = time.perf_counter()
    ends = jax.tree.map(lambda leaf: leaf[np.argsort(order)], ends)
    records = measure_tile(protocol, tile, runs, ends)
    return records, {"drawing": drawing, **timings, "measuring": time.perf_counter() - begun}


def _x64() -> bool:
    return jax.config.jax_enable_x64  # type: ignore[attr-defined]
