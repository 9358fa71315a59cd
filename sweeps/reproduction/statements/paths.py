"""Random problems, and solutions of the inclusion (3) on them with what the statements speak about.

Values are computed in NumPy from X, Y, W and V, and not by the functions whose bounds they are compared with.
"""

import math
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Array
from scipy.integrate import cumulative_simpson

from relu_sgd.inclusion import event_driven
from relu_sgd.network import Params
from relu_sgd.problem import Problem
from relu_sgd.theory.certificate import Certificate, certificate

__all__ = ["Path", "Start", "chain", "follow", "random_start", "scalar_start", "unit_rows"]


class Start(NamedTuple):
    """A network and its data.

    Attributes:
      X, Y: N x d0 and N x d2.
      W, V: d0 x d1 and d1 x d2.
    """

    X: np.ndarray
    Y: np.ndarray
    W: np.ndarray
    V: np.ndarray

    @property
    def hidden(self) -> np.ndarray:
        """H, N x d1."""
        return np.maximum(self.X @ self.W, 0)

    @property
    def loss(self) -> float:
        """L."""
        return 0.5 * float(np.sum((self.Y - self.hidden @ self.V) ** 2))

    @property
    def alpha(self) -> float:
        """sigma_min(H^T)."""
        hidden = self.hidden
        return float(np.linalg.svd(hidden.T, compute_uv=False)[-1]) if hidden.shape[1] >= len(hidden) else 0.0

    @property
    def params(self) -> Params:
        """Theta."""
        return Params(cast(Array, self.W), cast(Array, self.V))

    @property
    def problem(self) -> Problem:
        """The data."""
        return Problem(cast(Array, self.X), cast(Array, self.Y))

    @property
    def certificate(self) -> Certificate:
        """The constants of Section 3 at this start."""
        return certificate(self.params, self.problem)

    def with_error(self, error: np.ndarray) -> "Start":
        """The same network with labels that leave this error Y - Yhat."""
        return self._replace(Y=self.hidden @ self.V + error)


class Path(NamedTuple):
    """A solution of the inclusion at increasing times from 0.

    Attributes:
      start: theta(0) and the data.
      times: flow times.
      W, V: times x d0 x d1, times x d1 x d2.
      loss, alpha: L and alpha_0 at the times.
      integral: of sqrt(L) up to every time, by Simpson's rule.
      hidden_moved, output_moved, moved: ||W(t) - W(0)||, ||V(t) - V(0)||, ||theta(t) - theta(0)||.
      event_times: of the events, in order.
    """

    start: Start
    times: np.ndarray
    W: np.ndarray
    V: np.ndarray
    loss: np.ndarray
    alpha: np.ndarray
    integral: np.ndarray
    hidden_moved: np.ndarray
    output_moved: np.ndarray
    moved: np.ndarray
    event_times: tuple[float, ...]

    def at(self, index: int) -> Start:
        """Theta at a time, with the data."""
        return self.start._replace(W=self.W[index], V=self.V[index])


def unit_rows(rng: np.random.Generator, num_samples: int, d0: int) -> np.ndarray:
    """Independent rows from the unit sphere."""
    X = rng.normal(size=(num_samples, d0))
    return X / np.linalg.norm(X, axis=1)[:, None]


def random_start(rng: np.random.Generator) -> Start:
    """A small network with random weights, data and labels of random scales, and d1 >= N."""
    N, d0, d2 = int(rng.integers(2, 5)), int(rng.integers(2, 4)), int(rng.integers(1, 3))
    d1 = N + int(rng.integers(0, 5))
    X = unit_rows(rng, N, d0) * rng.uniform(0.7, 1.4)
    W, V = rng.normal(size=(d0, d1)), rng.uniform(0.2, 1.5) * rng.normal(size=(d1, d2)) / math.sqrt(d1)
    return Start(X, rng.uniform(0.3, 2) * rng.normal(size=(N, d2)), W, V)


def scalar_start(w: float, v: float, y: float) -> Start:
    """One sample x = 1 and one neuron: everything is a number."""
    return Start(np.ones((1, 1)), np.array([[y]]), np.array([[w]]), np.array([[v]]))


def follow(start: Start, horizon: float | None = None, num_times: int = 24, times: np.ndarray | None = None) -> Path:
    """The solution with every event located, as far as it is unique.

    Args:
      start: theta(0) and the data.
      horizon: the last time; a few times that in which the fastest direction falls, when None.
      num_times: of how many intervals of equal length.
      times: instead of both, increasing, and 0 is added before them.
    """
    if horizon is None:
        speed = np.linalg.norm(start.hidden, 2) ** 2 + (np.linalg.norm(start.X, 2) * np.linalg.norm(start.V)) ** 2
        horizon = float(4 / speed)
    wanted = np.linspace(0, horizon, num_times + 1) if times is None else np.concatenate([[0.0], times])
    solution = event_driven.solve(start.params, start.problem, wanted)
    W, V = np.asarray(solution.params.W), np.asarray(solution.params.V)
    along = [start._replace(W=w, V=v) for w, v in zip(W, V, strict=True)]
    loss = np.array([one.loss for one in along])
    hidden_moved, output_moved = np.linalg.norm(W - W[0], axis=(1, 2)), np.linalg.norm(V - V[0], axis=(1, 2))
    return Path(
        start=start,
        times=solution.times,
        W=W,
        V=V,
        loss=loss,
        alpha=np.array([one.alpha for one in along]),
        integral=chain(np.sqrt(loss), solution.times),
        hidden_moved=hidden_moved,
        output_moved=output_moved,
        moved=np.hypot(hidden_moved, output_moved),
        event_times=tuple(event.time for event in solution.events),
    )


def chain(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The integral of values up to every time, by Simpson's rule."""
    return np.asarray(cumulative_simpson(values, x=times, initial=0.0))
