"""How much the differential changes from one network to the next: of the predictions, and of the loss (Section 6.2,
Figures 3e, 3j).

The paper's text means the Jacobian DY of the predictions, its released code the gradient of the loss; they are far
apart, so both are here.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from relu_sgd._algebra import gram_of_factor, matmul, norm_from_gram, outer_gram
from relu_sgd.network import Params, TrainedLayers, hidden_layer, jacobian_gram, preactivations
from relu_sgd.problem import Problem

__all__ = [
    "jacobian_difference_gram",
    "least_hidden_singular_value",
    "relative_gradient_change",
    "relative_jacobian_change",
]


def least_hidden_singular_value(params: Params, problem: Problem) -> Float[Array, ""]:
    """alpha_0 = sigma_min(H^T) of (8), to the square root of rounding; 0 where d1 < N, by rank.

    Raises:
      ValueError: the shapes do not fit.
    """
    H = hidden_layer(params, problem)
    if H.shape[1] < H.shape[0]:
        return jnp.zeros((), H.dtype)
    return jnp.sqrt(jnp.linalg.svdvals(outer_gram(H))[-1])


def jacobian_difference_gram(
    before: Params, after: Params, problem: Problem, *, trained_layers: TrainedLayers = "both"
) -> Float[Array, "rows rows"]:
    """(J' - J)(J' - J)^T for the Jacobians of the predictions at two networks; rows as in `network.jacobian_gram`.

    For d2 = 1, (X X^T) o (D D^T) + (H' - H)(H' - H)^T with D = M' dg(v') - M dg(v), the second term only where V is
    trained: O(N^2 d1), and no matrix with as many columns as there are weights.

    Args:
      before, after: the networks.
      problem: the training set.
      trained_layers: the weights of the Jacobian, "both" layers or the "hidden" one; slopes at 0 are 0.

    Raises:
      ValueError: the shapes do not fit.
    """
    (Z0, V0), (Z1, V1) = ((preactivations(params, problem), params.V) for params in (before, after))
    masked = lambda Z, V: (Z > 0).astype(V.dtype)[:, None, :] * V.T[None]
    factor = masked(Z1, V1) - masked(Z0, V0)
    gram = gram_of_factor(factor, problem.X)
    if trained_layers == "both":
        moved = jnp.maximum(Z1, 0) - jnp.maximum(Z0, 0)
        gram = gram + jnp.kron(outer_gram(moved), jnp.eye(V0.shape[1], dtype=moved.dtype))
    return gram


def relative_jacobian_change(
    before: Params, after: Params, problem: Problem, *, trained_layers: TrainedLayers = "both"
) -> Float[Array, ""]:
    """||DY' - DY|| / ||DY|| in the operator norm: the relative differential change of the paper's text.

    Raises:
      ValueError: the shapes do not fit, or `trained_layers` is not allowed.
    """
    whole = jacobian_gram(before, problem, trained_layers=trained_layers)
    difference = jacobian_difference_gram(before, after, problem, trained_layers=trained_layers)
    return norm_from_gram(difference) / norm_from_gram(whole)


def _spectral_norm(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    rows, columns = matrix.shape
    return norm_from_gram(matmul(matrix, matrix.T) if rows <= columns else matmul(matrix.T, matrix))


def relative_gradient_change(before: PyTree, after: PyTree) -> Float[Array, ""]:
    """The relative differential change of the released code: max over layers of ||g' - g||_2 over max over layers of
    ||g||_2.

    Args:
      before, after: gradients of the objective, a matrix a layer; ||.||_2 is the spectral norm.
    """
    norms = lambda tree: jnp.max(jnp.stack([_spectral_norm(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]))
    return norms(jax.tree.map(lambda a, b: b - a, before, after)) / norms(before)
