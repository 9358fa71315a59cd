"""A run drawn from its (d0, d1, seed): the data and weights that it starts with.

They depend on (d0, d1, seed) and the protocol alone, to the bit: not on tile, padding, machine or order. The streams of
random numbers are: the sweep's base seed, folded with d0 and d1, then with 1 + seed (with 0 for what the runs of a cell
share), then with the number of the stream below.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt32

from relu_sgd import Params, Problem, initialization, problem
from relu_sgd import _draws as draws
from sweeps.protocol import laws
from sweeps.protocol.presets import Protocol
from sweeps.runtime import arithmetic
from sweeps.runtime.compilation import compile_quickly
from sweeps.study import Tile, UsageError

__all__ = ["Run", "draw_run", "draw_tile", "networks", "padded", "resize", "roomy", "try_own_laws", "x64"]

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

    On a CPU the gradient's product is fast when d0 is a multiple of 16, and nearly as fast when it exceeds one by at
    most 4; what is beyond is rounded up, so that more padding costs little time or none (56 inputs take longer than
    64), and tiles share programs.
    """
    axes = tile.within or tile.axes
    d0, d1 = max(axes["d0"]), max(axes["d1"])
    beyond = d0 % 16
    return (d0 if beyond <= 4 else 8 if d0 <= 8 else d0 - beyond + 16), d1


def _draw_output(protocol: Protocol, key: Key[Array, ""], d1: int | Array, padded_d1: int, labels: Array) -> Array:
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


def _streams(protocol: Protocol, run: Any) -> dict[str, Key[Array, ""]]:
    """The keys of a run (d0, d1, seed), by stream."""
    cell = jax.random.fold_in(jax.random.fold_in(arithmetic.key(protocol.base_seed), run[0]), run[1])
    own = jax.random.fold_in(cell, 1 + run[2])
    data = jax.random.fold_in(cell, 0) if protocol.data_sharing == "cell" else own
    return {name: jax.random.fold_in(data if name in "XY" else own, stream) for name, stream in STREAMS.items()}


def draw_run(
    protocol: Protocol, run: Int[Array, "3"], sizes: tuple[int, int], given: Mapping[str, Array] | None = None
) -> Run:
    """Data and weights of a run.

    Args:
      protocol: of its variant.
      run: (d0, d1, seed), traced or not.
      sizes: (d0, d1) that the result is padded to.
      given: X, Y, W or V, padded, where own laws have drawn them.

    Raises:
      ValueError: the protocol names a law that does not exist.
    """
    d0, d1 = run[0], run[1]
    padded_d0, padded_d1 = sizes
    keys, given = _streams(protocol, run), given or {}
    X, Y, W, V = (given.get(name) for name in "XYWV")
    if X is None:
        rows = {"sphere": problem.sphere_rows, "cube": problem.cube_rows}[protocol.data_law]
        radius = jnp.sqrt(jnp.asarray(d0, jnp.result_type(float))) if protocol.data_radius == "sqrt_d0" else 1.0
        X = rows(keys["X"], protocol.num_samples, d0, radius, padded_d0=padded_d0)
    if Y is None:
        labels = {
            "balanced": problem.balanced_labels,
            "random_signs": problem.random_sign_labels,
            "gaussian": problem.gaussian_labels,
        }[protocol.label_law]
        Y = labels(keys["Y"], protocol.num_samples, protocol.d2)
    if W is None and protocol.hidden_law == "lecun":
        W = initialization.lecun_hidden(keys["W"], d0, d1, padded_d0=padded_d0, padded_d1=padded_d1)
    elif W is None:
        W = initialization.normal_hidden(
            keys["W"], d0, d1, protocol.hidden_standard_deviation, padded_d0=padded_d0, padded_d1=padded_d1
        )
    if V is None:
        V = _draw_output(protocol, keys["V"], d1, padded_d1, Y)
    return Run(
        params=Params(W, V.astype(W.dtype)),
        problem=Problem(X, Y),
        batches=jax.random.key_data(keys["batches"]),
        neurons=jnp.arange(padded_d1) < d1,
    )


