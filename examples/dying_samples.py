"""Which samples die: those on which no active neuron has an output weight of their label's sign at the start, with
orthogonal rows all of them, and of others the fewer the fewer inputs there are. See docs/examples.md.
"""

import jax
import jax.numpy as jnp
import optax

from examples.command_line import read
from relu_sgd import Params, Problem, descend, initialization, problem, relative_error_below
from sweeps import sweep

NUM_SAMPLES, NUM_STEPS = 100, 10_000
AXES = {"rows": ("orthogonal", "400", "200", "100", "50", "25"), "d1": (8, 12)}


def draw(key, rows, d1):
    """Orthogonal rows, or so many inputs; balanced labels and output weights."""
    keys = jax.random.split(key, 3)
    d0 = NUM_SAMPLES if rows == "orthogonal" else int(rows)
    X = problem.sphere_rows(keys[0], NUM_SAMPLES, d0)
    if rows == "orthogonal":
        X = jnp.linalg.qr(X)[0]
    start = Params(initialization.normal_hidden(keys[2], d0, d1), initialization.balanced_sign_output(d1))
    return start, Problem(X, problem.balanced_labels(keys[1], NUM_SAMPLES))


def train(key, rows, d1):
    start, data = draw(key, rows, d1)
    rules = dict(optimizer=optax.sgd(0.15, momentum=0.9), criterion=relative_error_below(2.5e-3), num_steps=NUM_STEPS)
    end = descend(start, data, trained_layers="hidden", **rules)
    active = data.X @ start.W > 0
    unsupported = ~(active & (data.Y * start.V.T > 0)).any(axis=1)
    dead = ~(data.X @ end.params.W > 0).any(axis=1)
    counts = {"dead_start": ~active.any(axis=1), "unsupported": unsupported, "dead": dead, "both": dead & unsupported}
    return {"success": end.status == 1, **{name: mask.sum() for name, mask in counts.items()}}


if __name__ == "__main__":
    asked = read(__doc__, seeds=100)
    found = sweep(train, axes=AXES, seeds=asked.seeds, out=asked.out)
    for rows in AXES["rows"]:
        for d1 in AXES["d1"]:
            cell = found.sel(rows=rows, d1=d1)
            names = ("dead_start", "unsupported", "dead", "both", "success")
            print(f"rows = {rows}, d1 = {d1}:", ", ".join(f"{name} {int(cell[name].sum())}" for name in names))
