"""Orthogonal rows, hidden layer trained, d2 = 1: where the gradient flow of L(., V) ends, exactly.

With orthogonal rows the preactivations z_ij = <x_i, W_j> of different samples move without each other: dz_ij / dt =
||x_i||^2 (y_i - f_i) V_j where z_ij > 0, and 0 below. The residual r = y_i - f_i obeys dr / dt = -r ||x_i||^2 times the
sum of V_j^2 over the active neurons, so it never changes its sign. Let y_i > 0. If no active neuron has V_j > 0, then
f_i <= 0, r >= y_i, and every active neuron with V_j < 0 is pushed to 0 in finite time, where it stays: f_i ends at 0.
If one has, there is one for ever: while r > 0 they grow, and while r < 0 f_i > y_i > 0 needs one; so r vanishes
exponentially. With y_i = 0 f_i vanishes in any case, and y_i < 0 is the same with -V.

So sample i ends fitted where an active neuron has an output weight of its label's sign, and with prediction 0 where
none has. Of balanced signs half of the starts succeed from d1 = 2 log2(N / log 2) on, twice the width from which half
of them have no dead sample. It is no statement of the paper's; with both layers trained and small weights, see E.
Boursier, L. Pillaud-Vivien and N. Flammarion, Gradient flow dynamics of shallow ReLU networks for square loss and
orthogonal inputs, NeurIPS 2022.
"""

import numpy as np
from jaxtyping import Bool, Float

from relu_sgd._checks import finite_arrays

__all__ = ["flow_limit_loss", "is_unsupported", "success_probability"]

# Inner products of rows below this times their norms are taken for rounding, that of float32 too.
_ORTHOGONAL = 1e-6


def is_unsupported(
    X: Float[np.ndarray, "N d0"], y: Float[np.ndarray, " N"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"]
) -> Bool[np.ndarray, " N"]:
    """Which samples have a label other than 0, and no active neuron whose output weight has its sign.

    Args:
      X: rows of any kind, in float64.
      y: labels.
      W, v: the network.

    Raises:
      ValueError: shapes do not fit, or an entry is not finite.
    """
    X, y, W, v = finite_arrays(X=X, y=y, W=W, v=v)
    if X.ndim != 2 or W.ndim != 2 or (y.shape, v.shape) != (X.shape[:1], W.shape[1:]) or X.shape[1] != len(W):
        raise ValueError(f"need X: N x d0, y: N, W: d0 x d1, v: d1; got {X.shape}, {y.shape}, {W.shape}, {v.shape}")
    helps = (X @ W > 0) & (np.outer(np.sign(y), np.sign(v)) > 0)
    return (y != 0) & ~helps.any(axis=1)


def flow_limit_loss(
    X: Float[np.ndarray, "N d0"], y: Float[np.ndarray, " N"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"]
) -> float:
    """L at the end of the gradient flow of L(., v) from W: 1/2 the sum of y_i^2 over the samples that `is_unsupported`
    names.

    Args:
      X: orthogonal rows, none of them 0.
      y: labels.
      W, v: the start; no preactivation is 0.

    Raises:
      ValueError: shapes do not fit, an entry is not finite, rows are not orthogonal, or a preactivation is 0.
    """
    unsupported = is_unsupported(X, y, W, v)
    X, y, W, v = finite_arrays(X=X, y=y, W=W, v=v)
    norms = np.linalg.norm(X, axis=1)
    if np.any(np.abs(X @ X.T - np.diag(norms**2)) > _ORTHOGONAL * np.outer(norms, norms)) or not norms.all():
        raise ValueError("the rows of X must be orthogonal, and none of them 0")
    if not np.all(X @ W):
        raise ValueError("a preactivation is 0, so the flow is not unique")
    return 0.5 * float(np.sum(y[unsupported] ** 2))


def success_probability(y: Float[np.ndarray, " N"], v: Float[np.ndarray, " d1"]) -> float:
    """The probability that the flow of orthogonal rows ends at zero loss, from W with independent N(0, s^2) entries:
    the product over samples of 1 - 2^(-m), m the number of output weights with the sign of y_i.

    Balanced signs: (1 - 2^(-d1 / 2))^N.

    Args:
      y: labels.
      v: output weights.

    Raises:
      ValueError: an entry is not finite, or an argument is no vector.
    """
    y, v = finite_arrays(y=y, v=v)
    if y.ndim != 1 or v.ndim != 1:
        raise ValueError(f"need vectors y and v, got {y.shape} and {v.shape}")
    fitting = np.array([np.sum(v * sign > 0) for sign in np.sign(y[y != 0])], float)
    return float(np.exp(np.sum(np.log1p(-(2.0**-fitting))))) if np.all(fitting > 0) else 0.0
