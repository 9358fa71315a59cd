"""The laws that data and initial weights are drawn from (Section 6, Assumptions 4.1 and G.1), in one namespace.

Every law takes a random key (but the fixed output weights), true sizes and, by keyword, padded ones, and returns a
matrix; the draw depends on the key and the true sizes alone, to the bit.

- X, N x d0: `sphere_rows`, `cube_rows`.
- Y, N x d2: `balanced_labels`, `random_sign_labels`, `gaussian_labels`.
- W0, d0 x d1: `normal_hidden`, `lecun_hidden`.
- V0, d1 x d2: `normal_output`, `lecun_output`, `uniform_output`, `balanced_sign_output`, `shuffled_sign_output`.

Those of X and Y are described in `relu_sgd.problem`, those of W0 and V0 in `relu_sgd.initialization`.
"""

from relu_sgd.initialization import (
    balanced_sign_output,
    lecun_hidden,
    lecun_output,
    normal_hidden,
    normal_output,
    shuffled_sign_output,
    uniform_output,
)
from relu_sgd.problem import balanced_labels, cube_rows, gaussian_labels, random_sign_labels, sphere_rows

__all__ = [
    "balanced_labels",
    "balanced_sign_output",
    "cube_rows",
    "gaussian_labels",
    "lecun_hidden",
    "lecun_output",
    "normal_hidden",
    "normal_output",
    "random_sign_labels",
    "shuffled_sign_output",
    "sphere_rows",
    "uniform_output",
]