def _own_data(protocol: Protocol, keys: Mapping[str, Any], d0: int) -> dict[str, np.ndarray]:
    """X, or X and Y, of a data law of one's own, in their true sizes."""
    law, dtype = protocol.data_law, jnp.result_type(float)
    returned = laws.call("data_law", law, keys["X"], protocol.num_samples, d0)
    both = isinstance(returned, tuple)
    if both and len(returned) != 2:
        raise UsageError(
            f"--data_law: {laws.plain_name(law)} must return X, or a Problem (X, Y), not {len(returned)} things"
        )
    if both != (protocol.label_law == "of_data"):
        raise UsageError(
            f"--data_law: {laws.plain_name(law)} returns X and Y; leave out --label_law"
            if both
            else f"--data_law: {laws.plain_name(law)} returns X alone; give a --label_law, or return a Problem (X, Y)"
        )
    X, Y = returned if both else (returned, None)
    data = {"X": laws.array("data_law", law, "X", X, (protocol.num_samples, d0), dtype)}
    if both:
        data["Y"] = _own_labels("data_law", law, protocol, Y)
    return data


def _own_labels(flag: str, law: str, protocol: Protocol, returned: Any) -> np.ndarray:
    Y = laws.array(flag, law, "Y", returned, (protocol.num_samples, protocol.d2), jnp.result_type(float))
    if not Y.any():
        raise UsageError(
            f"--{flag}: {laws.plain_name(law)} returned labels that are all 0: no error is relative to them"
        )
    return Y


