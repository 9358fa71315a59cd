"""What is read off a network, or off two consecutive ones (Section 6).

Where a network is padded with neurons that do not exist, `neurons` marks the true ones and the others never count. For
networks other than the paper's, `preactivations_of` and `predict_of` say how they are evaluated:
`Approximator.preactivations` and `.predict`; the neurons are then all units of all layers.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, ScalarLike, UInt32

from relu_sgd.network import Params, preactivations, predict
from relu_sgd.problem import Problem

__all__ = [
    "activation_pattern",
    "dead_neurons",
    "dead_samples",
    "neuron_balance",
    "numerical_zeros",
    "numerical_zeros_at_rounding",
    "pattern_changes",
    "pattern_fingerprint",
    "relative_error",
]

Neurons = Bool[Array | np.ndarray, " d1"] | None
Preactivations = Callable[[Any, Problem], Float[Array, "N d1"]]


def _of_neurons(matrix: Bool[Array, "N d1"], neurons: Neurons) -> Bool[Array, "N d1"]:
    """The matrix where the neurons are true ones, False elsewhere."""
    return matrix if neurons is None else matrix & neurons[None, :]


def _count(matrix: Bool[Array, "N d1"], neurons: Neurons) -> Int[Array, ""]:
    return jnp.sum(_of_neurons(matrix, neurons), dtype=jnp.int32)


def relative_error(
    params: Any, problem: Problem, *, predict_of: Callable[[Any, Problem], Float[Array, "N d2"]] = predict
) -> Float[Array, ""]:
    """||Y - Yhat||_F / ||Y||_F, the quantity of the paper's convergence criterion (Section 6.2)."""
    return jnp.linalg.norm(problem.Y - predict_of(params, problem)) / jnp.linalg.norm(problem.Y)


def numerical_zeros(
    params: Any,
    problem: Problem,
    threshold: ScalarLike = 1e-8,
    *,
    neurons: Neurons = None,
    preactivations_of: Preactivations = preactivations,
) -> Int[Array, ""]:
    """The number of preactivations below `threshold` in absolute value (Figures 2b, 2c, with 1e-8).

    In float32 the rounding of Z, about 1e-7 for unit rows, hides most of the zeros that float64 shows: see
    `numerical_zeros_at_rounding`.
    """
    return _count(jnp.abs(preactivations_of(params, problem)) < threshold, neurons)


def numerical_zeros_at_rounding(
    params: Params, problem: Problem, multiple: ScalarLike = 8.0, *, neurons: Neurons = None
) -> Int[Array, ""]:
    """The number of preactivations that rounding cannot tell from 0: |Z_ij| <= multiple eps ||X_i|| ||W_j||.

    eps is the distance from 1 to the next number of the precision at hand, so the count means the same in float32 and
    float64. A neuron or sample that is exactly 0 counts in full.
    """
    Z = preactivations(params, problem)
    scale = jnp.linalg.norm(problem.X, axis=1)[:, None] * jnp.linalg.norm(params.W, axis=0)[None, :]
    return _count(jnp.abs(Z) <= multiple * jnp.finfo(Z.dtype).eps * scale, neurons)


def activation_pattern(
    params: Any, problem: Problem, *, preactivations_of: Preactivations = preactivations
) -> Bool[Array, "N d1"]:
    """Which neurons are active on which samples: Z_ij > 0."""
    return preactivations_of(params, problem) > 0


def pattern_changes(
    before: Any,
    after: Any,
    problem: Problem,
    *,
    neurons: Neurons = None,
    preactivations_of: Preactivations = preactivations,
) -> Int[Array, ""]:
    """The Hamming distance between the activation patterns of two networks (Figures 3c, 3h)."""
    pattern = lambda params: activation_pattern(params, problem, preactivations_of=preactivations_of)
    return _count(pattern(before) != pattern(after), neurons)


def dead_samples(
    params: Any, problem: Problem, *, neurons: Neurons = None, preactivations_of: Preactivations = preactivations
) -> Int[Array, ""]:
    """The number of samples on which no neuron is active.

    Such a sample is predicted as 0 and contributes nothing to the gradient of W; k of them, with labels +-1, hold the
    relative error at sqrt(k / N) or more.
    """
    active = activation_pattern(params, problem, preactivations_of=preactivations_of)
    return jnp.sum(~jnp.any(_of_neurons(active, neurons), axis=1), dtype=jnp.int32)


def dead_neurons(
    params: Any, problem: Problem, *, neurons: Neurons = None, preactivations_of: Preactivations = preactivations
) -> Int[Array, ""]:
    """The number of neurons that are active on no sample: they have no gradient, and stay as they are."""
    dead = ~jnp.any(activation_pattern(params, problem, preactivations_of=preactivations_of), axis=0)
    return jnp.sum(dead if neurons is None else dead & neurons, dtype=jnp.int32)


def neuron_balance(params: Params) -> Float[Array, " d1"]:
    """||W_j||^2 - ||V_j||^2 of every neuron, which no solution of the inclusion changes when both layers move."""
    return jnp.sum(params.W**2, axis=0) - jnp.sum(params.V**2, axis=1)


def _mixed(values: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection of 32 bits that scatters neighbours (multiply and shift)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = (values ^ (values >> shift)) * jnp.uint32(factor)
    return values ^ (values >> 16)


def pattern_fingerprint(
    params: Any, problem: Problem, *, neurons: Neurons = None, preactivations_of: Preactivations = preactivations
) -> UInt32[Array, "2"]:
    """64 bits that stand for the activation pattern: equal patterns have equal ones, and different ones differ but for
    chance.

    Twice, with different fixed pseudo-random words for the neurons: the words of a sample's active neurons are added
    up, and the sums of all samples are scattered and added up. Two of n different patterns agree with probability
    about n^2 / 2^65. With it the linear regions that a trajectory visits are counted without keeping their patterns.
    """
    active = activation_pattern(params, problem, preactivations_of=preactivations_of)
    active = _of_neurons(active, neurons)
    num_samples, d1 = active.shape
    # A neuron's word and a sample's place do not depend on padding.
    column, row = jnp.arange(d1, dtype=jnp.uint32), _mixed(jnp.arange(num_samples, dtype=jnp.uint32))
    halves = []
    for salt in (0x9E3779B9, 0x85EBCA6B):
        words = jnp.where(active, _mixed(column + jnp.uint32(salt))[None, :], jnp.uint32(0))
        halves.append(jnp.sum(_mixed(jnp.sum(words, axis=1, dtype=jnp.uint32) ^ row), dtype=jnp.uint32))
    return jnp.stack(halves)
