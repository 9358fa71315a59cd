"""Theorem 5.6's general case: any approximator with any loss that is a sum over samples, deep ReLU networks among
them.

An `Approximator` is a map from parameters (any pytree) and inputs to outputs, and a loss of a sample. `descend` and
the measurements take one; without, they run on the first instance: `shallow()`, the paper's network with half the
squared error.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key, PyTree, Real

from relu_sgd import network
from relu_sgd._algebra import matmul
from relu_sgd._checks import check_fields, check_key, takes, whole_number
from relu_sgd.activation import relu
from relu_sgd.network import SampleLosses
from relu_sgd.problem import Problem

__all__ = ["LOSSES", "Approximator", "DeepReLU", "deep", "shallow"]

SampleLoss: TypeAlias = Callable[[Float[Array, "N d2"], Float[Array, "N d2"]], Float[Array, " N"]]


def _same_shape(outputs: Array, labels: Array) -> None:
    if jnp.ndim(outputs) != 2 or jnp.shape(outputs) != jnp.shape(labels):
        raise ValueError(
            f"outputs and labels must be n x d2 and of one shape, got {jnp.shape(outputs)} and {jnp.shape(labels)}"
        )


def _squared(outputs: Array, labels: Array) -> Array:
    _same_shape(outputs, labels)
    return 0.5 * jnp.sum((labels - outputs) ** 2, axis=-1)


def _hinge(outputs: Array, labels: Array) -> Array:
    _same_shape(outputs, labels)
    _check_labels(_hinge, labels)
    return jnp.sum(optax.losses.hinge_loss(outputs, labels), axis=-1)


def _quadratic_hinge(outputs: Array, labels: Array) -> Array:
    _same_shape(outputs, labels)
    _check_labels(_quadratic_hinge, labels)
    return 0.5 * jnp.sum(optax.losses.hinge_loss(outputs, labels) ** 2, axis=-1)


def _logistic(outputs: Array, labels: Array) -> Array:
    _same_shape(outputs, labels)
    _check_labels(_logistic, labels)
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(outputs, (labels + 1) / 2), axis=-1)


def _cross_entropy(outputs: Array, labels: Array) -> Array:
    _same_shape(outputs, labels)
    _check_labels(_cross_entropy, labels)
    return optax.losses.softmax_cross_entropy(outputs, labels)


# The loss of a sample from its outputs and labels: half the squared error; the hinge max(0, 1 - y f), the quadratic
# hinge 1/2 max(0, 1 - y f)^2 and the logistic loss log(1 + exp(-y f)) for labels +-1, summed over the outputs; the
# cross-entropy of two or more outputs as logits with labels that are probabilities (one-hot, for classes). Each raises
# ValueError where outputs and labels differ in shape, and where labels that are known when it is traced are not what
# it is for. Labels that are traced, as under jit, it cannot see.
LOSSES: dict[str, SampleLoss] = {
    "squared": _squared,
    "hinge": _hinge,
    "quadratic_hinge": _quadratic_hinge,
    "logistic": _logistic,
    "cross_entropy": _cross_entropy,
}

# What a loss wants of its labels, in words and as a test.
_LABELS: dict[SampleLoss, tuple[str, Callable[[np.ndarray], bool]]] = {
    _hinge: ("+1 or -1", lambda Y: bool((np.abs(Y) == 1).all())),
    _quadratic_hinge: ("+1 or -1", lambda Y: bool((np.abs(Y) == 1).all())),
    _logistic: ("+1 or -1, or in between", lambda Y: bool((np.abs(Y) <= 1).all())),
    _cross_entropy: (
        "probabilities of each sample's classes",
        lambda Y: bool((Y >= 0).all() and np.allclose(Y.sum(axis=-1), 1, rtol=0, atol=1e-5)),
    ),
}


def _check_labels(loss: SampleLoss, labels: Array) -> None:
    if loss is _cross_entropy and jnp.shape(labels)[-1] < 2:
        raise ValueError("cross_entropy needs an output per class, two at least: with one it is 0 for ever")
    if loss in _LABELS and not isinstance(labels, jax.core.Tracer):
        words, allowed = _LABELS[loss]
        if not allowed(np.asarray(labels, float)):
            raise ValueError(f"the labels of {loss.__name__.strip('_')} must be {words}")


@dataclasses.dataclass(frozen=True)
class Approximator:
    """What `descend` minimises: Ltilde(theta) = sum over i of loss(f(theta, X_i), Y_i).

    Attributes:
      predict_inputs: (theta, inputs n x d0, slope of relu at 0) to outputs n x d2.
      preactivations_of: (theta, problem) to all preactivations, N x units, for the measurements; None where nothing
        that needs them is measured.
      sample_loss: outputs and labels, n x d2, to losses, n; see `LOSSES`.
      initializer: (key, problem) to theta_0, where the approximator has a law of its own.
    """

    predict_inputs: Callable[[PyTree, Float[Array, "n d0"], Any], Float[Array, "n d2"]]
    preactivations_of: Callable[[PyTree, Problem], Float[Array, "N units"]] | None = None
    sample_loss: SampleLoss = _squared
    initializer: Callable[[Key[Array, ""], Problem], PyTree] | None = None

    @property
    def is_squared(self) -> bool:
        """Whether the loss of a sample is half the squared error, so that `normalization="mean"` has its meaning."""
        return self.sample_loss is _squared

    def init(self, key: Key[Array, ""], problem: Problem) -> PyTree:
        """theta_0, in the precision of the problem.

        Raises:
          TypeError: the key is none, or the problem is of another kind.
          ValueError: the approximator has no law of its own for it.
        """
        check_key(key)
        check_fields("problem", problem, Problem)
        if self.initializer is None:
            raise ValueError(
                "this approximator has no initializer; those of the paper's network are in `initialization`"
            )
        return self.initializer(key, problem)

    def predict(
        self, params: PyTree, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0
    ) -> Float[Array, "N d2"]:
        """The outputs for the samples."""
        return self.predict_inputs(params, problem.X, at_zero)

    def preactivations(self, params: PyTree, problem: Problem) -> Float[Array, "N units"]:
        """All preactivations, layer after layer.

        Raises:
          ValueError: the approximator does not say what they are.
        """
        if self.preactivations_of is None:
            raise ValueError("this approximator has no preactivations_of, which measurements of its kinks need")
        return self.preactivations_of(params, problem)

    def sample_losses(self, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0) -> SampleLosses:
        """As `network.sample_losses`: from theta, and optionally which samples, to the losses of the samples.

        Args:
          problem: the training set.
          at_zero: slope of relu at 0, broadcast to N x units, units those of a hidden layer; with mini-batches the
            rows follow their samples.

        Raises:
          TypeError: the problem is of another kind.
          ValueError: `at_zero` has rows, but not N, or the labels are known when traced and are none for a loss of
            `LOSSES`.
        """
        check_fields("problem", problem, Problem)
        _check_labels(self.sample_loss, problem.Y)
        num_samples = problem.X.shape[0]
        has_rows = jnp.ndim(at_zero) > 1 and jnp.shape(at_zero)[0] != 1
        if jnp.ndim(at_zero) > 2 or (has_rows and jnp.shape(at_zero)[0] != num_samples):
            raise ValueError(f"at_zero of shape {jnp.shape(at_zero)} does not broadcast to N = {num_samples} rows")

        def losses(params: PyTree, samples: Int[Array, " samples"] | None = None) -> Float[Array, " samples"]:
            X, Y = problem if samples is None else (problem.X[samples], problem.Y[samples])
            slopes = jnp.asarray(at_zero)[samples] if has_rows and samples is not None else at_zero
            return self.sample_loss(self.predict_inputs(params, X, slopes), Y)

        return losses

    def __call__(self, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0) -> SampleLosses:
        """`sample_losses`: an approximator is what `descend` takes for `losses`."""
        return self.sample_losses(problem, at_zero=at_zero)


def shallow(loss: str | SampleLoss = "squared") -> Approximator:
    """The paper's network, theta = `Params`, with one of `LOSSES` or a loss of one's own.

    With "squared" it is what `descend` runs on by default, up to rounding: the default keeps the samples contiguous,
    which is faster.

    Raises:
      ValueError: the loss is none of `LOSSES`, or a function of other arguments than outputs and labels.
    """
    return Approximator(
        predict_inputs=lambda params, X, at_zero: matmul(relu(matmul(X, params.W), at_zero), params.V),
        preactivations_of=network.preactivations,
        sample_loss=_loss(loss),
    )


def _loss(name: str | SampleLoss) -> SampleLoss:
    if callable(name):
        if not takes(name, None, None):
            raise ValueError(
                "loss must have the signature loss(outputs, labels) -> n floats, both n x d2; "
                "a losses(problem, *, at_zero) goes to descend(losses=...)"
            )
        return name
    if not isinstance(name, str) or name not in LOSSES:
        raise ValueError(f"loss must be one of {tuple(LOSSES)}, got {name!r}")
    return LOSSES[name]


class DeepReLU(nn.Module):
    """A fully connected network with a chosen slope of relu at 0 in every hidden layer.

    Attributes:
      widths: the hidden layers' widths, in order.
      num_outputs: d2.
      at_zero: the slope of relu at 0, in [0, 1].
      use_bias: whether the layers have biases; the paper's has none.
      initializer: the law of every weight matrix, as in jax.nn.initializers; biases begin at 0.
    """

    widths: Sequence[int]
    num_outputs: int = 1
    at_zero: Any = 0.0
    use_bias: bool = False
    initializer: Callable[..., Array] = jax.nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, inputs: Float[Array, "n d0"]) -> tuple[Float[Array, "n d2"], Float[Array, "n units"]]:
        """The outputs, and the preactivations of all hidden layers side by side."""
        dense = lambda width: nn.Dense(
            width,
            use_bias=self.use_bias,
            kernel_init=self.initializer,
            param_dtype=inputs.dtype,
            precision=jax.lax.Precision.HIGHEST,
        )
        hidden, preactivations = inputs, []
        for width in self.widths:
            preactivations.append(dense(width)(hidden))
            hidden = relu(preactivations[-1], self.at_zero)
        return dense(self.num_outputs)(hidden), jnp.concatenate(preactivations, axis=-1)


def deep(
    widths: Sequence[int],
    num_outputs: int = 1,
    *,
    loss: str | SampleLoss = "squared",
    use_bias: bool = False,
    initializer: Callable[..., Array] | None = None,
) -> Approximator:
    """A deep ReLU network, with a law for its start, `Approximator.init`.

    Args:
      widths: the hidden layers' widths, in order; at least one.
      num_outputs: d2.
      loss: one of `LOSSES`, or a function as `Approximator.sample_loss`.
      use_bias: whether the layers have biases, 0 at the start.
      initializer: the law of every weight matrix, from (key, shape, dtype) to an array of that shape (fan-in first), as
        in jax.nn.initializers; None for LeCun's normal law.

    Raises:
      ValueError: there is no hidden layer, a width is no whole number from 1 on, the loss is none of `LOSSES` and
        no function of outputs and labels, or the initializer is no function.
    """
    if not len(widths):
        raise ValueError("widths must be those of one hidden layer at least")
    num_outputs = whole_number("num_outputs", num_outputs)
    layers = tuple(whole_number("widths", width) for width in widths)
    law = jax.nn.initializers.lecun_normal() if initializer is None else initializer
    if not callable(law):
        raise ValueError(f"initializer must be a function of (key, shape, dtype), got {law!r}")
    module = lambda at_zero: DeepReLU(layers, num_outputs, at_zero, use_bias, law)
    return Approximator(
        predict_inputs=lambda params, X, at_zero: jnp.asarray(module(at_zero).apply(params, X)[0]),
        preactivations_of=lambda params, problem: jnp.asarray(module(0.0).apply(params, problem.X)[1]),
        sample_loss=_loss(loss),
        initializer=lambda key, problem: module(0.0).init(key, problem.X),
    )
