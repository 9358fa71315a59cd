"""The one-hidden-layer ReLU network Yhat = relu(X W) V, its loss, and the Gram matrix of its Jacobian (Section 2).

Matrix products ask for the highest precision, because the default one is bfloat16 on a TPU and TensorFloat-32 on a
GPU: either would drown the zeros of the preactivations, which this project counts, in rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, ArrayLike, Float, Int, Real

from relu_sgd._algebra import hidden_jacobian_gram, matmul, outer_gram
from relu_sgd._checks import check_fields
from relu_sgd._normalization import Normalization, normalize
from relu_sgd.activation import relu
from relu_sgd.problem import Problem

__all__ = [
    "Normalization",
    "Params",
    "SampleLosses",
    "TrainedLayers",
    "hidden_layer",
    "jacobian_gram",
    "loss",
    "preactivations",
    "predict",
    "sample_losses",
]

TrainedLayers: TypeAlias = Literal["hidden", "both"]


class Params(NamedTuple):
    """The weights theta = (W, V).

    Attributes:
      W: d0 x d1, the hidden layer, a neuron in every column.
      V: d1 x d2, the output layer.
    """

    W: Float[Array, "d0 d1"]
    V: Float[Array, "d1 d2"]


# theta, and optionally which samples, to the losses of those samples.
SampleLosses: TypeAlias = Callable[..., Float[Array, " samples"]]


def _check(params: Params, problem: Problem) -> None:
    check_fields("params", params, Params)
    check_fields("problem", problem, Problem)
    W, V, X, Y = params.W, params.V, problem.X, problem.Y
    if not (
        X.ndim == Y.ndim == W.ndim == V.ndim == 2
        and X.shape[0] == Y.shape[0]
        and X.shape[1] == W.shape[0]
        and W.shape[1] == V.shape[0]
        and V.shape[1] == Y.shape[1]
    ):
        raise ValueError(
            "need X: N x d0, Y: N x d2, W: d0 x d1, V: d1 x d2; "
            f"got X: {X.shape}, Y: {Y.shape}, W: {W.shape}, V: {V.shape}"
        )


def preactivations(params: Params, problem: Problem) -> Float[Array, "N d1"]:
    """Z = X W.

    Raises:
      TypeError: `params` or `problem` is of another kind.
      ValueError: the shapes of `params` and `problem` do not fit each other.
    """
    _check(params, problem)
    return matmul(problem.X, params.W)


def hidden_layer(
    params: Params, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0
) -> Float[Array, "N d1"]:
    """H = relu(X W); errors as for `preactivations` and `relu`."""
    return relu(preactivations(params, problem), at_zero)


def predict(params: Params, problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0) -> Float[Array, "N d2"]:
    """Yhat = relu(X W) V; errors as for `preactivations` and `relu`."""
    return matmul(hidden_layer(params, problem, at_zero=at_zero), params.V)


@jax.custom_jvp
def _relu_with_slopes(x: Float[Array, "*shape"], slopes: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0), whose derivative is `slopes`: for an element of the subdifferential that is chosen elsewhere."""
    del slopes
    return jnp.maximum(x, 0)


@_relu_with_slopes.defjvp
def _relu_with_slopes_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    x, slopes = primals
    return jnp.maximum(x, 0), slopes * tangents[0]


@jax.custom_jvp
def _product(
    WT: Float[ArrayLike, "d1 d0"], XT: Float[ArrayLike, "d0 N"], X: Float[ArrayLike, "N d0"]
) -> Float[Array, "d1 N"]:
    """W^T X^T, for X in both orders: XT is X^T."""
    del X
    return matmul(WT, XT)


