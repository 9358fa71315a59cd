"""Geiger et al. 2018: how many random labels P a deep ReLU network of N parameters fits. See docs/examples.md."""

import jax
import jax.numpy as jnp
import optax

from examples.command_line import read
from relu_sgd import approximators, descend, problem
from sweeps import sweep

WIDTH = 16
NETWORK = approximators.deep((WIDTH, WIDTH), loss="quadratic_hinge", use_bias=True)
NUM_PARAMETERS = WIDTH * (WIDTH + 1) * 2 + WIDTH + 1
RATIOS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)


def train(key, ratio, num_steps):
    """One run: points on the sphere of radius sqrt(d), labels +-1, Adam from 3e-3 down to 0; until the loss is 0."""
    rows, labels, weights = jax.random.split(key, 3)
    num_samples = round(ratio * NUM_PARAMETERS)
    data = problem.Problem(
        problem.sphere_rows(rows, num_samples, WIDTH, WIDTH**0.5), problem.random_sign_labels(labels, num_samples)
    )
    end = descend(
        NETWORK.init(weights, data),
        data,
        losses=NETWORK,
        optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)),
        normalization="sample_mean",
        criterion=lambda losses, data: jnp.sum(losses) == 0,
        num_steps=num_steps,
    )
    unsatisfied = jnp.sum(NETWORK.sample_losses(data)(end.params) > 0)
    return {"status": end.status, "steps": end.steps, "loss": end.loss / num_samples, "unsatisfied": unsatisfied}


if __name__ == "__main__":
    asked = read(__doc__, seeds=12, steps=30_000)
    axes = {"ratio": RATIOS, "num_steps": (asked.steps,)}
    found = sweep(train, axes=axes, seeds=asked.seeds, out=asked.out, lanes=1)
    for ratio, count in (found["status"] == 1).sum("seed").squeeze("num_steps").to_series().items():
        print(f"P / N = {ratio}: {count} of {asked.seeds} at zero loss")
