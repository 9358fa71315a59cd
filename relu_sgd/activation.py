"""The ReLU activation with a chosen Clarke slope at its kink.

The Clarke subdifferential of relu at 0 is the interval [0, 1] (Section 2 of the paper); automatic differentiation
must pick one element of it. Libraries disagree on which (`jax.nn.relu` picks 0, the gradient of
`jnp.maximum(x, 0)` picks 1/2), so the choice is an argument here.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Real

__all__ = ["relu"]


@jax.custom_jvp
def _relu(x: Array, at_zero: Array) -> Array:
    del at_zero  # It chooses a derivative and never changes the value.
    return jnp.maximum(x, 0)


@_relu.defjvp
def _relu_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, at_zero = primals
    x_dot, _ = tangents
    # What is neither positive nor negative is 0 or NaN: adding x leaves `at_zero` as it is at a zero of either sign,
    # and lets a NaN through. The slope is selected before it multiplies, so that an infinite x stays out of the
    # reverse mode.
    slope = jnp.where(x > 0, 1, jnp.where(x < 0, 0, at_zero + jax.lax.stop_gradient(x)))
    return jnp.maximum(x, 0), slope * x_dot


def relu(x: Real[ArrayLike, "*shape"], at_zero: Real[ArrayLike, "*#shape"] = 0.0) -> Float[Array, "*shape"]:
    """max(x, 0), whose derivative is 1 for x > 0, 0 for x < 0 and `at_zero` at exactly 0.

    Zeros of both signs count as 0, and so do subnormal numbers on a backend that flushes them (XLA's CPU and TPU
    backends do). NaN propagates through value and derivative. Every derivative of higher order is 0, except that the
    first derivative at 0 is linear in `at_zero`, so that the choice itself can be differentiated through.

    Args:
      x: preactivations, any shape; integers are converted to the default floating type.
      at_zero: the slope at 0, in [0, 1]; broadcast to the shape of `x`. It may be traced, mapped or drawn at random.

    Returns:
      An array of the shape of `x`.

    Raises:
      ValueError: `at_zero` is known when the function is traced and lies outside [0, 1] or is NaN, or its shape does
        not broadcast to that of `x`.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.result_type(float))
    if not isinstance(at_zero, jax.core.Tracer):
        slopes = np.asarray(at_zero)
        if not np.all((slopes >= 0) & (slopes <= 1)):
            raise ValueError(f"at_zero must lie in [0, 1], the Clarke subdifferential of relu at 0; got {at_zero}")
    at_zero = jnp.asarray(at_zero, x.dtype)
    try:
        fits = np.broadcast_shapes(at_zero.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"at_zero of shape {at_zero.shape} does not broadcast to the shape {x.shape} of x")
    missing = x.ndim - at_zero.ndim if at_zero.ndim else 0
    return _relu(x, at_zero.reshape((1,) * missing + at_zero.shape))
