"""Section 3 along a trajectory: every bound minus the value it bounds, for descent or a solution of the inclusion."""

import numpy as np
from jaxtyping import Float
from scipy.integrate import cumulative_trapezoid

from relu_sgd.network import Params
from relu_sgd.problem import Problem
from relu_sgd.theory.certificate import certificate, drift_bounds

__all__ = ["slack"]


def _length(*paths: Float[np.ndarray, "times _ _"]) -> Float[np.ndarray, " times"]:
    """The length of the chords of a path up to every time; of several matrices together."""
    squares = sum(np.sum(np.diff(path, axis=0) ** 2, axis=(1, 2)) for path in paths)
    return np.concatenate([[0.0], np.cumsum(np.sqrt(squares))])


def slack(
    path: Params, problem: Problem, times: Float[np.ndarray, " times"], *, chunk: int = 4096
) -> dict[str, Float[np.ndarray, " times"]]:
    """Bound minus value along a trajectory on which both layers move; not negative for solutions of the inclusion (3).

    The integrals of sqrt(L) and alpha_0^2 are taken by trapezoids over the given times, so that a small negative value
    says that they are too far apart. Descent obeys the bounds up to its step size: iterate k is at time k eta.

    Args:
      path: theta at the times, stacked along a leading axis; the first is theta(0).
      problem: the training set.
      times: increasing from 0, in flow time of L = 1/2 ||Y - Yhat||^2.
      chunk: neurons at a time.

    Returns:
      By statement: "(4)", ||X|| ||W(t) - W(0)|| - |alpha_0(t) - alpha_0(0)|. "Proposition 2.1", L(0) exp(-2 integral
      of alpha_0^2) - L(t). "(5)" and "(6)", Lemma 3.1 for theta and for ||X|| ||W(t) - W(0)||; "(6), sharp" with sinh
      and cosh. "(9)", the right side of the differential inequality minus sqrt(L(t)). Where (10) certifies the start,
      also "(12)", "(13)" and "(13), sharp", which are promised only there. Where `Certificate.path` holds (the
      sharp condition implies it), "path, alpha", "path, loss", "path, hidden" and "path, length": of alpha_0, of L,
      and of the lengths of the chords of W's and theta's paths.

    Raises:
      ValueError: the times do not increase from 0, or shapes do not fit.
    """
    times = np.asarray(times, float)
    if times.ndim != 1 or not len(times) or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times must increase from 0, got {times[:3]}...")
    W, V = np.asarray(path.W, float), np.asarray(path.V, float)
    if W.ndim != 3 or V.ndim != 3 or len(W) != len(times) or len(V) != len(times):
        raise ValueError(f"need {len(times)} x d0 x d1 and {len(times)} x d1 x d2, got {W.shape} and {V.shape}")
    at = [certificate(Params(*pair), problem, chunk=chunk) for pair in zip(W, V, strict=True)]
    start, loss, alpha = at[0], np.array([c.a**2 for c in at]), np.array([c.alpha for c in at])
    W_moved = np.linalg.norm(W - W[0], axis=(1, 2))
    moved = np.hypot(W_moved, np.linalg.norm(V - V[0], axis=(1, 2)))
    integral = cumulative_trapezoid(np.sqrt(loss), times, initial=0)
    bounds = drift_bounds(start, integral)
    growth = (start.c1 * integral + start.c2 * integral**2) * np.exp(np.minimum(start.c * integral**2, 600))
    envelope = start.a * np.exp(np.minimum(start.alpha * times * growth - start.alpha**2 * times, 600))
    slacks = {
        "(4)": start.operator_norm * W_moved - np.abs(alpha - alpha[0]),
        "Proposition 2.1": start.a**2 * np.exp(-2 * cumulative_trapezoid(alpha**2, times, initial=0)) - loss,
        "(5)": bounds["theta"] - moved,
        "(6)": start.operator_norm * (bounds["hidden"] - W_moved),
        "(6), sharp": start.operator_norm * (bounds["hidden_sharp"] - W_moved),
        "(9)": envelope - np.sqrt(loss),
    }
    if start.is_certified:
        slacks |= {
            "(12)": start.loss_bound(times) - loss,
            "(13)": start.drift - moved,
            "(13), sharp": start.sharp_drift - moved,
        }
    if start.path.holds:
        slacks |= {
            "path, alpha": alpha - start.path.least_alpha,
            "path, loss": start.path.loss_bound(times) - loss,
            "path, hidden": start.path.hidden_path - _length(W),
            "path, length": start.path.path - _length(W, V),
        }
    return slacks
