"""What theorems say of the runs of a map: of their ends (--prove), and whether they may end (--stop=decided). See
docs/proofs.md and docs/proved_maps.md.

A run is decided where it ended: in float64, whatever it was trained in, so that what is proved is about the very
numbers that training used (a float32 number is a float64 number). The certificate says that a minimum is nearby; that
descent would go there is not claimed.

--stop=decided ends a run that does not meet its criterion when, at step k,

(a) its loss has stalled: over the last `LOOK` steps the least loss fell by less than the share `STALLED`;
(b) a local minimum theta* with L(theta*) = L* > 0 is proved below theta_k, at which the criterion does not hold;
(c) its last iterates, `SPACING` steps apart, `WATCHED` of them or those since step k / 2, move around theta*: no
    hyperplane Z_ij = 0 separates all of them from theta*. That is, where Z*_ij is not 0, Z_ij had its sign at one of
    these iterates at least (pairs of samples that theta* fits exactly do not count, since there the theorem lets signs
    change);
(d) L(theta_k) <= (1 + `NEAR`) L*, and no iterate of the run had a loss below L*, hence none below L(theta_k) / (1 +
    `NEAR`).

(b) is proved, and so is L >= L* in a ball around theta*, for V fixed on the whole union of the closed linear regions
that meet there. (a), (c) and (d) are seen. That descent with a finite step would stay is neither: now and then its
steps cross hyperplanes beyond that union. How many of the runs that stop so would have converged is measured in
docs/proved_maps.md.

A run is looked at every `LOOK` steps of its own, and tried for the first time when its loss has stalled; after a try
that fails it is left alone until it has taken `LATER` times as many steps. So what happens to it depends on the run
alone.
"""

import collections
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from relu_sgd import Descent, DescentState, Params, Problem, Status, proofs
from relu_sgd.network import TrainedLayers
from relu_sgd.proofs.rounding import MAGNITUDE
from sweeps.protocol.draw import Run, networks
from sweeps.protocol.presets import Protocol
from sweeps.runtime.engine import Between, Lane
from sweeps.study import Tile

__all__ = [
    "LOOK",
    "METRICS",
    "REASONS",
    "SPACING",
    "STALLED",
    "WATCHED",
    "TileProofs",
    "certificate_path",
    "decide_end",
    "moves_around",
    "reason_code",
]

# What --stop=decided goes by, see above.
LOOK, STALLED, NEAR, LATER = 1_000, 0.002, 0.02, 2
WATCHED, SPACING = 10, 200
# Momentum and the pull of other samples carry farther than a sample's own.
_JUMPS = 4.0
# Of a loss in single precision, relative.
_ROUNDING = 1e-5

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
    20: "the search found no stationary point",
    99: "another one",
}

_VERDICTS = ", ".join(f"{verdict.value} {verdict.name.lower().replace('_', ' ')}" for verdict in proofs.Verdict)
_REASONS = "; ".join(f"{code}: {text}" for code, text in REASONS.items() if code)

# What is kept of a run besides, always in float64. Where nothing is proved the bounds are those that hold anyway.
METRICS: dict[str, tuple[type, str]] = {
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
    params: Params, problem: Problem, trained_layers: TrainedLayers, status: int, step: float = 0.0
) -> tuple[proofs.Proof | None, int]:
    """What is proved of a minimum near the end of a run, and the code of the reason why nothing is.

    Args:
      params, problem: of true sizes, in the precision of the run.
      trained_layers: what was trained.
      status: how the run ended; one that diverged is not tried.
      step: the size of a step of descent on L; 0 for a flow.
    """
    if status == Status.DIVERGED:
        return None, 1
    params, problem = _double(params), _double(problem)
    if not all(np.all(np.abs(array) <= MAGNITUDE) for array in (*params, *problem)):
        return None, 2
    chattering = None if status == Status.CONVERGED else may_chatter(params, problem, step)
    proof = proofs.decide(params, problem, trained_layers=trained_layers, chattering=chattering)
    return proof, reason_code(proof.reason)


def may_chatter(params: Any, problem: Any, step: float) -> Any:
    """N x d1, which preactivations a step of descent may carry across 0: the pull of sample i alone on W_j moves Z_ij
    by step |c_ij| ||x_i||^2. It is a guess at what changes sign for ever, for the search to begin with.
    """
    (W, V), (X, Y) = params, problem
    Z = X @ W
    C = (Y - np.maximum(Z, 0.0) @ V) @ V.T
    return np.abs(Z) <= _JUMPS * step * np.abs(C) * np.sum(X * X, axis=1)[:, None]


