"""A start, or any theta: its arrays checked and in float64, for those who certify it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from relu_sgd._checks import check_fields
from relu_sgd.network import Params
from relu_sgd.problem import Problem

__all__ = ["StartArrays", "start_arrays"]


class StartArrays(NamedTuple):
    """theta and the training set, in float64.

    Attributes:
      W: d0 x d1. V: d1 x d2. X: N x d0. Y: N x d2.
    """

    W: Float[np.ndarray, "d0 d1"]
    V: Float[np.ndarray, "d1 d2"]
    X: Float[np.ndarray, "N d0"]
    Y: Float[np.ndarray, "N d2"]


def start_arrays(params: Params, problem: Problem) -> StartArrays:
    """The arrays of theta and the training set.

    Raises:
      TypeError: `params` or `problem` is of another kind.
      ValueError: the shapes do not fit, an array is empty, or an entry is not finite.
    """
    check_fields("params", params, Params)
    check_fields("problem", problem, Problem)
    arrays = StartArrays(*(np.asarray(array, float) for array in (*params, *problem)))
    W, V, X, Y = arrays
    if not (
        all(array.ndim == 2 and array.size for array in arrays)
        and (len(X), X.shape[1], W.shape[1], V.shape[1]) == (len(Y), W.shape[0], V.shape[0], Y.shape[1])
    ):
        raise ValueError(
            f"need X: N x d0, Y: N x d2, W: d0 x d1, V: d1 x d2, none of them empty; "
            f"got X: {X.shape}, Y: {Y.shape}, W: {W.shape}, V: {V.shape}"
        )
    for name, array in arrays._asdict().items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of shape {array.shape} has entries that are not finite")
    return arrays
