"""A run of a protocol: drawn from its (d0, d1, seed), trained, and read off.

A run's data and weights depend on (d0, d1, seed) and the protocol alone: not on its tile, padding, device or order. The
streams of random numbers are: the sweep's base seed, folded with d0 and d1, then with 1 + seed (with 0 for what the runs of
a cell share), then with the number of the stream below.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from relu_sgd import Descent, Params, Problem, initialization, measurements, problem
from relu_sgd.descent import Criterion, DescentState, Status, mean_squared_error_below, relative_error_below
from relu_sgd.network import TrainedLayers
from sweeps.engine import Work
from sweeps.plan import Tile
from sweeps.protocol import Protocol

__all__ = ["METRICS", "Run", "descent_of", "draw_run", "draw_tile", "work_of"]

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


class Run(NamedTuple):
    """A run before its first step.

    Attributes:
      params: theta_0, padded.
      problem: the training set, padded.
      batches: the key of the mini-batches.
      neurons: which of the padded neurons are true ones.
    """

    params: Params
    problem: Problem
    batches: Key[Array, ""]
    neurons: Array


def _criterion(protocol: Protocol) -> Criterion:
    below = relative_error_below if protocol.criterion == "relative_error" else mean_squared_error_below
    return below(protocol.tolerance)


def descent_of(protocol: Protocol, trained_layers: TrainedLayers) -> Descent:
    """The descent that the protocol of one set-up asks for."""
    return Descent(
        optimizer=optax.sgd(protocol.learning_rate, momentum=protocol.momentum or None),
        normalization=protocol.normalization,
        trained_layers=trained_layers,
        batch_size=protocol.batch_size or None,
        at_zero=protocol.relu_at_zero,
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
            magnitude = jnp.linalg.norm(labels) / jnp.sqrt(protocol.num_samples * d1)
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
    cell = jax.random.fold_in(jax.random.fold_in(jax.random.key(protocol.base_seed), d0), d1)
    own = jax.random.fold_in(cell, 1 + seed)
    data = jax.random.fold_in(cell, 0) if protocol.data_sharing == "cell" else own

    rows = {"sphere": problem.sphere_rows, "cube": problem.cube_rows}[protocol.data_law]
    radius = jnp.sqrt(d0) if protocol.data_radius == "sqrt_d0" else 1.0
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
        batches=jax.random.fold_in(own, STREAMS["batches"]),
        neurons=jnp.arange(padded_d1) < d1,
    )


def _record(protocol: Protocol, descent: Descent, run: Run, state: DescentState) -> dict[str, Array]:
    result = descent.result(state)
    diverged = result.status == Status.DIVERGED
    label_norm = jnp.linalg.norm(run.problem.Y)
    params, data, neurons = result.params, run.problem, run.neurons
    counts = {
        "numerical_zeros": measurements.numerical_zeros(params, data, protocol.zero_threshold, neurons=neurons),
        "zeros_at_rounding": measurements.numerical_zeros_at_rounding(
            params, data, protocol.zero_multiple, neurons=neurons
        ),
        "dead_samples": measurements.dead_samples(params, data, neurons=neurons),
    }
    return {
        "converged_at": result.converged_at,
        "relative_error": jnp.where(diverged, jnp.inf, jnp.sqrt(2 * result.loss) / label_norm),
        "best_relative_error": jnp.sqrt(2 * result.best_loss) / label_norm,
        **{name: jnp.where(diverged, -1, count) for name, count in counts.items()},
        "steps": result.steps,
        "status": result.status,
    }


@functools.lru_cache(maxsize=16)
def _compiled_draws(protocol: Protocol, num_runs: int, padded: tuple[int, int], precision: bool) -> jax.stages.Compiled:
    """The program that draws so many runs. Kept here, because it outlives the programs of the tiles."""
    del precision  # JAX's, part of what is compiled.
    draw_all = jax.jit(lambda runs: jax.lax.map(lambda run: draw_run(protocol, run, padded), runs))
    return draw_all.lower(jax.ShapeDtypeStruct((num_runs, 3), jnp.int32)).compile()


def draw_tile(protocol: Protocol, tile: Tile) -> Run:
    """The runs of a tile before their first steps, stacked along a leading axis.

    They are drawn with more padding than they keep, up to a power of two, so that few programs are compiled for drawing:
    the random number generator takes longer to compile than the training. Padding changes no draw.
    """
    sizes = tile.padded
    padded_d0, padded_d1 = (max(64, 1 << (size - 1).bit_length()) for size in sizes)
    draw_all = _compiled_draws(protocol, tile.num_runs, (padded_d0, padded_d1), jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    drawn = draw_all(jnp.asarray(tile.runs()))
    return Run(
        params=Params(drawn.params.W[:, : sizes[0], : sizes[1]], drawn.params.V[:, : sizes[1]]),
        problem=Problem(drawn.problem.X[:, :, : sizes[0]], drawn.problem.Y),
        batches=drawn.batches,
        neurons=drawn.neurons[:, : sizes[1]],
    )


def work_of(protocol: Protocol, trained_layers: TrainedLayers) -> Work:
    """A run from its draw to its record, for `engine.run_on_devices`; `protocol` is that of the set-up."""
    descent = descent_of(protocol, trained_layers)

    def start(run: Run) -> tuple[Run, DescentState]:
        return run, descent.start(run.params, run.problem, run.batches)

    def advance(state: tuple[Run, DescentState], num_steps: int | Array) -> tuple[Run, DescentState]:
        run, inner = state
        left = jnp.minimum(num_steps, protocol.num_steps - inner.steps)
        return run, descent.advance(inner, run.problem, left, run.batches)

    def is_done(state: tuple[Run, DescentState]) -> Array:
        return (state[1].steps >= protocol.num_steps) | descent.is_done(state[1])

    return Work(start, advance, is_done, lambda state: _record(protocol, descent, *state), protocol.num_steps)