def certificate_path(folder: Path, tile: Tile, d0: int, d1: int, seed: int) -> Path:
    """Where the certificate of a run is kept."""
    return folder / tile.variant.group / f"d0_{d0}_d1_{d1}_seed_{seed}.npz"


def _keep(path: Path, proof: proofs.Proof, problem: Problem, params: Params) -> None:
    """Written whole or not at all; what a killed process has left is written over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        proofs.save_certificate(file, proof, problem, params)
    partial.replace(path)


class TileProofs:
    """What is tried and found about the runs of a tile, in the process that trains it.

    Args:
      protocol: of the tile's set-up.
      tile: the runs, over (d0, d1).
      record: whether `records` are wanted.
      keep: folder of the certificates; None for none. They are there before the tile counts, so that one that was
        interrupted is decided again, and its certificates are written again.
    """

    def __init__(self, protocol: Protocol, tile: Tile, *, record: bool = True, keep: Path | None = None) -> None:
        self.protocol, self.tile, self.record, self.keep = protocol, tile, record, keep
        self._networks = networks(tile).tolist()
        samples = protocol.num_samples * protocol.d2
        per_sum = 2 / samples if protocol.normalization == "mean" else 1.0
        self._step = protocol.learning_rate * per_sum if protocol.dynamics == "descent" else 0.0
        self._stopped: dict[int, proofs.Proof] = {}
        self.seconds = 0.0

    def _true(self, run: int, params: Any, problem: Any) -> tuple[Params, Problem]:
        """Without padding, in float64."""
        d0, d1, _ = self._networks[run]
        return _double(Params(params.W[:d0, :d1], params.V[:d1])), _double(Problem(problem.X[:, :d0], problem.Y))

    def records(self, runs: Run, ends: Params, statuses: np.ndarray) -> dict[str, np.ndarray]:
        """`METRICS` of the runs, from their starts, ends and statuses, on the host; certificates are written."""
        begun = time.perf_counter()
        found: dict[str, Any] = {name: np.zeros(self.tile.num_runs, kind) for name, (kind, _) in METRICS.items()}
        for name in ("distance", "proved_error_high"):
            found[name][:] = np.inf
        for run, (d0, d1, seed) in enumerate(self._networks):
            end = Params(ends.W[run], ends.V[run])
            params, problem = self._true(run, end, Problem(runs.problem.X[run], runs.problem.Y[run]))
            proof, found["reason"][run] = self._stopped.get(run), 0
            if proof is None:
                layers = self.protocol.trained_layers
                proof, found["reason"][run] = decide_end(params, problem, layers, int(statuses[run]), self._step)
            if proof is None or proof.verdict == proofs.Verdict.UNDECIDED:
                continue
            found["verdict"][run] = proof.verdict
            found["distance"][run], found["radius"][run] = proof.distance, proof.radius
            found["proved_error_low"][run], found["proved_error_high"][run] = proof.relative_error
            if self.keep is not None:
                _keep(certificate_path(self.keep, self.tile, d0, d1, seed), proof, problem, params)
        self.seconds += time.perf_counter() - begun
        return found

    @staticmethod
    def chunk(steps: int) -> int:
        """The longest chunk of at most so many steps that meets every iterate that is watched, and every look."""
        return next(length for length in range(min(steps, SPACING), 0, -1) if SPACING % length == 0)

    def between(self, descent: Descent, order: np.ndarray) -> Between:
        """What looks at the runs between two chunks, and ends those that are decided.

        Args:
          descent: what the runs follow; it ends where `stopped` is set in its state.
          order: which run of the tile every run of the engine is.
        """
        looks: dict[int, float] = {}  # The least loss at the last look.
        not_before: dict[int, int] = {}
        watched: dict[int, Any] = collections.defaultdict(lambda: collections.deque(maxlen=WATCHED))

        def look(owners: np.ndarray, lanes: Lane, done: np.ndarray) -> dict[int, Lane]:
            begun = time.perf_counter()
            steps = np.array(lanes.step)
            ended: dict[int, Lane] = {}
            due = np.flatnonzero(~done & (steps % SPACING == 0))
            W, least, loss = (
                np.array(leaf) for leaf in (lanes.state.params.W, lanes.state.best_loss, lanes.state.loss)
            )
            for owner, lane in zip(*np.unique(owners[due], return_index=True), strict=True):
                lane, run = due[lane], int(order[owner])
                step = int(steps[lane])
                watched[run].append(W[lane].copy())
                if step % LOOK:
                    continue
                before, looks[run] = looks.get(run, np.inf), float(least[lane])
                stalled = (1 - STALLED) * before < looks[run]
                near = loss[lane] <= (1 + NEAR) * looks[run]
                if not (stalled and near) or step < not_before.get(run, 0):
                    continue
                not_before[run] = LATER * step
                # Rows are picked with NumPy: JAX would compile a program for every shape.
                state = jax.tree.map(lambda leaf: np.array(leaf)[lane], lanes.state)  # noqa: B023
                late = list(watched[run])[-max(1, step // (2 * SPACING)) :]
                if self._is_decided(descent, run, state, np.stack(late)):
                    stopped: Any = np.asarray(True)
                    end = Lane(steps[lane], state._replace(stopped=stopped))
                    ended |= dict.fromkeys(np.flatnonzero(owners == owner).tolist(), end)
            self.seconds += time.perf_counter() - begun
            return ended

        return look

    def _is_decided(
        self, descent: Descent, run: int, state: DescentState, watched: Float[np.ndarray, "iterates d0 d1"]
    ) -> bool:
        """Whether (b) to (d) hold; the proof is kept.

        Args:
          descent: what the run follows.
          run: which one of the tile.
          state: where it is.
          watched: W of its last iterates, padded, the present one last.
        """
        if not np.isfinite(state.loss):
            return False
        params, problem = self._true(run, state.params, state.problem)
        (d0, d1), layers = params.W.shape, self.protocol.trained_layers
        positive: Any = problem.X @ watched[:, :d0, :d1].astype(np.float64) > 0
        above, below = positive.any(axis=0), ~positive.all(axis=0)
        held: Any = chatters(positive, may_chatter(params, problem, self._step))
        least = float(state.loss) / (1 + NEAR)
        proof = proofs.decide(params, problem, trained_layers=layers, chattering=held, least_loss=least)
        low = proof.loss[0]
        if (
            proof.verdict != proofs.Verdict.LOCAL_MINIMUM
            or float(state.loss) > (1 + NEAR) * low
            or float(state.best_loss) < (1 - _ROUNDING) * low
            or not moves_around(proof, problem, above, below)
        ):
            return False
        E = problem.Y - np.maximum(problem.X @ proof.W, 0.0) @ proof.V
        if _meets(descent, 0.5 * np.sum(E * E, axis=1), state.problem):
            return False
        self._stopped[run] = proof
        return True


@functools.lru_cache(maxsize=8)
def _compiled_criterion(descent: Descent, shapes: tuple[tuple[int, ...], ...], kind: Any) -> jax.stages.Compiled:
    losses, X, Y = (jax.ShapeDtypeStruct(shape, kind) for shape in shapes)
    criterion: Any = descent.criterion
    data: Any = Problem
    return jax.jit(criterion).lower(losses, data(X, Y)).compile()


def _meets(descent: Descent, losses: Float[np.ndarray, " N"], problem: Any) -> bool:
    """Whether the criterion holds for losses of all samples."""
    if descent.criterion is None:
        return False
    shapes = losses.shape, problem.X.shape, problem.Y.shape
    return bool(_compiled_criterion(descent, shapes, problem.Y.dtype)(losses.astype(problem.Y.dtype), problem))


def chatters(positive: Bool[np.ndarray, "iterates N d1"], may: Bool[np.ndarray, "N d1"]) -> Bool[np.ndarray, "N d1"]:
    """Which preactivations change their sign for ever, as it seems: those that changed it twice among the iterates, or
    once and `may` again.
    """
    changes = np.sum(positive[1:] != positive[:-1], axis=0)
    return (changes >= 2) | (may & (changes == 1))


def moves_around(
    proof: proofs.Proof, problem: Problem, above: Bool[np.ndarray, "N d1"], below: Bool[np.ndarray, "N d1"]
) -> bool:
    """Whether no hyperplane Z_ij = 0 separates iterates from a minimum that is proved, (c) above.

    Args:
      proof: of the minimum.
      problem: the training set.
      above, below: where Z_ij was positive, and where negative, at one of the iterates at least.
    """
    has_say = np.any(problem.X != 0, axis=1)[:, None] & np.any(proof.V != 0, axis=1) & ~proof.fitted[:, None]
    return not np.any(has_say & ~proof.kinks & ~np.where(proof.active, above, below))
