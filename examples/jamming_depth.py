"""Geiger et al. 2018, Figure 1B: P / N at which a ReLU network with 2 or 3 hidden layers jams, with the data and
weights of their code. See docs/examples.md.
"""

import jax
import jax.numpy as jnp
import optax

from examples.command_line import read
from relu_sgd import approximators, descend, problem
from sweeps import sweep

WIDTH = 10
AXES = {"hidden_layers": (2, 3), "ratio": (2.0, 2.5, 3.0)}


def train(key, hidden_layers, ratio, num_steps):
    """One run: centered rows of norm sqrt(d), as many labels +1 as -1, orthogonal weights, until the loss is 0."""
    laws = dict(loss="quadratic_hinge", use_bias=True, initializer=jax.nn.initializers.orthogonal())
    network = approximators.deep((WIDTH,) * hidden_layers, **laws)
    # N is the number of parameters less one for every neuron, whose scale its neighbours can undo.
    num_samples = 2 * round(ratio * (hidden_layers * WIDTH**2 + WIDTH) / 2)
    rows, weights = jax.random.split(key)
    X = jax.random.normal(rows, (num_samples, WIDTH))
    X = X - X.mean(axis=0)
    X = WIDTH**0.5 * X / jnp.linalg.norm(X, axis=1, keepdims=True)
    data = problem.Problem(X, jnp.where(jnp.arange(num_samples) % 2, 1.0, -1.0)[:, None])
    rules = dict(optimizer=optax.adam(optax.cosine_decay_schedule(3e-3, num_steps)), normalization="sample_mean")
    zero = lambda losses, data: jnp.sum(losses) == 0
    end = descend(network.init(weights, data), data, losses=network, criterion=zero, num_steps=num_steps, **rules)
    unsatisfied = jnp.sum(network.sample_losses(data)(end.params) > 0)
    return {"status": end.status, "steps": end.steps, "unsatisfied": unsatisfied, "few": unsatisfied <= 4}


if __name__ == "__main__":
    asked = read(__doc__, seeds=12, steps=30_000)
    axes = {**AXES, "num_steps": (asked.steps,)}
    found = sweep(train, axes=axes, seeds=asked.seeds, out=asked.out, lanes=1)
    counts = {"zero loss": found["status"] == 1, "at most 4 samples not satisfied": found["few"]}
    for name, made in counts.items():
        for (layers, ratio), count in made.squeeze("num_steps").sum("seed").to_series().items():
            print(f"{layers} hidden layers, P / N = {ratio}: {count} of {asked.seeds} at {name}")
