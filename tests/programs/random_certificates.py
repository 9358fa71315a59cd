"""Certificates of networks after descent, decided again by scripts/verify_proofs.

`python tests/programs/random_certificates.py 200` trains networks of 4, 8 and 16 inputs and neurons on 200 samples by
the paper's protocol, hidden layer and both, in float32; decides where they end until so many proofs are there; writes
those as certificates, and lets the checker decide them again. It prints both, and the certificates that the checker
refuses.
"""

import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from relu_sgd import Params, Problem, descend, proofs, relative_error_below
from relu_sgd.initialization import balanced_sign_output, normal_hidden
from relu_sgd.problem import balanced_labels, sphere_rows


def end(seed, d0, d1, trained_layers):
    data, labels, weights = jax.random.split(jax.random.key(seed), 3)
    problem = Problem(sphere_rows(data, 200, d0), balanced_labels(labels, 200))
    start = Params(normal_hidden(weights, d0, d1), balanced_sign_output(d1))
    criterion = relative_error_below(2.5e-3)
    run = descend(start, problem, num_steps=50_000, trained_layers=trained_layers, criterion=criterion)
    return run.params, problem, run.status


def main(count):
    cells = list(itertools.product((4, 8, 16), (4, 8, 16), ("hidden", "both")))
    per_cell = -(-3 * count // (2 * len(cells)))
    tried, kept, verdicts = 0, 0, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (d0, d1, layers) in enumerate(cells, 1):
            runs = jax.jit(jax.vmap(lambda seed: end(seed, d0, d1, layers)))(jnp.arange(per_cell))  # noqa: B023
            most = count * number // len(cells)  # Every cell has its share.
            params, problems, statuses = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), runs)
            for seed in np.flatnonzero(statuses != 3):
                pick = lambda leaf: leaf[seed]  # noqa: B023
                problem = jax.tree.map(pick, problems)
                last = jax.tree.map(pick, params)
                proof = proofs.decide(last, problem, trained_layers=layers)
                key = layers, proof.verdict.name
                tried, verdicts[key] = tried + 1, verdicts.get(key, 0) + 1
                if proof.verdict != proofs.Verdict.UNDECIDED and kept < most:
                    kept += 1
                    proofs.save_certificate(Path(folder) / f"{layers}_{d0}_{d1}_{seed}.npz", proof, problem, last)
        print(f"{tried} networks decided: {verdicts}", flush=True)
        checker = Path(__file__).parents[2] / "scripts" / "verify_proofs"
        lines = subprocess.run([sys.executable, checker, folder], capture_output=True, text=True).stdout.splitlines()
    print("\n".join(line for line in lines[:-1] if "refused" in line), lines[-1], sep="\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