def _own_draws(
    protocol: Protocol, run: Sequence[int], data: dict[str, np.ndarray], X: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What the own laws of a protocol draw for a run (d0, d1, seed), in true sizes.

    Args:
      protocol: of its variant.
      run: (d0, d1, seed).
      data: of another run of the cell, with the same data; empty for none. It is filled.
      X: the rows, where they are drawn by a law that is not one's own, and the labels are.
    """
    d0, d1, _ = run
    dtype, keys = jnp.result_type(float), _streams(protocol, run)
    if not data and laws.is_own(protocol.data_law):
        data |= _own_data(protocol, keys, d0)
    if "Y" not in data and laws.is_own(protocol.label_law) and (X is not None or "X" in data):
        rows = jnp.asarray(data["X"] if X is None else X)
        labels = laws.call("label_law", protocol.label_law, keys["Y"], rows)
        data["Y"] = _own_labels("label_law", protocol.label_law, protocol, labels)
    weights = {
        "W": ("hidden_law", protocol.hidden_law, (d0, d1), (d0, d1)),
        "V": ("output_law", protocol.output_law, (d1,), (d1, protocol.d2)),
    }
    return data | {
        name: laws.array(flag, law, name, laws.call(flag, law, keys[name], *sizes), shape, dtype)
        for name, (flag, law, sizes, shape) in weights.items()
        if laws.is_own(law)
    }


def _own_parts(protocol: Protocol) -> dict[str, tuple[str, ...]]:
    """Which of X, Y, W and V own laws draw, with the sizes that they are padded to, by name."""
    parts: dict[str, tuple[str, ...]] = {}
    if laws.is_own(protocol.data_law):
        parts["X"] = ("N", "d0")
    if laws.is_own(protocol.label_law) or protocol.label_law == "of_data":
        parts["Y"] = ("N", "d2")
    if laws.is_own(protocol.hidden_law):
        parts["W"] = ("d0", "d1")
    if laws.is_own(protocol.output_law):
        parts["V"] = ("d1", "d2")
    return parts


def _shapes(protocol: Protocol, sizes: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that own laws draw, padded."""
    values = {"N": protocol.num_samples, "d0": sizes[0], "d1": sizes[1], "d2": protocol.d2}
    return {name: tuple(values[size] for size in shape) for name, shape in _own_parts(protocol).items()}


def _stacked(
    protocol: Protocol, runs: np.ndarray, sizes: tuple[int, int], X: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What own laws draw for all runs, padded and stacked; labels are 0 where they wait for X."""
    shapes = _shapes(protocol, sizes)
    given = {name: np.zeros((len(runs), *shape), jnp.result_type(float)) for name, shape in shapes.items()}
    shared: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for index, (d0, d1, seed) in enumerate(runs.tolist()):
        data = shared.setdefault((d0, d1), {}) if protocol.data_sharing == "cell" else {}
        drawn = _own_draws(protocol, (d0, d1, seed), data, None if X is None else X[index, :, :d0])
        for name, value in drawn.items():
            given[name][index][tuple(map(slice, value.shape))] = value
    return given


def try_own_laws(protocol: Protocol, sizes: Sequence[tuple[int, int]]) -> None:
    """Draws the first run of some (d0, d1) by the own laws of a protocol, and asks its own criterion.

    Raises:
      UsageError: naming the flag; a law or rule is not to be had, raises, or returns something else than it should.
    """
    for d0, d1 in dict.fromkeys(sizes):
        rows = np.ones((protocol.num_samples, d0), jnp.result_type(float))
        _own_draws(protocol, (d0, d1, 0), {}, None if laws.is_own(protocol.data_law) else rows)
        if laws.is_own(protocol.criterion):
            kind: Any = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.result_type(float))
            data = Problem(kind(rows.shape), kind((protocol.num_samples, protocol.d2)))
            ask = functools.partial(laws.call, "criterion", protocol.criterion)
            holds = jax.eval_shape(ask, kind(rows.shape[:1]), data)
            if getattr(holds, "shape", None) != () or holds.dtype != bool:
                raise UsageError(
                    f"--criterion: {laws.plain_name(protocol.criterion)} must return one truth value, not {holds}"
                )


def resize(run: Run, params: Params, d0: int, d1: int) -> Run:
    """Runs with other weights and more or less padding, stacked along a leading axis; NumPy compiles nothing."""

    def fit(array: Any, *sizes: int) -> Any:
        array = array[(slice(None), *(slice(0, size) for size in sizes))]
        return np.pad(array, [(0, 0), *((0, size - old) for size, old in zip(sizes, array.shape[1:], strict=True))])

    (W, V), (X, Y) = params, run.problem
    data = Problem(fit(X, X.shape[1], d0), Y)
    return Run(Params(fit(W, d0, d1), fit(V, d1, V.shape[2])), data, run.batches, fit(run.neurons, d1))


# Drawing and measuring are done with more padding than training, up to a power of two: padding changes no draw and no
# count, and so a sweep compiles few programs for them. The random number generator alone takes longer to compile than
# the training. They are kept here, because they outlive the programs of the tiles.


def roomy(sizes: tuple[int, int]) -> tuple[int, int]:
    """Sizes rounded up to powers of two, from 64 on."""
    d0, d1 = (max(64, 1 << (size - 1).bit_length()) for size in sizes)
    return d0, d1


@functools.lru_cache(maxsize=16)
def _compiled_draws(protocol: Protocol, num_runs: int, sizes: tuple[int, int], precision: bool) -> jax.stages.Compiled:
    del precision  # JAX's, part of what is compiled.
    draw_all = jax.jit(lambda *runs: jax.lax.map(lambda run: draw_run(protocol, run[0], sizes, run[1]), runs))
    given = {
        name: jax.ShapeDtypeStruct((num_runs, *shape), jnp.result_type(float))
        for name, shape in _shapes(protocol, sizes).items()
    }
    return compile_quickly(draw_all.lower(jax.ShapeDtypeStruct((num_runs, 3), jnp.int32), given))


def draw_tile(protocol: Protocol, tile: Tile, widest: int = 0) -> Run:
    """The runs of a tile before their first steps, stacked along a leading axis, on the host.

    Tiles with one `widest` share the program that draws them, whatever their widths.
    """
    d0, d1 = padded(tile)
    sizes, runs = roomy((d0, max(d1, widest))), networks(tile)
    draw_all = _compiled_draws(protocol, tile.num_runs, sizes, x64())
    given = _stacked(protocol, runs, sizes)
    if laws.is_own(protocol.label_law) and "X" not in given:
        X = np.asarray(draw_all(runs, given).problem.X)
        given = _stacked(protocol, runs, sizes, X)
    drawn = jax.device_get(draw_all(runs, given))
    return resize(drawn, drawn.params, d0, d1)


def x64() -> bool:
    """Whether JAX computes in float64, which is part of what is compiled."""
    return jax.config.jax_enable_x64  # type: ignore[attr-defined]
