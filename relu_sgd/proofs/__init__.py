"""Theorems about the network at hand: a global or a local minimum beside it, proved with bounds on every rounding
(docs/proofs.md).

The search for the minimum is in floating point and proves nothing; the verification is short and rigorous, and answers
UNDECIDED where it cannot prove. It is NumPy and SciPy in float64 on the host. A proved global minimum beside theta
says nothing about where descent from theta would go, and neither does a local one.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from relu_sgd._checks import check_fields
from relu_sgd.network import Params, TrainedLayers
from relu_sgd.problem import Problem
from relu_sgd.proofs.both_layers import descend_to_stationary_point, verify_both_layers
from relu_sgd.proofs.result import Proof, Verdict, load_certificate, save_certificate
from relu_sgd.proofs.rounding import MAGNITUDE
from relu_sgd.proofs.search import descend_to_minimum, nearest_fit
from relu_sgd.proofs.verification import no_proof, verify

__all__ = [
    "Proof",
    "Verdict",
    "decide",
    "global_minimum",
    "load_certificate",
    "local_minimum",
    "save_certificate",
]


# Relative errors below which an outright fit is tried first, and below which samples count as fitted.
_CLOSE, _FITTED = 0.25, 0.02


# Steps of a search; few where its start should be near a minimum.
_ITERATIONS, _FEW_ITERATIONS, _BRIEF_ITERATIONS = 300, 25, 60
_NOT_STATIONARY = "the search found no stationary point"


class _Start(NamedTuple):
    """Kinks that a search begins with, how many steps it may take, and its damping."""

    held: Bool[np.ndarray, "N d1"] | None
    iterations: int
    damping: float = 0.0


class _Arrays(NamedTuple):
    X: Float[np.ndarray, "N d0"]
    Y: Float[np.ndarray, "N d2"]
    W: Float[np.ndarray, "d0 d1"]
    V: Float[np.ndarray, "d1 d2"]


def _checked(params: Params, problem: Problem) -> _Arrays:
    check_fields("params", params, Params)
    check_fields("problem", problem, Problem)
    named = {"X": problem.X, "Y": problem.Y, "W": params.W, "V": params.V}
    arrays = {name: np.asarray(array) for name, array in named.items()}
    X, Y, W, V = arrays.values()
    if not (
        X.ndim == Y.ndim == W.ndim == V.ndim == 2
        and (len(X), X.shape[1], W.shape[1], V.shape[1]) == (len(Y), W.shape[0], V.shape[0], Y.shape[1])
        and X.size * W.size * V.size > 0
    ):
        raise ValueError(
            "need X: N x d0, Y: N x d2, W: d0 x d1, V: d1 x d2, none of them empty; "
            f"got X: {X.shape}, Y: {Y.shape}, W: {W.shape}, V: {V.shape}"
        )
    for name, array in arrays.items():
        if array.dtype != np.float64:
            raise ValueError(
                f"{name} must be float64, not {array.dtype}: proofs are about the numbers given, so convert knowingly"
            )
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{name} has entries that are not finite")
        if np.max(np.abs(array)) > MAGNITUDE:
            raise ValueError(f"{name} has entries above 2^100, for which rounding is not bounded here")
    return _Arrays(X, Y, W, V)


def _attempts(
    arrays: _Arrays,
    trained_layers: TrainedLayers,
    chattering: Bool[np.ndarray, "N d1"] | None,
    least_loss: float | None,
) -> Iterator[tuple[Proof, bool]]:
    """What can be proved about the minima that the searches find, the likeliest first, and whether it is by the
    theorem that local minima of these layers want.
    """
    brief = least_loss is not None
    X, Y, W, V = arrays
    active = X @ W > 0
    E = Y - np.where(active, X @ W, 0.0) @ V
    labels = float(np.sum(Y**2))
    both = trained_layers == "both"
    few = _BRIEF_ITERATIONS if brief else _FEW_ITERATIONS
    starts: list[_Start] = [] if chattering is None else [_held(arrays, E, chattering, few)]
    if not (brief and starts):
        starts.append(_Start(None, _BRIEF_ITERATIONS if brief else _ITERATIONS))
    close = float(np.sum(E**2)) < _CLOSE**2 * labels and not brief
    if close and (fit := nearest_fit(X, Y, W, V)) is not None:
        yield verify(X, Y, W, fit, trained_layers), False
    # Where samples that neurons act on are not fitted, V is seldom stationary at a minimum for V fixed.
    moves_V = both and np.sum(E[active.any(axis=1)] ** 2) > _FITTED**2 * labels
    if moves_V:
        yield from _stationary_points(arrays, starts, least_loss)
    if brief and moves_V:
        return
    damped = [_Start(None, _ITERATIONS, 1e-2)] if not (moves_V or brief) else []
    for held, iterations, damping in [*starts, *damped]:
        candidate = descend_to_minimum(X, Y, W, V, held, damping, iterations, least_loss=least_loss or 0.0)
        if brief and not candidate.is_stationary:
            yield no_proof(_NOT_STATIONARY, candidate, trained_layers), not both
            continue
        proof = verify(X, Y, W, candidate, trained_layers)
        yield proof, not both
        if proof.verdict == Verdict.UNDECIDED:
            yield verify(X, Y, W, candidate, trained_layers, classes_fit=False), not both
    if both and not moves_V:
        yield from _stationary_points(arrays, starts, least_loss)


def _stationary_points(arrays: _Arrays, starts: list[_Start], least_loss: float | None) -> Iterator[tuple[Proof, bool]]:
    X, Y, W, V = arrays
    for held, iterations, _ in starts:
        candidate = descend_to_stationary_point(X, Y, W, V, held, iterations, least_loss or 0.0)
        if least_loss is not None and not candidate.is_stationary:
            yield no_proof(_NOT_STATIONARY, candidate, "both"), True
        else:
            yield verify_both_layers(X, Y, W, V, candidate), True


def _held(
    arrays: _Arrays, E: Float[np.ndarray, "N d2"], chattering: Bool[np.ndarray, "N d1"], iterations: int
) -> _Start:
    """The kinks to begin with: of what chatters, that which L pushes back from either side, and of no neuron so much
    that nothing would be left of it.
    """
    held = chattering & (E @ arrays.V.T < 0)
    return _Start(held & (held.sum(axis=0) < arrays.X.shape[1]), iterations)


def decide(
    params: Params,
    problem: Problem,
    *,
    trained_layers: TrainedLayers = "hidden",
    chattering: Bool[Array, "N d1"] | None = None,
    least_loss: float | None = None,
) -> Proof:
    """Whether there is a minimum below theta that can be proved, and which.

    The search goes down from theta, so the minimum's loss is at most that of theta, up to what holding `chattering`
    costs; see `Proof.distance` for how far it is.

    Args:
      params: theta = (W, V), float64.
      problem: the training set, float64.
      trained_layers: "hidden" for minima of L(., V), "both" for minima of L. A global minimum of zero loss keeps V in
        either case.
      chattering: N x d1, which preactivations changed sign over the last steps, or may have: the search begins with
        those as kinks, and without them where that fails.
      least_loss: search once, from `chattering` if it is given, for minima of at least this loss; a search that comes
        below ends at once. Enough where a run has settled, and cheap where it has not. None for all minima.

    Returns:
      The first proof that succeeds. Otherwise what was found at the first attempt: by Theorem 2, or, with both layers,
      by Theorem 3, whose reason is the one that counts there.

    Raises:
      TypeError: `params` or `problem` is of another kind.
      ValueError: shapes do not fit, an array is not float64, an entry is not finite or above 2^100 in absolute value,
        or `least_loss` is no number from 0 on.
    """
    arrays = _checked(params, problem)
    if least_loss is not None and not 0 <= least_loss < np.inf:
        raise ValueError(f"least_loss must be a number from 0 on, or None, got {least_loss}")
    if trained_layers not in ("hidden", "both"):
        raise ValueError(f"trained_layers must be hidden or both, got {trained_layers!r}")
    held = None
    if chattering is not None:
        held = np.asarray(chattering)
        if held.dtype != bool or held.shape != (len(arrays.X), arrays.W.shape[1]):
            raise ValueError(f"chattering must be Boolean, N x d1, got {held.dtype}, {held.shape}")
    first: Proof | None = None
    for proof, counts in _attempts(arrays, trained_layers, held, least_loss):
        if proof.verdict != Verdict.UNDECIDED:
            return proof
        first = proof if counts and first is None else first
    assert first is not None
    return first


def _only(verdict: Verdict, proof: Proof, otherwise: str) -> Proof:
    if proof.verdict in (verdict, Verdict.UNDECIDED):
        return proof
    return dataclasses.replace(proof, verdict=Verdict.UNDECIDED, reason=otherwise)


def global_minimum(params: Params, problem: Problem) -> Proof:
    """Whether there is W* with L(W*, V) = 0 below theta: Theorem 1 of docs/proofs.md. V is kept, so it is a minimum of
    either set-up.

    Arguments and errors as for `decide`.
    """
    return _only(Verdict.GLOBAL_MINIMUM, decide(params, problem), "the minimum below theta has positive loss")


def local_minimum(
    params: Params,
    problem: Problem,
    chattering: Bool[Array, "N d1"] | None = None,
    *,
    trained_layers: TrainedLayers = "hidden",
) -> Proof:
    """Whether there is a local minimum of positive loss below theta: Theorems 2 and 3 of docs/proofs.md.

    It is a spurious one where zero loss is possible, which this does not decide. Arguments and errors as for `decide`.
    """
    proof = decide(params, problem, trained_layers=trained_layers, chattering=chattering)
    return _only(Verdict.LOCAL_MINIMUM, proof, "the minimum below theta has zero loss")
