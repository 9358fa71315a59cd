"""What is read off a network, or off two consecutive ones (Section 6).

Where a network is padded with neurons that do not exist, `neurons` marks the true ones and the others never count.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from relu_sgd.network import Params, preactivations, predict
from relu_sgd.problem import Problem

__all__ = [
    "activation_pattern",
    "dead_samples",
    "numerical_zeros",
    "numerical_zeros_at_rounding",
    "pattern_changes",
    "relative_error",
]

Neurons = Bool[Array, " d1"] | None


def _count(matrix: Bool[Array, "N d1"], neurons: Neurons) -> Int[Array, ""]:
    return jnp.sum(matrix if neurons is None else matrix & neurons, dtype=jnp.int32)


def relative_error(params: Params, problem: Problem) -> Float[Array, ""]:
    """||Y - Yhat||_F / ||Y||_F, the quantity of the paper's convergence criterion (Section 6.2)."""
    return jnp.linalg.norm(problem.Y - predict(params, problem)) / jnp.linalg.norm(problem.Y)


def numerical_zeros(
    params: Params, problem: Problem, threshold: ScalarLike = 1e-8, *, neurons: Neurons = None
) -> Int[Array, ""]:
    """The number of preactivations below `threshold` in absolute value (Figures 2b, 2c, with 1e-8).

    In float32 the rounding of Z, about 1e-7 for unit rows, hides most of the zeros that float64 shows: see
    `numerical_zeros_at_rounding`.
    """
    return _count(jnp.abs(preactivations(params, problem)) < threshold, neurons)


def numerical_zeros_at_rounding(
    params: Params, problem: Problem, multiple: ScalarLike = 8.0, *, neurons: Neurons = None
) -> Int[Array, ""]:
    """The number of preactivations that rounding cannot tell from 0: |Z_ij| <= multiple eps ||X_i|| ||W_j||.

    eps is the distance from 1 to the next number of the precision at hand, so the count means the same in float32 and
    float64. A neuron or sample that is exactly 0 counts in full.
    """
    Z = preactivations(params, problem)
    scale = jnp.linalg.norm(problem.X, axis=1)[:, None] * jnp.linalg.norm(params.W, axis=0)
    return _count(jnp.abs(Z) <= multiple * jnp.finfo(Z.dtype).eps * scale, neurons)


def activation_pattern(params: Params, problem: Problem) -> Bool[Array, "N d1"]:
    """Which neurons are active on which samples: Z_ij > 0."""
    return preactivations(params, problem) > 0


def pattern_changes(before: Params, after: Params, problem: Problem, *, neurons: Neurons = None) -> Int[Array, ""]:
    """The Hamming distance between the activation patterns of two networks (Figures 3c, 3h)."""
    return _count(activation_pattern(before, problem) != activation_pattern(after, problem), neurons)


def dead_samples(params: Params, problem: Problem, *, neurons: Neurons = None) -> Int[Array, ""]:
    """The number of samples on which no neuron is active.

    Such a sample is predicted as 0 and contributes nothing to the gradient of W; k of them, with labels +-1, hold the
    relative error at sqrt(k / N) or more.
    """
    active = activation_pattern(params, problem)
    return jnp.sum(~jnp.any(active if neurons is None else active & neurons, axis=1), dtype=jnp.int32)
