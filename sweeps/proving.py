"""What theorems say of the end of every run of a map (`python -m sweeps.convergence_map --prove`; docs/proofs.md,
docs/proved_maps.md).

A run is decided where it ended: in float64, whatever it was trained in, so that what is proved is about the very
numbers that training used (a float32 number is a float64 number). The certificate says that a minimum is nearby; that
descent would go there is not claimed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from relu_sgd import Params, Problem, Status, proofs
from relu_sgd.network import TrainedLayers
from sweeps.protocol.draw import Run, networks
from sweeps.study import Metrics, Tile

__all__ = ["METRICS", "REASONS", "certificate_path", "decide_end", "prove_tile", "reason_code"]

# Why nothing is proved, as the store holds it; texts are the beginnings of those of `relu_sgd.proofs`, or ours.
REASONS: dict[int, str] = {
    0: "",
    1: "the run diverged",
    2: "a network or data with entries that no proof is about",
    3: "the search left the numbers",
    4: "the rows of X at the kinks",
    5: "more free weights than errors",
    6: "the Jacobian along the kinks",
    7: "an output of an interpolated sample",
    8: "the equations of the fitted samples",
    9: "a sign off the kinks",
    10: "a slope of a kink",
    11: "L is not proved to grow",
    12: "the loss of the minimum",
    13: "the output layer",
    14: "a sample without active neurons",
    15: "a neuron that acts has V_j = 0",
    16: "no neuron acts",
    17: "L is not proved to be convex",
    18: "the minimum is proved within",
    19: "a neuron is too short",
    99: "another one",
}

_VERDICTS = ", ".join(f"{verdict.value} {verdict.name.lower().replace('_', ' ')}" for verdict in proofs.Verdict)
_REASONS = "; ".join(f"{code}: {text}" for code, text in REASONS.items() if code)

# What is kept of a run besides, always in float64. Where nothing is proved the bounds are those that hold anyway.
METRICS: Metrics = {
    "verdict": (np.int8, f"what is proved of a minimum near the last network: {_VERDICTS}"),
    "reason": (np.int8, f"why nothing is proved, 0 where something is: {_REASONS}"),
    "distance": (np.float64, "upper bound of the distance from the last network to the minimum; infinite without one"),
    "proved_error_low": (np.float64, "lower bound of ||Y - Yhat||_F / ||Y||_F at the minimum; 0 without one"),
    "proved_error_high": (np.float64, "upper bound of ||Y - Yhat||_F / ||Y||_F at the minimum; infinite without one"),
    "radius": (
        np.float64,
        "L is at least that of the minimum wherever no W_j (both layers: theta) is farther from it than this; 0 "
        "without a minimum, infinite for a global one",
    ),
}


def reason_code(reason: str) -> int:
    """The code of the reason of a proof that did not succeed."""
    return next((code for code, text in REASONS.items() if code and reason.startswith(text)), 99 if reason else 0)


def _double(arrays: Any) -> Any:
    """A `Params` or `Problem` in float64, the same numbers."""
    return type(arrays)(*(np.asarray(array, np.float64) for array in arrays))


def decide_end(
    params: Params, problem: Problem, trained_layers: TrainedLayers, status: int
) -> tuple[proofs.Proof | None, int]:
    """What is proved of a minimum near the end of a run, and the code of the reason why nothing is.

    Args:
      params, problem: of true sizes, in the precision of the run.
      trained_layers: what was trained.
      status: how the run ended; one that diverged is not tried.
    """
    if status == Status.DIVERGED:
        return None, 1
    try:
        proof = proofs.decide(_double(params), _double(problem), trained_layers=trained_layers)
    except ValueError:  # Not finite, or beyond what rounding is bounded for.
        return None, 2
    return proof, reason_code(proof.reason)


def certificate_path(folder: Path, tile: Tile, d0: int, d1: int, seed: int) -> Path:
    """Where the certificate of a run is kept."""
    return folder / tile.variant.group / f"d0_{d0}_d1_{d1}_seed_{seed}.npz"


def _keep(path: Path, proof: proofs.Proof, problem: Problem) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        proofs.save_certificate(file, proof, problem)
    partial.replace(path)


def prove_tile(
    trained_layers: TrainedLayers, tile: Tile, keep: Path | None = None
) -> Callable[[Run, Params, np.ndarray], dict[str, np.ndarray]]:
    """What decides the runs of a tile: from their starts, ends and statuses, on the host, to `METRICS`.

    Args:
      trained_layers: what was trained.
      tile: the runs, over (d0, d1).
      keep: folder of the certificates; None for none. They are there before the tile counts, so that one that was
        interrupted is decided again, and its certificates are written again.
    """

    def prove(runs: Run, ends: Params, statuses: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: np.zeros(tile.num_runs, kind) for name, (kind, _) in METRICS.items()}
        for name in ("distance", "proved_error_high"):
            found[name][:] = np.inf
        for run, (d0, d1, seed) in enumerate(networks(tile).tolist()):
            params = Params(ends.W[run][:d0, :d1], ends.V[run][:d1])
            problem = Problem(runs.problem.X[run][:, :d0], runs.problem.Y[run])
            proof, found["reason"][run] = decide_end(params, problem, trained_layers, int(statuses[run]))
            if proof is None or proof.verdict == proofs.Verdict.UNDECIDED:
                continue
            found["verdict"][run] = proof.verdict
            found["distance"][run], found["radius"][run] = proof.distance, proof.radius
            found["proved_error_low"][run], found["proved_error_high"][run] = proof.relative_error
            if keep is not None:
                _keep(certificate_path(keep, tile, d0, d1, seed), proof, _double(problem))
        return found

    return prove
