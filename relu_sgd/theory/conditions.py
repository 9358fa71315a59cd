"""Every sufficient condition of convergence that can be evaluated on (X, Y, theta_0), on one board, and what each
promises along a trajectory.

The proofs are in docs/conditions.md. A condition of the literature stands here with its own constants where its text
states them; where it does not, or where the text was not at hand, the row says so and has no number: "order N^2" is
not a condition that a start could meet.
"""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from relu_sgd.network import Params, TrainedLayers
from relu_sgd.problem import Problem
from relu_sgd.theory._start_arrays import StartArrays, start_arrays
from relu_sgd.theory._streaming import hidden_gram, neuron_chunks
from relu_sgd.theory.certificate import Certificate, certificate
from relu_sgd.theory.flip_certificate import FlipCertificate, flip_certificate
from relu_sgd.theory.hidden_layer import HiddenCertificate, hidden_certificate
from relu_sgd.theory.path_certificate import DescentCertificate, LocalCriterion, PathCertificate

__all__ = ["Condition", "board", "guarantee_slack"]

Details: TypeAlias = (
    Certificate | PathCertificate | DescentCertificate | FlipCertificate | HiddenCertificate | LocalCriterion
)


@dataclasses.dataclass(frozen=True)
class Condition:
    """A row of the board: a sufficient condition at a start, and what it promises where it holds.

    Attributes:
      name: what it is called here.
      source: the place where it stands, with its number.
      dynamics: the dynamics that it speaks of, "inclusion" (3) or full-batch "descent" (14) without momentum.
      unmet: hypotheses that the start, the data or the set-up do not meet.
      left_side: the number that has to be below the limit; inf where nothing could meet it; None where it cannot be
        evaluated.
      limit: see `left_side`.
      rate: L(t) <= L(0) exp(-rate t), t in units of flow time; None where it holds nothing, or promises none.
      drift: bound of ||theta(t) - theta(0)|| for all t; None likewise.
      path: bound of the length of theta's path; None likewise.
      hidden_path: the same of W's.
      learning_rate: up to which a condition on descent holds, and at which its rate is meant.
      probability: the least probability with which it holds, over the law of W0 that it assumes; 1 for what holds for
        certain.
      reason: why there is no left side.
      details: the certificate that the numbers are from.
    """

    name: str
    source: str
    dynamics: Literal["inclusion", "descent"] = "inclusion"
    unmet: tuple[str, ...] = ()
    left_side: float | None = None
    limit: float = 1.0
    rate: float | None = None
    drift: float | None = None
    path: float | None = None
    hidden_path: float | None = None
    learning_rate: float | None = None
    probability: float = 1.0
    reason: str | None = None
    details: Details | None = None

    @property
    def margin(self) -> float | None:
        """The limit minus the left side."""
        return None if self.left_side is None else self.limit - self.left_side

    @property
    def hypotheses_met(self) -> bool:
        """Whether the start, the data and the set-up are as the condition wants them."""
        return not self.unmet

    @property
    def holds(self) -> bool:
        """Whether convergence is promised. Theorem D alone includes its limit."""
        if self.left_side is None or self.unmet:
            return False
        return self.details.holds if isinstance(self.details, FlipCertificate) else self.left_side < self.limit

    def _where_it_holds(self) -> "Condition":
        """Without the promises where it does not hold."""
        if self.holds:
            return self
        return dataclasses.replace(self, rate=None, drift=None, path=None, hidden_path=None, learning_rate=None)


def board(
    params: Params, problem: Problem, *, trained_layers: TrainedLayers = "both", chunk: int = 4096
) -> tuple[Condition, ...]:
    """All conditions at theta_0, or at any theta: a row each, in the order (11), (10), sharp, local criterion, B, C,
    D, (54), literature.

    Numbers are float64 and least eigenvalues are lowered by what rounding may have added (to first order); this is
    not verified arithmetic.

    Args:
      params: theta_0.
      problem: the training set.
      trained_layers: "both", or "hidden" where V stays fixed.
      chunk: neurons at a time, for sums over neurons.

    Raises:
      ValueError: the shapes do not fit, an array is empty, an entry is not finite, chunk is less than 1, or
        trained_layers is neither.
    """  # fmt: skip
    if trained_layers not in ("both", "hidden"):
        raise ValueError(f"trained_layers must be 'both' or 'hidden', got {trained_layers!r}")
    start = start_arrays(params, problem)
    both = () if trained_layers == "both" else ("V is trained",)
    hidden = () if trained_layers == "hidden" else ("V is fixed",)
    rows = (*_both_layers(start, both, chunk), *_hidden_layer(start, hidden), *_literature(both, hidden))
    return tuple(row._where_it_holds() for row in rows)