@functools.partial(_product.defjvp, symbolic_zeros=True)
def _product_jvp(
    primals: tuple[ArrayLike, ArrayLike, ArrayLike], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    WT, XT, X = primals
    out = _product(WT, XT, X)
    tangent = jnp.zeros_like(out)
    if not isinstance(tangents[0], SymbolicZero):
        # The same product again. Its transpose, which reverse mode evaluates, is D X with X as it lies in memory; that
        # of W^T X^T is D (X^T)^T.
        tangent += jnp.einsum("jk,ik->ji", tangents[0], X, precision=jax.lax.Precision.HIGHEST)
    if not isinstance(tangents[1], SymbolicZero):
        tangent += matmul(WT, tangents[1])
    return out, tangent


def sample_losses(
    problem: Problem, *, at_zero: Real[ArrayLike, "*#shape"] = 0.0, slopes: Float[Array, "N d1"] | None = None
) -> SampleLosses:
    """The map from theta to the losses 1/2 ||Y_i - Yhat_i||^2 of the samples, ready to be evaluated many times.

    It keeps the samples contiguous in memory (Z^T = W^T X^T, with X transposed once, here, and in its own order for
    the gradient): on a CPU that makes a step of gradient descent faster than in the textbook order.

    Args:
      problem: the training set.
      at_zero: slope of relu at 0, broadcast to N x d1.
      slopes: the slope of relu everywhere, in place of `at_zero`; see `selections`.

    Returns:
      A function of `params` and, optionally, of the indices of the wanted samples; it raises ValueError when the
      shapes do not fit.
    """
    check_fields("problem", problem, Problem)
    inputs, labels = problem.X.T, problem.Y.T
    return lambda params, samples=None: _contiguous_losses(params, samples, problem, inputs, labels, at_zero, slopes)


def _contiguous_losses(
    params: Params,
    samples: Int[Array, " samples"] | None,
    problem: Problem,
    inputs: Any,
    labels: Any,
    at_zero: Any,
    slopes: Any,
) -> Float[Array, " samples"]:
    """The losses of the samples, all of them if `samples` is None; `inputs` is X^T and `labels` Y^T."""
    _check(params, problem)
    # D X is faster than D (X^T)^T where the rows of X fill vector registers, and slower where they do not (tried with
    # 256-bit registers in float32).
    whole_registers = problem.X.shape[1] == 8 or problem.X.shape[1] % 16 == 0
    x, X = (inputs, problem.X) if samples is None else (inputs[:, samples], problem.X[samples])
    y = labels if samples is None else labels[:, samples]
    slope = at_zero if slopes is None else slopes
    if jnp.ndim(slope):
        slope = jnp.broadcast_to(slope, (problem.X.shape[0], params.W.shape[1])).T
        slope = slope if samples is None else slope[:, samples]
    # The barrier keeps XLA from folding the transpose into the products, which are faster without it.
    WT = jax.lax.optimization_barrier(params.W.T)
    Z = _product(WT, x, X) if whole_registers else matmul(WT, x)
    hidden = relu(Z, slope) if slopes is None else _relu_with_slopes(Z, jnp.asarray(slope, Z.dtype))
    return 0.5 * jnp.sum((y - matmul(params.V.T, hidden)) ** 2, axis=0)


def loss(
    params: Params,
    problem: Problem,
    *,
    normalization: Normalization = "half_sum",
    at_zero: Real[ArrayLike, "*#shape"] = 0.0,
) -> Float[Array, ""]:
    """L(theta) = 1/2 ||Y - Yhat||_F^2 (Section 2), or the mean squared error with normalization="mean".

    Raises:
      ValueError: the shapes do not fit, or `normalization` or `at_zero` is not allowed.
    """
    return normalize(sample_losses(problem, at_zero=at_zero)(params), problem.Y.shape[1], normalization)


def jacobian_gram(
    params: Params,
    problem: Problem,
    *,
    trained_layers: TrainedLayers = "both",
    at_zero: Real[ArrayLike, "*#shape"] = 0.0,
) -> Float[Array, "rows rows"]:
    """J J^T for the Jacobian J of Yhat with respect to the trained weights, without forming J.

    For d2 = 1 it is (X X^T) o (M diag(v)^2 M^T) + H H^T, with M the slopes of relu and o the entrywise product; the
    second term is there only when V is trained. In general entry ((i, a), (k, b)) is (X_i . X_k) sum_j M_ij M_kj V_ja
    V_jb + [a = b] (H H^T)_ik. It costs O(N^2 (d0 + d1)) for d2 = 1, where J has N x (d0 d1 + d1) entries.

    Args:
      params: the weights.
      problem: the training set.
      trained_layers: "both", or "hidden" for the Jacobian with respect to W alone (Appendix G).
      at_zero: slope of relu at 0, broadcast to N x d1.

    Returns:
      The Gram matrix; row i d2 + a belongs to output a of sample i.

    Raises:
      ValueError: the shapes do not fit, or `trained_layers` or `at_zero` is not allowed.
    """
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    Z = preactivations(params, problem)
    d2 = problem.Y.shape[1]
    hidden, slopes = jax.jvp(lambda z: relu(z, at_zero), (Z,), (jnp.ones_like(Z),))
    gram = hidden_jacobian_gram(slopes, params.V, problem.X)
    if trained_layers == "both":
        gram = gram + jnp.kron(outer_gram(hidden), jnp.eye(d2, dtype=Z.dtype))
    return gram
