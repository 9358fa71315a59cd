"""The differential inclusion by brute force: explicit steps along minus the gradient, in NumPy, sharing no code with
`relu_sgd`.

The starts are moved a little off the kinks, so every step takes the gradient itself, an element of the Clarke
subdifferential. As the steps shrink the polygons converge to a solution of the inclusion; where it slides they chatter
about the surface. Two step lengths and several displacements tell where the result can be trusted: where they disagree
the solution branches, or depends so much on its start that steps of this length do not resolve it.
"""

from typing import NamedTuple

import numpy as np

from support.degenerate import Case

# Of the start, relative to its size.
_DISPLACEMENT = 1e-9
_MOST = (12, 4, 5, 2)
NUM_STEPS = 2000


class Reference(NamedTuple):
    """What small steps say about a problem.

    Attributes:
      W, V: the final weights.
      uncertainty: the largest difference in any weight, between step lengths and between displacements.
      branch_gap: the largest one between displacements alone, of steps of the same, shorter length.
      path: the length of the path.
    """

    W: np.ndarray
    V: np.ndarray
    uncertainty: float
    branch_gap: float
    path: float


def padded(cases: list[Case]) -> list[np.ndarray]:
    """W, V, X and Y of many problems, each padded with zeros to the largest size and stacked."""
    N, d0, d1, d2 = _MOST
    stacks = []
    for name, shape in (("W", (d0, d1)), ("V", (d1, d2)), ("X", (N, d0)), ("Y", (N, d2))):
        stack = np.zeros((len(cases), *shape))
        for index, case in enumerate(cases):
            array = getattr(case, name)
            stack[index, : array.shape[0], : array.shape[1]] = array
        stacks.append(stack)
    return stacks


def euler(W, V, X, Y, both, final_time, num_steps: int):
    """Explicit steps of a batch of problems; both and final_time have one entry per problem. Returns W, V and path
    lengths.
    """
    W, V = W.copy(), V.copy()
    h = (final_time / num_steps)[:, None, None]
    h_V = h * both[:, None, None]
    X_transposed = np.ascontiguousarray(np.swapaxes(X, 1, 2))
    path = np.zeros(len(W))
    for _ in range(num_steps):
        Z = X @ W
        active = Z > 0
        H = Z * active
        E = Y - H @ V
        dW = X_transposed @ (active * (E @ np.swapaxes(V, 1, 2)))
        dV = np.swapaxes(H, 1, 2) @ E
        dW *= h
        dV *= h_V
        W += dW
        V += dV
        squared_steps = np.einsum("bkj,bkj->b", dW, dW) + np.einsum("bja,bja->b", dV, dV)
        path += np.sqrt(squared_steps)
    return W, V, path


def solve(
    cases: list[Case], num_steps: int = NUM_STEPS, num_displacements: int = 3, batch: int = 256
) -> list[Reference]:
    """References for many problems; the longer steps number `num_steps`, the shorter ones twice as many."""
    return [
        reference
        for start in range(0, len(cases), batch)
        for reference in _solve(cases[start : start + batch], num_steps, num_displacements)
    ]


def _solve(cases: list[Case], num_steps: int, num_displacements: int) -> list[Reference]:
    W, V, X, Y = padded(cases)
    both = np.array([case.trained_layers == "both" for case in cases], float)
    final_time = np.array([case.final_time for case in cases])
    rng = np.random.default_rng(0)
    # Neurons without an output weight that are active nowhere rest there, and any displacement would grow
    # exponentially.
    stuck = ~V.any(axis=2) & ~(X @ W > 1e-12).any(axis=1)
    sizes = np.abs(W).max(axis=(1, 2), keepdims=True) + 1e-3
    moves = _DISPLACEMENT * sizes * rng.normal(size=(num_displacements, *W.shape)) * ~stuck[:, None, :]
    moves[1] = -moves[0]  # Both sides of every kink.
    displaced = W + moves
    ends = []
    for steps in (num_steps, 2 * num_steps):
        for start in displaced:
            end_W, end_V, path = euler(start, V, X, Y, both, final_time, steps)
            ends.append(np.concatenate([end_W.reshape(len(cases), -1), end_V.reshape(len(cases), -1)], axis=1))
    coarse, fine = np.array(ends[:num_displacements]), np.array(ends[num_displacements:])
    spread = lambda values: np.nan_to_num(np.ptp(values, axis=0).max(axis=1), nan=np.inf)
    gaps, whole = spread(fine), spread(np.concatenate([coarse, fine]))
    return [
        Reference(
            fine[0, index, : W[0].size].reshape(W[0].shape)[: case.W.shape[0], : case.W.shape[1]],
            fine[0, index, W[0].size :].reshape(V[0].shape)[: case.V.shape[0], : case.V.shape[1]],
            float(whole[index]),
            float(gaps[index]),
            float(path[index]),
        )
        for index, case in enumerate(cases)
    ]