def _both_layers(start: StartArrays, unmet: tuple[str, ...], chunk: int) -> tuple[Condition, ...]:
    W, V, X, Y = start
    at_start = certificate(Params(W, V), Problem(X, Y), chunk=chunk)  # type: ignore[arg-type]
    gram = hidden_gram(X, neuron_chunks(W, chunk))
    rounding = sum(gram.shape[:1] + W.shape[1:]) * np.finfo(float).eps * float(np.trace(gram))
    at_start = dataclasses.replace(at_start, alpha=math.sqrt(max(at_start.alpha**2 - rounding, 0.0)))
    numbers = at_start.operator_norm, at_start.a, at_start.alpha
    local, path = LocalCriterion(*numbers), PathCertificate(*numbers)
    descent = DescentCertificate(
        *numbers,
        hidden_layer_norm=math.sqrt(max(float(np.linalg.eigvalsh(gram)[-1]), 0.0)),
        output_norm=float(np.linalg.norm(V, 2)),
    )
    paper: dict[str, Any] = dict(unmet=unmet, rate=at_start.alpha**2, drift=at_start.drift, details=at_start)
    by_path: dict[str, Any] = dict(
        unmet=unmet, rate=path.rate, drift=path.path, path=path.path, hidden_path=path.hidden_path
    )
    rate = -math.log1p(-descent.decrease) / descent.learning_rate if descent.holds else None
    return (
        Condition("(11)", "Polaczyk and Cyranka 2023, Theorem 3.4", left_side=at_start.F, limit=1 / 8, **paper),
        Condition("(10)", "Polaczyk and Cyranka 2023, Lemma 3.3", left_side=at_start.left_side_10, **paper),
        # What it promises is Theorem B's, which it implies.
        Condition("sharp", "theory/certificate.py", left_side=at_start.left_side_sharp, **by_path, details=at_start),
        Condition(
            "local criterion",
            "Chatterjee 2022, arXiv 2203.16462, for the output layer; the inclusion in place of a C^2 loss",
            unmet=unmet, left_side=local.left_side, rate=local.rate, drift=local.path, path=local.path, details=local,
        ),
        Condition("path", "docs/conditions.md, Theorem B", left_side=path.left_side, **by_path, details=path),
        Condition(
            "path, descent", "docs/conditions.md, Theorem C", "descent",
            unmet=unmet, left_side=descent.left_side, rate=rate,
            drift=math.hypot(descent.hidden_path, descent.output_path),
            path=descent.hidden_path + descent.output_path, hidden_path=descent.hidden_path,
            learning_rate=descent.learning_rate, details=descent,
        ),
    )  # fmt: skip


def _hidden_layer(start: StartArrays, unmet: tuple[str, ...]) -> tuple[Condition, ...]:
    W, V, X, Y = start
    flips = Condition("flips", "docs/conditions.md, Theorem D", unmet=unmet)
    appendix = Condition("(54)", "Polaczyk and Cyranka 2023, Appendix G, with explicit constants", unmet=unmet)
    if V.shape[1] != 1:
        reason = f"it is for d2 = 1, and d2 is {V.shape[1]}"
        return tuple(dataclasses.replace(row, unmet=(*row.unmet, "d2 = 1"), reason=reason) for row in (flips, appendix))
    certified = flip_certificate(Params(W, V), Problem(X, Y))  # type: ignore[arg-type]
    flips = dataclasses.replace(
        flips, left_side=certified.left_side, rate=certified.rate, drift=certified.path, path=certified.path,
        hidden_path=certified.path, details=certified,
    )  # fmt: skip
    if len(X) < 2 or not np.allclose(np.linalg.norm(X, axis=1), 1, rtol=0, atol=1e-5):
        unmet = (*unmet, "N >= 2 rows of norm 1")
        return flips, dataclasses.replace(
            appendix, unmet=unmet, reason="Lemma G.5 is for unit rows, and log N for N >= 2"
        )
    layer = hidden_certificate(X, Y[:, 0], W, V[:, 0])
    drift = float(layer.weight_bound(np.array(2 * layer.a / layer.beta**2))) if layer.beta > 0 else math.inf
    return flips, dataclasses.replace(
        appendix, left_side=layer.left_side_54, rate=layer.beta**2, drift=drift, path=drift, hidden_path=drift,
        probability=1 - 1 / len(X), details=layer,
    )  # fmt: skip


