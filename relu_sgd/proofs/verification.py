"""The proof for V fixed: from a proposed W, kinks and multipliers to what is certain, with every rounding accounted
for.

Setting. Z = X W; V_j is row j of V; a neuron with V_j = 0 and a sample with x_i = 0 have no say and are left out. S is
a set of pairs (i, j), M_ij = 1 where (i, j) is active (Z_ij > 0, not in S). Samples are divided into I0 and I1 and
neurons into J0 and J1, where J0 has no active pair in I1; L is fitted exactly on I0, by J0 and by classes, see (5).
`error` bounds are of these kinds:

(1) Neurons J1: W*_J1 minimises q(W) = 1/2 sum over I1 of ||Y_i - sum over J1 of M_ij <x_i, W_j> V_j||^2 on the linear
    space N = {<x_i, W_j> = 0 on S}. If A^T A + K^T K >= lambda I, A the Jacobian of q's predictions and K rows of
    constraints, then q is strongly convex with modulus lambda on N, so W*_J1 exists and is unique. From the computed
    W, let W' be its projection onto N: ||W' - W|| <= ||K W|| / sigma_K. The gradient of q at W' along N is the
    projection of g + A^T A (W' - W), g = -A^T E - K^T mu for any mu, so its norm is at most e = ||g|| + ||A||^2 delta,
    delta = ||K W|| / sigma_K. With D = W*_J1 - W', ||A D||^2 = -<grad q(W'), D> <= e ||D|| and ||A D||^2 >= lambda
    ||D||^2: hence ||D|| <= e / lambda, ||A D|| <= e / sqrt(lambda), ||W*_J1 - W|| <= delta + e / lambda and ||E* - E||
    <= ||A|| delta + e / sqrt(lambda) on I1.
(2) Multipliers: -A^T E* is orthogonal to N, so it is K^T mu* for some mu*; one is mu plus a change on K's independent
    rows of norm at most (||g|| + ||A|| ||E* - E||) / sigma_K.
(3) Neurons J0 and classes: the equations sum over j of M_ij <x_i, W_j> V_j = Y_i on I0 and <x_i, W_j> = 0 on S, linear
    in their weights with W*_J1 inserted. If their matrix has full row rank, least singular value at least sigma, then
    a solution lies within (||residual|| + (||X|| ||V|| + ||x_i|| of the kinks) error_1) / sigma.
(4) Rows of X that S holds beyond linearly independent ones are held exactly where they are exact combinations of those
    (`kinks.spans`).

(5) Neurons of J1 with the same active samples in I1, parallel output rows V_k = r V_j and no multipliers form a class.
    They enter the predictions on I1 through one sum, sum over k of V_k <., W_k>. One of them, the leader, moves in (1)
    as if it had no kinks; then all of them move in (3), with the neurons of J0, and keep the sum: sum over k of V_ka
    D_k = 0 for an a with V_ja != 0 are d0 further equations. c_ik = r c_ij, so what makes the leader stationary makes
    all of them stationary, with slope 0 on their kinks in I1.
(6) Neurons of J1 with the same active samples and kinks everywhere, V_k = r V_j with r > 0, and multipliers: one moves
    in (1), the others follow. They are projected onto their kinks' constraints, which is part of the step to W' (so
    delta counts their kinks), and stay. c_ik = r c_ij and mu_ik = r mu_ij, so what holds for one holds for all.

What is then checked, with these errors: signs off S; -c_ij >= 0 on S (c_ij = <E_i, V_j>), with c_ij <= mu_ij <= 0 for
j in J1 (on I0, where c_ij = 0, that is mu_ij = 0, which is never proved). That gives Theorems 1, 2 and 4 of
docs/proofs.md: E* = 0 on I0, and every neuron is stationary with slopes mu_ij / c_ij (J1) or 0 (J0). Bounds are those
of `rounding`; what is not an error is computed plainly.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float

from relu_sgd.network import TrainedLayers
from relu_sgd.proofs import kinks as rows_of_kinks
from relu_sgd.proofs.result import Proof, Verdict
from relu_sgd.proofs.rounding import (
    MAGNITUDE,
    UNIT_ROUNDOFF,
    at_least,
    at_most,
    eigenvalue_bound,
    frobenius,
    gamma,
    singular_value_bound,
    spectral_norm,
)
from relu_sgd.proofs.search import Candidate

__all__ = ["Enclosure", "evaluate", "no_proof", "power_of_two", "verify"]

# Samples with errors below this, relative to the labels, are tried as interpolated ones.
_INTERPOLATED = 1e-9


@dataclasses.dataclass(frozen=True)
class Enclosure:
    """The network on the linear pieces of a pattern, computed, and bounds of the rounding in it.

    Attributes:
      Z, Z_error: X W, N x d1, (R1).
      E, E_error: Y - (M o Z) V, N x d2: an entry sums d1 products of inner products of length d0, and Y.
      C, C_error: E V^T, N x d1.
    """

    Z: Float[np.ndarray, "N d1"]
    Z_error: Float[np.ndarray, "N d1"]
    E: Float[np.ndarray, "N d2"]
    E_error: Float[np.ndarray, "N d2"]
    C: Float[np.ndarray, "N d1"]
    C_error: Float[np.ndarray, "N d1"]


def evaluate(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W: Float[np.ndarray, "d0 d1"],
    V: Float[np.ndarray, "d1 d2"],
    active: Bool[np.ndarray, "N d1"],
) -> Enclosure:
    """Z, E and C on the linear pieces where `active` says which neurons act."""
    (d0, d1), d2 = W.shape, V.shape[1]
    Z, size = X @ W, np.abs(X) @ np.abs(W)
    E = Y - np.where(active, Z, 0.0) @ V
    # A sample without active neurons has E_i = Y_i exactly.
    acts = np.any(active, axis=1, keepdims=True)
    E_bound = gamma(d0 + d1 + 1) * (np.abs(Y) + np.where(active, size, 0.0) @ np.abs(V))
    E_error = np.where(acts, at_most(E_bound), 0.0)
    C_error = gamma(d2) * (np.abs(E) @ np.abs(V).T) + E_error @ np.abs(V).T
    # For d2 = 1 and E exact the sign of the product is exact; where a factor is 0 so is the product.
    exact = np.all(E_error == 0, axis=1)[:, None] & np.all((E[:, None, :] == 0) | (V[None] == 0), axis=2)
    return Enclosure(Z, at_most(gamma(d0) * size), E, E_error, E @ V.T, np.where(exact, 0.0, at_most(C_error)))


def no_proof(reason: str, candidate: Candidate, layers: TrainedLayers) -> Proof:
    """An undecided network, with what was proposed for it."""
    return Proof(
        Verdict.UNDECIDED,
        reason,
        layers,
        candidate.W,
        candidate.V,
        candidate.kinks,
        candidate.active,
        candidate.active.astype(float),
        candidate.multipliers,
        np.zeros(len(candidate.active), bool),
    )


def power_of_two(value: float) -> float:
    """The power of two nearest to a positive number, 1 for another one: scaling by it is exact."""
    return float(powers_of_two(np.asarray(value)))


def powers_of_two(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """`power_of_two` of every entry."""
    usable = np.isfinite(values) & (values > 0)
    return np.asarray(2.0 ** np.where(usable, np.round(np.log2(np.where(usable, values, 1.0))), 0.0))


def verify(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W_before: Float[np.ndarray, "d0 d1"],
    candidate: Candidate,
    trained_layers: TrainedLayers = "hidden",
    classes_fit: bool = True,
) -> Proof:
    """What is proved about the minimum that `candidate` proposes for L(., V); `W_before` is that of theta, for the
    distance.

    `classes_fit` lets classes of neurons, (5), fit samples of I0; without it only J0 does.

    With `trained_layers` "both" a local minimum is one of L(W, V) and is proved here where J1 is empty: where what is
    not interpolated is out of reach of every neuron, whatever V is.
    """
    W, V = candidate.W, candidate.V
    active, S, mu = candidate.active, candidate.kinks, candidate.multipliers
    undecided = lambda reason: no_proof(reason, candidate, trained_layers)
    if not (np.all(np.abs(W) <= MAGNITUDE) and np.all(np.abs(mu) <= MAGNITUDE)):
        return undecided("the search left the numbers for which rounding is bounded")
    nonzero = np.any(X != 0, axis=1)
    has_say = np.any(V != 0, axis=1)
    pairs = nonzero[:, None] & has_say
    active, S = active & pairs, S & pairs
    at = evaluate(X, Y, W, V, active)
    norms = at_most(np.sqrt(np.sum(X * X, axis=1)))[:, None]
    X_norm, V_norm = spectral_norm(X), spectral_norm(V)

    # J0: neurons that act on samples with (almost) no error only; I0: the samples that they or classes act on.
    small = np.max(np.abs(at.E), axis=1, initial=0.0) <= _INTERPOLATED * np.max(np.abs(Y), initial=0.0)
    idle = ~np.any(active & ~small[:, None], axis=0)
    if not classes_fit:
        small &= np.any(active & idle, axis=1)
    pulled = np.any(S & ~small[:, None] & (np.abs(mu) > _INTERPOLATED * np.abs(at.C)), axis=0)
    leader = rows_of_kinks.leaders(active & ~small[:, None], V, has_say & ~idle & ~pulled)
    shared = np.bincount(leader[leader >= 0], minlength=len(leader)) > 1
    in_class = (leader >= 0) & shared[leader]
    leads = in_class & (leader == np.arange(len(leader)))
    flexible = idle | in_class
    I0 = small & np.any(active & flexible, axis=1)
    # (6): of neurons that share pattern and kinks, with multipliers, one moves and the others follow onto the kinks.
    upwards = np.take_along_axis(V, np.argmax(V != 0, axis=1)[:, None], axis=1).T > 0
    twin = rows_of_kinks.leaders(np.vstack([active, S, upwards]), V, has_say & ~idle & pulled)
    follows = (twin >= 0) & (twin != np.arange(len(twin)))
    I1, rigid = ~I0, has_say & ~flexible & ~follows
    mu = mu.copy()
    for k in np.flatnonzero(follows):
        entry = np.argmax(V[twin[k]] != 0)
        mu[:, k] = mu[:, twin[k]] * (V[k, entry] / V[twin[k], entry])
    held = rigid | follows
    acts_on_I1 = active & I1[:, None]
    moving = rigid | leads

    independent = rows_of_kinks.basis(X, S)
    for j in np.flatnonzero((S & ~independent).any(axis=0)):
        if not rows_of_kinks.spans(X[independent[:, j]], X[S[:, j] & ~independent[:, j]]):
            return undecided(f"the rows of X at the kinks of neuron {j} are nearly dependent, and not exactly")

    sigmas = []
    # (1), (2)
    error_1, mu_error, E_change = 0.0, 0.0, 0.0
    if moving.any():
        at_kinks = np.argwhere(independent & held)
        sigma_K = singular_value_bound(np.eye(W.shape[1])[at_kinks[:, 1]], X[at_kinks[:, 0]])
        if sigma_K <= 0:
            return undecided("the rows of X at the kinks of a neuron are not proved independent")
        at_kinks = np.argwhere(independent & rigid)
        neurons = np.flatnonzero(moving)
        A = (X[I1][:, None, :, None] * (acts_on_I1[I1][:, None, neurons] * V.T[:, neurons])[:, :, None, :]).reshape(
            int(I1.sum()) * Y.shape[1], -1
        )
        if A.shape[1] > len(A) + len(at_kinks):
            return undecided("more free weights than errors to fix them: the minimum is not isolated")
        scale = power_of_two(float(np.sqrt(np.sum(A * A) / max(1, A.shape[1]))))
        K = np.zeros((len(at_kinks), X.shape[1], len(neurons)))
        K[np.arange(len(at_kinks)), :, np.searchsorted(neurons, at_kinks[:, 1])] = X[at_kinks[:, 0]] * scale
        both = np.vstack([A, K.reshape(len(at_kinks), A.shape[1])])
        # An entry of A has one rounding, and an entry of the Gram matrix sums len(both) products.
        convexity = eigenvalue_bound(both.T @ both, float(at_most(gamma(len(both) + 2) * frobenius(both) ** 2)))
        if convexity <= 0:
            return undecided("the Jacobian along the kinks is not proved to have full column rank")
        T = np.where(acts_on_I1 & moving, at.C, 0.0) + np.where(S & rigid, mu, 0.0)
        T_error = np.where(acts_on_I1 & moving, at.C_error, 0.0)
        g = frobenius(np.abs(X.T @ T) + np.abs(X).T @ T_error + gamma(len(X)) * (np.abs(X).T @ np.abs(T)))
        off = np.where(independent & held, np.abs(at.Z) + at.Z_error, 0.0)
        delta = frobenius(off) / sigma_K if off.any() else 0.0
        A_norm = X_norm * V_norm
        along = g + A_norm**2 * delta
        error_1 = float(at_most(delta + along / convexity))
        E_change = float(at_most(A_norm * delta + along / np.sqrt(convexity)))
        mu_error = float(at_most((g + A_norm * E_change) / sigma_K)) if len(at_kinks) else 0.0
        sigmas += [sigma_K, float(at_least(np.sqrt(convexity)))]

    # (3)
    error_0 = 0.0
    loose = flexible & has_say
    rows = np.argwhere(np.repeat(I0[:, None], Y.shape[1], axis=1))
    rows = rows[np.any(active[rows[:, 0]] & loose & (V.T[rows[:, 1]] != 0), axis=1)] if len(rows) else rows
    uncovered = np.ones(Y.shape, bool)
    uncovered[tuple(rows.T)] = False
    if np.any(uncovered[I0]):
        return undecided("an output of an interpolated sample depends on no neuron that is free to fit it")
    if len(rows):  # A sample that repeats another one asks for nothing new.
        constraints = np.hstack([X[rows[:, 0]], Y[rows[:, 0], rows[:, 1]][:, None], rows[:, 1:]]) + 0.0
        rows = rows[np.sort(np.unique(constraints, axis=0, return_index=True)[1])]
    at_kinks = np.argwhere(independent & loose)
    if len(rows) + len(at_kinks):
        fit = np.where(active[rows[:, 0]] & loose, V.T[rows[:, 1]], 0.0)
        hold = np.eye(W.shape[1])[at_kinks[:, 1]]
        heads = np.flatnonzero(leads)
        same = np.where(in_class & (leader == heads[:, None]), V.T[np.argmax(V[heads] != 0, axis=1)], 0.0)
        factors = np.vstack([fit, hold, np.repeat(same, X.shape[1], axis=0)])
        inputs = np.vstack([X[rows[:, 0]], X[at_kinks[:, 0]], np.tile(np.eye(X.shape[1]), (len(heads), 1))])
        weights = np.sqrt(np.sum(factors * factors, axis=1) * np.sum(inputs * inputs, axis=1))
        scales = 1 / powers_of_two(weights)
        residual = np.concatenate(
            [
                (np.abs(at.E) + at.E_error)[rows[:, 0], rows[:, 1]],
                (np.abs(at.Z) + at.Z_error)[at_kinks[:, 0], at_kinks[:, 1]],
                np.zeros(len(same) * X.shape[1]),
            ]
        )
        sigma = singular_value_bound(factors * scales[:, None], inputs)
        if sigma <= 0:
            return undecided(
                "the equations of the fitted samples and of the kinks are not proved to have full row rank "
                f"({len(factors)} equations, {int(loose.sum()) * X.shape[1]} weights)"
            )
        of_kinks = frobenius(norms[at_kinks[leads[at_kinks[:, 1]], 0]])
        carried = (X_norm * V_norm + of_kinks) * error_1 * float(np.max(scales))
        error_0 = float(at_most((frobenius(residual * scales) + carried) / sigma))
        sigmas.append(sigma)

    error = float(at_most(error_0 + error_1))
    # (4) and the conditions; `errors` is the error of every neuron.
    errors = np.where(held, error_1, 0.0) + np.where(loose, error_0, 0.0) + np.where(leads, error_1, 0.0)
    off_kinks = pairs & ~S
    sure = np.where(active, at.Z, -at.Z) - at_most(at.Z_error + norms * errors)
    norms_or_one = np.where(nonzero[:, None], norms, 1.0)
    room = np.where(off_kinks, sure / norms_or_one, np.inf) * (1 - 2.0**-30)
    V_rows = at_most(np.sqrt(np.sum(V * V, axis=1)))
    C_sure = at_most(at.C_error + np.where(moving.any() & active.any(axis=1)[:, None], E_change * V_rows, 0.0))
    C_sure = np.where((at.C_error == 0) & ~active.any(axis=1)[:, None], 0.0, C_sure)
    slope = np.where(S & rigid, np.minimum(-mu, mu - at.C - C_sure) - at_most(mu_error), np.inf)
    coefficient = np.where(S & ~rigid & I1[:, None], -at.C - C_sure, np.inf)
    margins = {
        "sign": float(np.min(room, initial=np.inf)),
        "slope": float(np.min(slope, initial=np.inf)),
        "coefficient": float(np.min(coefficient, initial=np.inf)),
    }
    E_low = at_least(np.maximum(np.abs(at.E) - at.E_error, 0.0))[I1]
    E_high = at_most(np.abs(at.E) + at.E_error)[I1] * (np.abs(at.E) + at.E_error > 0)[I1]
    low = float(at_least(max(float(at_least(np.sqrt(np.sum(E_low**2)))) - float(at_most(E_change)), 0.0)))
    high = float(at_most(np.sqrt(np.sum(E_high**2)) + E_change)) if E_high.any() else 0.0
    labels = frobenius(Y)
    least_labels = float(at_least(np.sqrt(np.sum(Y * Y))))
    bounds = dict(
        error=error,
        distance=float(at_most(frobenius(W - W_before) * (1 + 2 * UNIT_ROUNDOFF) + error)),
        loss=(float(at_least(low**2 / 2)), float(at_most(high**2 / 2)) if high else 0.0),
        relative_error=(low / labels * (1 - 2.0**-30), high / least_labels * (1 + 2.0**-30))
        if least_labels
        else (0.0, 0.0),
        singular_value=min(sigmas, default=np.inf),
        margins=margins,
    )
    reach = float(np.min(np.where(I1[:, None], room, np.inf), initial=np.inf))
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(S, np.where(held & (at.C < 0), np.clip(mu / at.C, 0.0, 1.0), 0.0), active.astype(float))
    values = dict(slopes=slopes, kinks=S, active=active, multipliers=np.where(S & held, mu, 0.0), fitted=I0, **bounds)
    blank = dataclasses.replace(undecided(""), **values)
    if not margins["sign"] > 0:
        return dataclasses.replace(blank, reason="a sign off the kinks is not proved")
    if not margins["slope"] >= 0:
        return dataclasses.replace(blank, reason="a slope of a kink is not proved to lie in [0, 1]")
    if not margins["coefficient"] >= 0:
        return dataclasses.replace(blank, reason="L is not proved to grow on both sides of a kink")
    if high == 0:
        return dataclasses.replace(blank, verdict=Verdict.GLOBAL_MINIMUM, radius=np.inf)
    if not low > 0:
        return dataclasses.replace(blank, reason="the loss of the minimum is not proved to be positive")
    if trained_layers == "both":
        if moving.any():
            return dataclasses.replace(blank, reason="the output layer is not proved to be stationary")
        # V moves too: neurons without a say may get one, and c_ij changes by at most ||Y_i|| ||change of V_j||.
        silent = np.where(I1[:, None] & nonzero[:, None] & ~has_say, (-at.Z - at.Z_error) / norms_or_one, np.inf)
        Y_rows = at_most(np.sqrt(np.sum(Y * Y, axis=1)))[:, None]
        turn = np.where(np.isfinite(coefficient), coefficient / Y_rows, np.inf)
        reach = min(reach, float(np.min(silent, initial=np.inf)), float(np.min(turn, initial=np.inf))) * (1 - 2.0**-30)
        if not reach > 0:
            return dataclasses.replace(blank, reason="a sample without active neurons is not out of reach")
    return dataclasses.replace(blank, verdict=Verdict.LOCAL_MINIMUM, radius=reach)
