"""Matrix products in the highest precision, and Gram matrices of Jacobians without the Jacobians."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

__all__ = ["gram_of_factor", "hidden_jacobian_gram", "matmul", "norm_from_gram", "outer_gram"]


def matmul(a: ArrayLike, b: ArrayLike) -> Array:
    """The product a b, in the highest precision that the backend has."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def outer_gram(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows rows"]:
    """A A^T, in three quarters of the operations of a general product: the two blocks off the diagonal are one."""
    half = matrix.shape[0] // 2
    first, second = matrix[:half], matrix[half:]
    across = matmul(first, second.T)
    return jnp.block([[matmul(first, first.T), across], [across.T, matmul(second, second.T)]])


def norm_from_gram(gram: Float[Array, "rows rows"]) -> Float[Array, ""]:
    """||J||, the largest singular value, from J J^T."""
    # The singular values of a symmetric matrix are the absolute values of its eigenvalues, and JAX finds them without
    # the vectors.
    return jnp.sqrt(jnp.linalg.svdvals(gram)[0])


def hidden_jacobian_gram(
    slopes: Float[Array, "N d1"], V: Float[Array, "d1 d2"], X: Float[Array, "N d0"]
) -> Float[Array, "rows rows"]:
    """J J^T for the Jacobian J of Yhat with respect to W, from the slopes of relu; rows as for
    `network.jacobian_gram`.
    """
    # Row (i, a) of the factor is M_i: times V_:a, so that its Gram matrix is the sum over neurons.
    return gram_of_factor(slopes[:, None, :] * V.T[None], X)


def gram_of_factor(factor: Float[Array, "N d2 d1"], X: Float[Array, "N d0"]) -> Float[Array, "rows rows"]:
    """J J^T for J with rows kron(X_i, factor_ia): the Gram matrix of the factor times that of X, entry by entry."""
    num_samples, d2, _ = factor.shape
    rows = factor.reshape(num_samples * d2, -1)
    return outer_gram(rows) * jnp.kron(matmul(X, X.T), jnp.ones((d2, d2), factor.dtype))
