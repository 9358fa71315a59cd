"""A run drawn from its (d0, d1, seed): the data and weights that it starts with.

They depend on (d0, d1, seed) and the protocol alone, to the bit: not on tile, padding, machine or order. The streams of
random numbers are: the sweep's base seed, folded with d0 and d1, then with 1 + seed (with 0 for what the runs of a cell
share), then with the number of the stream below.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt32

from relu_sgd import Params, Problem, initialization, problem
from relu_sgd import _draws as draws
from sweeps.protocol.presets import Protocol
from sweeps.runtime import arithmetic
from sweeps.study import Tile

__all__ = ["Run", "draw_run", "draw_tile", "networks", "padded", "resize", "roomy", "x64"]

STREAMS = {"X": 0, "Y": 1, "W": 2, "V": 3, "batches": 4}


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


def networks(tile: Tile) -> np.ndarray:
    """(d0, d1, seed) of every run of a tile over (d0, d1): num_runs x 3, int32, in the order of its shape."""
    rows = [(cell["d0"], cell["d1"], seed) for cell in tile.cells() for seed in tile.seeds]
    return np.array(rows, np.int32)


def padded(tile: Tile) -> tuple[int, int]:
    """(d0, d1) that every network in a tile is padded to.

    On a CPU the gradient's product is fast when d0 is a multiple of 16, or exceeds one by at most 4 or by 8: what is
    beyond is rounded up, so that more padding costs less time (with 256-bit vector registers; 12 inputs take longer
    than 16).
    """
    d0, d1 = max(tile.axes["d0"]), max(tile.axes["d1"])
    beyond = d0 % 16
    return d0 - beyond + (beyond if beyond <= 4 else 8 if beyond <= 8 else 16), d1


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


def draw_run(protocol: Protocol, run: Int[Array, "3"], sizes: tuple[int, int]) -> Run:
    """Data and weights of a run.

    Args:
      protocol: of its variant.
      run: (d0, d1, seed), traced or not.
      sizes: (d0, d1) that the result is padded to.

    Raises:
      ValueError: the protocol names a law that does not exist.
    """
    d0, d1, seed = run[0], run[1], run[2]
    padded_d0, padded_d1 = sizes
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


def resize(run: Run, params: Params, d0: int, d1: int) -> Run:
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


def roomy(sizes: tuple[int, int]) -> tuple[int, int]:
    """Sizes rounded up to powers of two, from 64 on."""
    d0, d1 = (max(64, 1 << (size - 1).bit_length()) for size in sizes)
    return d0, d1


@functools.lru_cache(maxsize=16)
def _compiled_draws(protocol: Protocol, num_runs: int, sizes: tuple[int, int], precision: bool) -> jax.stages.Compiled:
    del precision  # JAX's, part of what is compiled.
    draw_all = jax.jit(lambda runs: jax.lax.map(lambda run: draw_run(protocol, run, sizes), runs))
    return draw_all.lower(jax.ShapeDtypeStruct((num_runs, 3), jnp.int32)).compile()


def draw_tile(protocol: Protocol, tile: Tile, widest: int = 0) -> Run:
    """The runs of a tile before their first steps, stacked along a leading axis, on the host.

    Tiles with one `widest` share the program that draws them, whatever their widths.
    """
    d0, d1 = padded(tile)
    draw_all = _compiled_draws(protocol, tile.num_runs, roomy((d0, max(d1, widest))), x64())
    drawn = jax.device_get(draw_all(networks(tile)))
    return resize(drawn, drawn.params, d0, d1)


def x64() -> bool:
    """Whether JAX computes in float64, which is part of what is compiled."""
    return jax.config.jax_enable_x64  # type: ignore[attr-defined]
