"""Descent and flow of small networks by explicit steps in NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sweeps.reproduction.statements.paths import Start, chain

__all__ = ["Flow", "descend", "flow", "gradient", "speed"]


def gradient(start: Start, rows: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the half sum over some samples, with slope 0 at a kink: for W and for V."""
    X = start.X[rows]
    Z = X @ start.W
    hidden = np.maximum(Z, 0)
    error = hidden @ start.V - start.Y[rows]
    return X.T @ (error @ start.V.T * (Z > 0)), hidden.T @ error


def speed(start: Start) -> float:
    """An upper bound of the fastest rate at a start: ||H||^2 + ||X||^2 ||V||^2."""
    return float(np.linalg.norm(start.hidden, 2) ** 2 + (np.linalg.norm(start.X, 2) * np.linalg.norm(start.V, 2)) ** 2)


def descend(
    start: Start,
    learning_rate: float,
    num_steps: int,
    batch_size: int,
    rng: np.random.Generator,
    *,
    every: int = 1,
    keep_theta: bool = True,
) -> list[Start]:
    """SGD (14) with batches drawn without replacement: the iterates 0, `every`, 2 `every`, ... and the last.

    Args:
      start: theta_0 and the data.
      learning_rate: eta.
      num_steps: of them.
      batch_size: b.
      rng: draws the batches.
      every: how many steps lie between two iterates that are kept.
      keep_theta: False for (14) as printed, without theta_k on the right.
    """
    kept, now, N = [start], start, len(start.X)
    for step in range(1, num_steps + 1):
        rows = rng.permutation(N)[:batch_size] if batch_size < N else slice(None)
        of_W, of_V = gradient(now, rows)
        W, V = (now.W, now.V) if keep_theta else (0.0, 0.0)
        now = now._replace(W=W - learning_rate * of_W, V=V - learning_rate * of_V)
        if step % every == 0 or step == num_steps:
            kept.append(now)
    return kept


class Flow(NamedTuple):
    """The flow at its steps.

    Attributes:
      times: flow times.
      states: theta at them.
      loss: L.
      integral: of sqrt(L).
      moved: ||W(t) - W(0)||.
    """

    times: np.ndarray
    states: list[Start]
    loss: np.ndarray
    integral: np.ndarray
    moved: np.ndarray


def flow(start: Start, horizon: float, num_steps: int, *, trains_output: bool) -> Flow:
    """The flow by the explicit midpoint rule; patterns change within a step at first order."""
    step, states = horizon / num_steps, [start]
    output = 1.0 if trains_output else 0.0

    def moved(base: Start, at: Start, length: float) -> Start:
        of_W, of_V = gradient(at)
        return base._replace(W=base.W - length * of_W, V=base.V - length * output * of_V)

    for _ in range(num_steps):
        states.append(moved(states[-1], moved(states[-1], states[-1], step / 2), step))
    each: Callable[[Callable[[Start], float]], np.ndarray] = lambda f: np.array([f(state) for state in states])
    times, loss = step * np.arange(num_steps + 1), each(lambda state: state.loss)
    away = each(lambda state: float(np.linalg.norm(state.W - start.W)))
    return Flow(times, states, loss, chain(np.sqrt(loss), times), away)
