"""A small problem with a start, as NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from relu_sgd import Params, Problem


def draw(seed=0, num_samples=20, d0=5, d1=8, d2=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num_samples, d0))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    Y = rng.choice([-1.0, 1.0], size=(num_samples, d2))
    W = rng.normal(size=(d0, d1))
    V = rng.normal(size=(d1, d2)) / np.sqrt(d1)
    return W, V, X, Y


def arrays(*numbers, kind=np.float64):
    """What `draw` returns as JAX's arrays of a precision: the problem and theta_0."""
    W, V, X, Y = (jnp.asarray(array, kind) for array in numbers)
    return Problem(X, Y), Params(W, V)


def advanced(descent, problem, params, *steps):
    """The state of a descent after it was told to advance to each of the steps."""
    state = descent.init(problem, params)
    for step in steps:
        state = jax.jit(descent.advance_to)(state, step)
    return state
