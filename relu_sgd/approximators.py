"""Theorem 5.6's general case: any approximator with any loss that is a sum over samples, deep ReLU networks among them.

An `Approximator` is a map from parameters (any pytree) and inputs to outputs, and a loss of a sample. `descend` and the measurements take one;
without, they run on the first instance: `shallow()`, the paper's network with half the squared error.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Real

from relu_sgd import network
from relu_sgd.activation import relu
from relu_sgd.network import SampleLosses
from relu_sgd.problem import Problem

__all__ = ["LOSSES", "Approximator", "DeepReLU", "deep", "shallow"]

SampleLoss: TypeAlias = Callable[[Float[Array, "N d2"], Float[Array, "N d2"]], Float[Array, " N"]]


def _squared(outputs: Array, labels: Array) -> Array:
    return 0.5 * jnp.sum((labels - outputs) ** 2, axis=-1)


def _hinge(outputs: Array, labels: Array) -> Array:
    return jnp.sum(optax.losses.hinge_loss(outputs, labels), axis=-1)


def _logistic(outputs: Array, labels: Array) -> Array:
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(outputs, (labels + 1) / 2), axis=-1)


# The loss of a sample from its outputs and labels: half the squared error; the hinge max(0, 1 - y f) and the logistic loss log(1 + exp(-y f)) for labels +-1,
# summed over the outputs; the cross-entropy of the outputs as logits with labels that are probabilities (one-hot, for classes).
LOSSES: dict[str, SampleLoss] = {
    "squared": _squared,
    "hinge": _hinge,
    "logistic": _logistic,
    "cross_entropy": optax.losses.softmax_cross_entropy,
}


@dataclasses.dataclass(frozen=True)
class Approximator:
    """What `descend` minimises: Ltilde(theta) = sum over i of loss(f(theta, X_i), Y_i).

    Attributes:
      predict_inputs: (theta, inputs n x d0, slope of relu at 0) to outputs n x d2.
      preactivations_of: (theta, problem) to all preactivations, N x units, for the measurements.
      sample_loss: outputs and labels, n x d2, to losses, n; see `LOSSES`.
    """

    predict_inputs: Callable[[PyTree, Float[Array, "n d0"], Any], Float[Array, "n d2"]]
    preactivations_of: Callable[[PyTree, Problem], Float[Array, "N units"]]
    sample_loss: SampleLoss = _squared

    def predict(
        self, params: PyTree, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0
    ) -> Float[Array, "N d2"]:
        """The outputs for the samples."""
        return self.predict_inputs(params, problem.X, at_zero)

    def preactivations(self, params: PyTree, problem: Problem) -> Float[Array, "N units"]:
        """All preactivations, layer after layer."""
        return self.preactivations_of(params, problem)

    def sample_losses(self, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0) -> SampleLosses:
        """As `network.sample_losses`: from theta, and optionally which samples, to the losses of the samples."""

        def losses(params: PyTree, samples: Int[Array, " samples"] | None = None) -> Float[Array, " samples"]:
            X, Y = problem if samples is None else (problem.X[samples], problem.Y[samples])
            return self.sample_loss(self.predict_inputs(params, X, at_zero), Y)

        return losses


def shallow(loss: str = "squared") -> Approximator:
    """The paper's network, theta = `Params`, with one of `LOSSES`.

    With "squared" it is what `descend` runs on by default, up to rounding: the default keeps the samples contiguous, which is faster.

    Raises:
      ValueError: the loss is none of `LOSSES`.
    """
    return Approximator(
        predict_inputs=lambda params, X, at_zero: network.matmul(relu(network.matmul(X, params.W), at_zero), params.V),
        preactivations_of=network.preactivations,
        sample_loss=_loss(loss),
    )


def _loss(name: str) -> SampleLoss:
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {tuple(LOSSES)}, got {name!r}")
    return LOSSES[name]


class DeepReLU(nn.Module):
    """A fully connected network with a chosen slope of relu at 0 in every hidden layer.

    Attributes:
      widths: of the hidden layers, in order.
      num_outputs: d2.
      at_zero: the slope of relu at 0, in [0, 1].
      use_bias: whether the layers have biases; the paper's has none.
    """

    widths: Sequence[int]
    num_outputs: int = 1
    at_zero: Any = 0.0
    use_bias: bool = False

    @nn.compact
    def __call__(self, inputs: Float[Array, "n d0"]) -> tuple[Float[Array, "n d2"], Float[Array, "n units"]]:
        """The outputs, and the preactivations of all hidden layers side by side."""
        dense = lambda width: nn.Dense(
            width,
            use_bias=self.use_bias,
            param_dtype=inputs.dtype,
            precision=jax.lax.Precision.HIGHEST,
        )
        hidden, preactivations = inputs, []
        for width in self.widths:
            preactivations.append(dense(width)(hidden))
            hidden = relu(preactivations[-1], self.at_zero)
        return dense(self.num_outputs)(hidden), jnp.concatenate(preactivations, axis=-1)


def deep(
    widths: Sequence[int], num_outputs: int = 1, *, loss: str = "squared", use_bias: bool = False
) -> tuple[Approximator, Callable[[Key[Array, ""], Problem], PyTree]]:
    """A deep ReLU network, and a function that draws its start (flax's LeCun normal law).

    Args:
      widths: of the hidden layers, in order; at least one.
      num_outputs: d2.
      loss: one of `LOSSES`.
      use_bias: whether the layers have biases.

    Returns:
      The approximator, and a function of (key, problem) to theta_0 in the precision of the problem.

    Raises:
      ValueError: there is no hidden layer, a width is less than 1, or the loss is none of `LOSSES`.
    """
    if not widths or min(*widths, num_outputs) < 1:
        raise ValueError(f"widths must be at least one, of at least 1, and outputs too; got {widths} and {num_outputs}")
    module = lambda at_zero: DeepReLU(tuple(widths), num_outputs, at_zero, use_bias)
    approximator = Approximator(
        predict_inputs=lambda params, X, at_zero: jnp.asarray(module(at_zero).apply(params, X)[0]),
        preactivations_of=lambda params, problem: jnp.asarray(module(0.0).apply(params, problem.X)[1]),
        sample_loss=_loss(loss),
    )
    return approximator, lambda key, problem: module(0.0).init(key, problem.X)
