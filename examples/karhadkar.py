"""Karhadkar, Murray, Tseran and Montufar 2023: where the Jacobian of a ReLU network has full rank at random weights,
beside where descent from the same weights succeeds. See docs/examples.md.
"""

import jax
import jax.numpy as jnp
import optax

from examples.command_line import read
from relu_sgd import Params, Problem, descend, initialization, jacobian_gram, problem, relative_error_below
from sweeps import sweep

NUM_SAMPLES, TRAINED = 60, "hidden"
AXES = {"d0": (4, 8, 16, 30), "d1": (4, 6, 8, 12, 16, 24, 32, 48)}


def spectrum(params, data):
    """Whether J, N x d0 d1, has rank N, up to rounding; and the largest eigenvalue of J J^T."""
    values = jnp.linalg.eigvalsh(jacobian_gram(params, data, trained_layers=TRAINED))
    return values[0] > NUM_SAMPLES * jnp.finfo(values.dtype).eps * values[-1], values[-1]


def train(key, d0, d1):
    rows, labels, weights = jax.random.split(key, 3)
    X, Y = problem.sphere_rows(rows, NUM_SAMPLES, d0), problem.balanced_labels(labels, NUM_SAMPLES)
    data = Problem(X, Y)
    start = Params(initialization.normal_hidden(weights, d0, d1), initialization.balanced_sign_output(d1))
    full_at_start, largest = spectrum(start, data)
    # Heavy ball is stable up to 3.8 over the largest eigenvalue: a rate that suits every width.
    rules = dict(optimizer=optax.sgd(1 / largest, momentum=0.9), trained_layers=TRAINED, num_steps=10_000)
    end = descend(start, data, criterion=relative_error_below(2.5e-3), **rules)
    return {"status": end.status, "full_rank_start": full_at_start, "full_rank_end": spectrum(end.params, data)[0]}


if __name__ == "__main__":
    asked = read(__doc__, seeds=20)
    runs = dict(seeds=asked.seeds, out=asked.out, precision="float64", lanes=1)
    found = sweep(train, axes=AXES, **runs)
    found["success"] = found["status"] == 1
    for d0 in AXES["d0"]:
        for name in ("full_rank_start", "full_rank_end", "success"):
            counts = found[name].sel(d0=d0).sum("seed").values
            print(f"d0 = {d0}, {name}, of {runs['seeds']} at d1 = {AXES['d1']}:", *counts)