def _literature(both: tuple[str, ...], hidden: tuple[str, ...]) -> tuple[Condition, ...]:
    """Conditions of others that are known here as orders only: no number, and the reason."""
    return (
        Condition(
            "Du et al. 2019", "ICLR 2019, arXiv 1810.02054, Theorem 4.1", "descent", unmet=hidden,
            reason="constant not stated: d1 = Omega(N^6 / (lambda_0^4 delta^3)) and eta = O(lambda_0 / N^2), for "
            "unit rows and output weights of +-1 / sqrt(d1)",
        ),
        Condition(
            "Oymak and Soltanolkotabi 2020", "JSAIT 2020, arXiv 1902.04674, Corollary 2.4", "descent", unmet=hidden,
            reason="constant not known here: d1 of order N^4 / d0^3 as Polaczyk and Cyranka (Remark 5.4) quote it; the "
            "text itself was not at hand. Its lemmas C.2 and C.3 enter (54) with their constants",
        ),
        Condition(
            "Nguyen 2021", "ICML 2021, arXiv 2101.09612", "descent", unmet=both,
            reason="conditions not known here: the text itself was not at hand, only its abstract (linear, quadratic "
            "or cubic width, by the initialisation)",
        ),
    )  # fmt: skip


def guarantee_slack(
    path: Params, problem: Problem, times: Float[np.ndarray, " times"], *, trained_layers: TrainedLayers = "both",
    dynamics: Literal["inclusion", "descent"] = "inclusion",
) -> dict[str, dict[str, Float[np.ndarray, " times"]]]:  # fmt: skip
    """Bound minus value along a trajectory, for every condition of the board that holds at its start: never negative
    but for rounding and the errors of a solver.

    Lengths are those of the polygon through the records, which are at most those of the path.

    Args:
      path: theta at the times, stacked along a leading axis; the first is theta(0).
      problem: the training set.
      times: increasing from 0, in flow time of L = 1/2 ||Y - Yhat||_F^2; iterate k of descent is at k eta.
      trained_layers: as in `board`.
      dynamics: the conditions' dynamics: "descent" with the learning rate of its row, every iterate or some.

    Returns:
      By condition, then by what is bounded: "loss", "drift", "path", "path of W" where they are promised. "path" and
        "path, descent" bound alpha_0 from below, "alpha", and the
      latter ||V_k||, "output"; "path" has a sharper "loss, sharper". "flips" bounds the way of every neuron,
      "neurons" (its least slack), and counts the signs that changed though they should not, "signs" (minus their
      number).

    Raises:
      ValueError: the times do not increase from 0, the shapes do not fit, or as `board`.
    """
    times = np.asarray(times, float)
    if times.ndim != 1 or not len(times) or times[0] != 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times must increase from 0, got {times[:3]}...")
    W, V = np.asarray(path.W, float), np.asarray(path.V, float)
    if W.ndim != 3 or V.ndim != 3 or len(W) != len(times) or len(V) != len(times):
        raise ValueError(f"need {len(times)} x d0 x d1 and {len(times)} x d1 x d2, got {W.shape} and {V.shape}")
    rows = board(Params(W[0], V[0]), problem, trained_layers=trained_layers)
    X, Y = (np.asarray(array, float) for array in problem)
    hidden = [np.maximum(X @ weights, 0) for weights in W]
    loss = np.array([0.5 * np.sum((Y - layer @ output) ** 2) for layer, output in zip(hidden, V, strict=True)])
    W_steps, V_steps = (
        np.concatenate([[0.0], np.linalg.norm(np.diff(array, axis=0), axis=(1, 2))]) for array in (W, V)
    )
    values = {
        "drift": np.hypot(*(np.linalg.norm(array - array[0], axis=(1, 2)) for array in (W, V))),
        "path": np.cumsum(np.hypot(W_steps, V_steps)),
        "path of W": np.cumsum(W_steps),
    }
    alpha: Float[np.ndarray, " times"] | None = None
    slacks: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        if not row.holds or row.dynamics != dynamics:
            continue
        bounds = {"drift": row.drift, "path": row.path, "path of W": row.hidden_path}
        along = {name: bound - values[name] for name, bound in bounds.items() if bound is not None}
        if row.rate is not None:
            along["loss"] = loss[0] * np.exp(-row.rate * times) - loss
        details = row.details
        if isinstance(details, PathCertificate | DescentCertificate):
            if alpha is None:
                alpha = np.array([np.linalg.svd(layer.T, compute_uv=False)[-1] for layer in hidden])
            along["alpha"] = alpha - details.least_alpha
        if isinstance(details, PathCertificate):
            along["loss, sharper"] = details.loss_bound(times) - loss
        if isinstance(details, DescentCertificate):
            along["output"] = details.output_bound - np.array([np.linalg.norm(output, 2) for output in V])
        if isinstance(details, FlipCertificate):
            allowed = np.abs(V[0][:, 0]) * details.radius
            along["neurons"] = (allowed - np.linalg.norm(W - W[0], axis=1)).min(axis=1)
            changed = np.array([(X @ weights > 0) != (X @ W[0] > 0) for weights in W])
            along["signs"] = -np.sum(changed & ~details.flips, axis=(1, 2)).astype(float)
        slacks[row.name] = along
    return slacks
