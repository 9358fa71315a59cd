"""Safran and Shamir 2018: k ReLU neurons learn k orthogonal ones, on the population loss. See docs/examples.md."""

import jax
import jax.numpy as jnp
import optax
from scipy import stats

from examples.command_line import read
from relu_sgd import Evaluation, descend, gradient_norm_below
from sweeps import sweep

PUBLISHED = {7: 27, 8: 57, 10: 160}  # Of 500 runs, how many end elsewhere than at a global minimum.


def pull(w, v):  # The gradient by w of E relu(w . x) relu(v . x), x ~ N(0, I); its product with w is the kernel.
    norm = lambda u: jnp.linalg.norm(u, axis=-1, keepdims=True)
    angle = 2 * jnp.arctan2(norm(w / norm(w) - v / norm(v)), norm(w / norm(w) + v / norm(v)))
    return (norm(v) / norm(w) * jnp.sin(angle) * w + (jnp.pi - angle) * v) / (2 * jnp.pi)


def evaluate(W, step=None):  # 1/2 E (sum of relu(w_j . x) - sum of relu(e_j . x))^2, and its gradient.
    student, teacher = (pull(W[:, None], V[None]).sum(axis=1) for V in (W, jnp.eye(len(W))))
    loss = jnp.sum(W * (student / 2 - teacher)) + len(W) / 4 + len(W) * (len(W) - 1) / (4 * jnp.pi)
    return Evaluation(loss, student - teacher, loss[None])


def train(key, k):
    rules = dict(optimizer=optax.sgd(5 / k), stopping_rule=gradient_norm_below(1e-12), num_steps=1_000_000)
    start, loss = jax.random.normal(key, (k, k)) / k**0.5, lambda W: evaluate(W).objective
    end = descend(start, objective=loss, kernel=lambda *_: evaluate, **rules)
    is_global = jnp.linalg.norm(end.params.T @ end.params - jnp.eye(k)) < 1e-6
    return {"not_global": ~is_global, "steps": end.steps, "loss": end.loss}


if __name__ == "__main__":
    asked = read(__doc__, seeds=500)
    runs = dict(seeds=asked.seeds, out=asked.out, precision="float64", lanes=50)
    for k, count in sweep(train, axes={"k": tuple(PUBLISHED)}, **runs)["not_global"].sum("seed").to_series().items():
        p = stats.fisher_exact([[count, runs["seeds"] - count], [PUBLISHED[k], 500 - PUBLISHED[k]]]).pvalue
        print(f"k = {k}: {count} of {runs['seeds']} not global, {PUBLISHED[k]} of 500 published; Fisher's p = {p:.2f}")
