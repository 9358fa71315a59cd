"""Gradient descent as one Pallas kernel: a network's weights, velocities and data stay on the chip for all its steps.

For accelerators, where XLA's program reads them from the device's memory at every step. Under vmap the networks are the
kernel's grid, and each ends by itself. No device has run it yet: it is correct in Pallas' interpreter, which is what a
CPU runs, and lowers for CUDA and TPU. float32; sizes are padded with zeros up to powers of two.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas
from jax.experimental.pallas import triton
from jaxtyping import Array, Int

from relu_sgd._normalization import loss_scale
from relu_sgd.kernels._momentum_descent import Advanced, Layers, MomentumDescent, Run

__all__ = ["FusedDescent"]

_LEAST = 16  # Of a side of a matrix: what the matrix units of a GPU take.
_ROW = 8


def _padded(array: Array, *sizes: int) -> Array:
    """With zeros after its entries."""
    return jnp.pad(array, [(0, size - old) for size, old in zip(sizes, array.shape, strict=True)])


def _matmul(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=a.dtype)


def _row(*scalars: Array) -> Array:
    """1 x 8: on a TPU scalars are not stored one by one."""
    place = jax.lax.broadcasted_iota(jnp.int32, (1, _ROW), 1)
    row = jnp.zeros((1, _ROW), scalars[0].dtype)
    for index, scalar in enumerate(scalars):
        row = jnp.where(place == index, scalar, row)
    return row


@dataclasses.dataclass(frozen=True)
class FusedDescent(MomentumDescent):
    """`MomentumDescent` as one kernel a network, in float32."""

    precisions = ("float32",)

    def _kernel(self, sizes: tuple[int, int], *references: Any) -> None:
        """The steps of a network.

        Args:
          sizes: (N, d2), without padding.
          references: X, Y, the layers, the numbers (loss, best loss), the flags and the step to advance to; then the
            layers, numbers, flags and losses that are written.
        """
        (X, Y, *layers, numbers, flags, target), written = references[:11], references[11:]
        X, Y, step = X[...], Y[...], target[0, 0]
        N, d2 = sizes
        both, kind = self.trained_layers == "both", X.dtype
        number = lambda value: jnp.asarray(value, kind)
        is_sample = jax.lax.broadcasted_iota(jnp.int32, (X.shape[0], 1), 0) < N
        scale, label_norm = number(loss_scale(N, d2, self.normalization)), jnp.sqrt(jnp.sum(Y * Y))

        def meets(loss: Array) -> Array:
            if self.criterion == "relative_error":
                return jnp.sqrt(2 * loss) / label_norm < number(self.tolerance)
            if self.criterion == "mean_squared_error":
                return 2 * loss / number(N * d2) < number(self.tolerance * np.sqrt(N))
            return loss < -jnp.inf

        def is_due(carry: Any) -> Array:
            _, (loss, _), (now, evaluated, _, is_met, stopped), _ = carry
            ended = ~(jnp.abs(loss) < jnp.inf) | (stopped != 0)
            if self.stop == "first_passage":
                ended = ended | (is_met != 0)
            return ((evaluated == 0) | (now < step)) & ~((evaluated != 0) & ended)

        def take_step(carry: Any) -> Any:
            (
                (W, W_velocity, W_gradient, V, V_velocity, V_gradient),
                (_, best),
                (now, evaluated, first, _, stopped),
                (_, is_new),
            ) = carry
            moves = evaluated != 0
            rate, momentum = number(self.learning_rate), number(self.momentum)

            def moved(weights: Array, velocity: Array, gradient: Array) -> tuple[Array, Array]:
                velocity = jnp.where(moves, gradient + momentum * velocity, velocity)
                return jnp.where(moves, weights - rate * velocity, weights), velocity

            W, W_velocity = moved(W, W_velocity, W_gradient)
            if both:
                V, V_velocity = moved(V, V_velocity, V_gradient)
            now = now + moves.astype(jnp.int32)
            Z = _matmul(X, W)
            H = jnp.where((Z <= 0) | ~is_sample, number(0), Z)  # NaN stays; 0 times an infinite weight is NaN too.
            E = jnp.where(is_sample, Y - _matmul(H, V), number(0))
            slopes = jnp.where(Z > 0, number(1), jnp.where(Z == 0, number(self.at_zero), number(0)))
            W_gradient = -scale * _matmul(X.T, _matmul(E, V.T) * slopes)
            if both:
                V_gradient = -scale * _matmul(H.T, E)
            loss = jnp.sum(E * E) / 2
            best = jnp.where(loss < best, loss, best)
            is_met = meets(loss)
            first = jnp.where(is_met & (first < 0), now, first)
            layers = (W, W_velocity, W_gradient, V, V_velocity, V_gradient)
            # Values, since constants that a loop yields do not lower for a GPU.
            flags = now, evaluated | 1, first, is_met.astype(jnp.int32), stopped
            return layers, (loss, best), flags, (E, is_new | 1)

        begun = (
            tuple(layer[...] for layer in layers),
            (numbers[0, 0], numbers[0, 1]),
            tuple(flags[0, place] for place in range(5)),
            (jnp.zeros_like(Y), jnp.int32(0)),
        )
        layers_now, (loss, best), (now, evaluated, first, is_met, _), (E, is_new) = jax.lax.while_loop(
            is_due, take_step, begun
        )
        *new_layers, new_numbers, new_flags, losses = written
        for place, layer in zip(new_layers, layers_now, strict=True):
            place[...] = layer
        new_numbers[...] = _row(loss, best)
        new_flags[...] = _row(now, evaluated, first, is_met, is_new)
        losses[...] = jnp.sum(E * E, axis=1, keepdims=True) / 2

    def _advance(self, run: Run, step: Int[Array, ""]) -> Advanced:
        (N, d0), d1, d2 = run.X.shape, run.hidden.weights.shape[1], run.Y.shape[1]
        rows, inputs, width, outputs = (max(_LEAST, 1 << (size - 1).bit_length()) for size in (N, d0, d1, d2))
        both = self.trained_layers == "both"
        output = run.output if both else run.output._replace(velocity=run.output.weights, gradient=run.output.weights)
        arrays = (
            _padded(run.X, rows, inputs),
            _padded(run.Y, rows, outputs),
            *(_padded(array, inputs, width) for array in run.hidden),
            *(_padded(array, width, outputs) for array in output),
            _row(run.loss, run.best_loss),
            _row(*run.flags),
            _row(step),
        )
        like = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays[2:-1]]
        losses, platform = jax.ShapeDtypeStruct((rows, 1), run.X.dtype), jax.default_backend()
        *layers, numbers, flags, losses_now = pallas.pallas_call(
            lambda *references: self._kernel((N, d2), *references),
            out_shape=[*like, losses],
            interpret=platform == "cpu",
            # What JAX takes on a GPU unless told otherwise is for its newest cards alone.
            compiler_params=triton.CompilerParams() if platform in ("gpu", "cuda", "rocm") else None,
        )(*arrays)
        return Advanced(
            Layers(*(array[:d0, :d1] for array in layers[:3])),
            Layers(*(array[:d1, :d2] for array in layers[3:])) if both else run.output,
            numbers[0, 0],
            numbers[0, 1],
            flags[0, :5],
            losses_now[:N, 0],
        )
