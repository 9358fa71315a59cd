"""Dana, Bach and Pillaud-Vivien 2025: when p neurons fit n points in R^d by gradient descent. See docs/examples.md."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from examples.command_line import read
from relu_sgd import Params, Problem, descend, problem
from sweeps import sweep

PUBLISHED = {"20 30 60": (36, 40), "20 30 100": (5, 40), "30 50 220": (9, 25)}  # d p n: successes, and runs.


def draw(key, d, p, n):
    """Norms of x and |y| uniform in [1, 2]; W by torch's Linear law; |a| = ||w|| + Exp(1)."""
    keys = jax.random.split(key, 7)
    norms, labels = (jax.random.uniform(part, (n, 1), minval=1, maxval=2) for part in keys[:2])
    label_signs, output_signs = (jax.random.rademacher(keys[i], (m, 1), float) for i, m in ((2, n), (3, p)))
    X, Y = norms * problem.sphere_rows(keys[4], n, d), labels * label_signs
    W = jax.random.uniform(keys[5], (d, p), minval=-1, maxval=1) / np.sqrt(d)
    a = output_signs * (jnp.linalg.norm(W, axis=0)[:, None] + jax.random.exponential(keys[6], (p, 1)))
    # f = 1/p sum of a relu(w . x) is this project's network with both layers over sqrt(p), and so is their step.
    return Params(W / np.sqrt(p), a / np.sqrt(p)), Problem(X, Y)


def train(key, d_p_n):
    d, p, n = map(int, d_p_n.split())
    success = lambda losses, problem: 2 * jnp.sum(losses) < 1  # The losses are half the squared residuals.
    rules = dict(optimizer=optax.sgd(1.0), normalization="sample_mean", criterion=success)
    num_steps = int(1.5 * np.sqrt(n * p) * np.log(n * p) / 4 + 1)
    end = descend(*draw(key, d, p, n), num_steps=num_steps, **rules)
    return {"status": end.status, "steps": end.steps, "squared_residuals": 2 * end.loss}


if __name__ == "__main__":
    asked = read(__doc__, seeds=40)
    found = sweep(train, axes={"d_p_n": tuple(PUBLISHED)}, seeds=asked.seeds, out=asked.out)
    for cell, (successes, of) in PUBLISHED.items():
        status = found["status"].sel(d_p_n=cell)[:of]
        count, made = int((status == 1).sum()), len(status)
        p = stats.fisher_exact([[count, made - count], [successes, of - successes]]).pvalue
        print(f"d, p, n = {cell}: {count} of {made} succeed; published {successes} of {of}; Fisher's p = {p:.2f}")
