"""A local minimum of L(W, V), both layers trained: the search for a stationary point, and the proof that a minimum is
beside it.

L does not change under W_j -> a W_j, V_j -> V_j / a, a > 0. So L is studied on the slice <W_j, D_j> = <V_j, d_j> (for
every neuron), D and d being the changes of W and V: the slice meets every orbit near theta, and a local minimum on the
slice is one of L (Theorem 3 of docs/proofs.md).

Setting of the proof. At theta = (W, V) with Z_ij = 0 on S: M, E, c, H as in `verification`, K the rows of the
constraints on S, J (D, d) = (M o X D) V + H d, beta = sqrt(||X||^2 ||V||^2 + ||H||^2) >= ||J||, multipliers mu, kappa
= min over S of min(-mu_ij, mu_ij - c_ij), e = norm of the two gradients -X^T (M o C) - K^T mu and -H^T E, q(D, d) =
1/2 ||J (D, d)||^2 - <E, (M o X D) d>. If

    2 q(D, d) + s^2 ||K D||^2 + ||slice residual||^2 >= lambda ||(D, d)||^2,

and rho = ||(D, d)|| is at most R, in the slice, then with t = X D on S, x = max ||x_i||, and signs off S kept (x R
below |Z_ij|),

    L(theta + (D, d)) - L(theta) >= rho (lambda rho / 2 - e - beta ||X|| rho^2 / 2) + ||t||_1 (kappa - R (s^2 x / 2 +
    max ||E_i|| + beta ||V||)).

Hence with R small enough for the second bracket to be positive and R <= lambda / (2 beta ||X||), L exceeds L(theta)
where 4 e / lambda < rho <= R: the least value on the slice's ball of radius R is attained at a distance of at most 4 e
/ lambda, inside, and is a local minimum.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float

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
from relu_sgd.proofs.search import Candidate, FreeNeurons, multipliers_of
from relu_sgd.proofs.verification import evaluate, no_proof, power_of_two

__all__ = ["descend_to_stationary_point", "verify_both_layers"]


def _hessian(
    X: Float[np.ndarray, "N d0"],
    V: Float[np.ndarray, "d1 d2"],
    E: Float[np.ndarray, "N d2"],
    H: Float[np.ndarray, "N d1"],
    active: Bool[np.ndarray, "N d1"],
    neurons: np.ndarray,
) -> tuple[Float[np.ndarray, "rows weights"], Float[np.ndarray, "hidden output"]]:
    """The Jacobian J of Yhat and the block -sum over i of M_ij E_ia x_i between W_j and V_ja; weights of W first,
    neuron by neuron, then those of V.
    """
    (N, d0), d2, n = X.shape, E.shape[1], len(neurons)
    V = V[neurons]
    hidden = (np.where(active[:, neurons], 1.0, 0.0)[:, None, :] * V.T)[:, :, :, None] * X[:, None, None, :]
    output = np.einsum("ij,ab->iajb", H[:, neurons], np.eye(d2)).reshape(N * d2, n * d2)
    jacobian = np.hstack([hidden.reshape(N * d2, n * d0), output])
    mixed = np.zeros((n, d0, n, d2))
    for k, j in enumerate(neurons):
        mixed[k, :, k] = -(X * active[:, j, None]).T @ E
    return jacobian, mixed.reshape(n * d0, n * d2)


def _first_minimum(
    Y: Float[np.ndarray, "N d2"],
    Z: Float[np.ndarray, "N d1"],
    V: Float[np.ndarray, "d1 d2"],
    dZ: Float[np.ndarray, "N d1"],
    dV: Float[np.ndarray, "d1 d2"],
    active: Bool[np.ndarray, "N d1"],
    may_cross: Bool[np.ndarray, "N d1"],
) -> tuple[float, tuple[int, int] | None]:
    """A time up to which L falls along Z + t dZ, V + t dV, t <= 1, and the kink that ends the fall, if one does."""
    acts = active.copy()

    def slope() -> Callable[[float], float]:
        # On a piece E = E_0 - a t - b t^2, so dL/dt is a cubic.
        H, dH = np.where(acts, Z, 0.0), np.where(acts, dZ, 0.0)
        E, a, b = Y - H @ V, dH @ V + H @ dV, dH @ dV
        Ea, aa, Eb, ab, bb = (float(np.vdot(p, q)) for p, q in ((E, a), (a, a), (E, b), (a, b), (b, b)))
        return lambda t: -Ea + t * (aa - 2 * Eb + t * (3 * ab + t * 2 * bb))

    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(may_cross & (Z != 0), -Z / dZ, np.inf)
    times[~((times > 0) & (times < 1))] = np.inf
    crossings = np.flatnonzero(np.isfinite(times))
    crossings = crossings[np.argsort(times.flat[crossings])]
    now, here = 0.0, slope()
    for place in [*crossings, None]:
        crossing = 1.0 if place is None else float(times.flat[place])
        if here(crossing) > 0:
            low, high = now, crossing
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if here(middle) <= 0 else (low, middle)
            return low, None
        if place is None:
            break
        acts.flat[place] ^= True
        now, here = crossing, slope()
        if here(now) > 0:
            i, j = divmod(int(place), times.shape[1])
            return now, (i, j)
    return 1.0, None


def _newton_step(
    hessian: Float[np.ndarray, "n n"],
    rescalings: Float[np.ndarray, "d1 n"],
    gradient: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " n"]:
    """Minus the inverse of the Hessian times the gradient, across the rescalings; where the Hessian is not positive
    definite there, with the absolute values of its eigenvalues.
    """
    scale = float(np.trace(hessian)) / max(1, len(hessian))
    bordered = hessian + scale * rescalings.T @ rescalings
    try:
        factor = scipy.linalg.cho_factor(bordered, check_finite=False)
        diagonal = np.abs(np.diag(factor[0]))
        if diagonal.min(initial=np.inf) > 1e-5 * diagonal.max(initial=0.0):
            return -scipy.linalg.cho_solve(factor, gradient, check_finite=False)
    except np.linalg.LinAlgError:
        pass
    values, vectors = scipy.linalg.eigh(hessian, check_finite=False)
    kept = np.abs(values) > 1e-9 * np.max(np.abs(values), initial=0.0)
    return -vectors[:, kept] @ ((vectors[:, kept].T @ gradient) / np.abs(values[kept]))


def descend_to_stationary_point(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W: Float[np.ndarray, "d0 d1"],
    V: Float[np.ndarray, "d1 d2"],
    held: Bool[np.ndarray, "N d1"] | None = None,
    max_iterations: int = 300,
    least_loss: float = 0.0,
) -> Candidate:
    """From theta down to a point that looks like a minimum of L(W, V): Newton's method along the kinks that hold,
    absolute values of eigenvalues for the Hessian's.

    Kinks join and leave as in `search`, and it gives up below `least_loss`. Nothing is proved here.
    """
    W, V = np.array(W), np.array(V)
    N = len(X)
    d1, d2 = V.shape
    nonzero = np.any(X != 0, axis=1)[:, None]
    scale = np.linalg.norm(X, axis=1)[:, None]
    kinks = np.zeros((N, d1), bool) if held is None else held & nonzero
    positive = X @ W > 0
    let_go = np.zeros_like(kinks)
    neurons = FreeNeurons(X, d1)
    one_at_a_time, is_stationary, last = False, False, 0
    label_norm = float(np.sum(Y**2))
    best, since = np.inf, 0
    for _ in range(max_iterations):
        free = neurons(kinks, positive & ~kinks)
        W = free.project(W, kinks)
        Z = np.where(kinks | let_go, 0.0, X @ W)
        active = positive & ~kinks
        H = np.where(active, Z, 0.0)
        E = Y - H @ V
        loss = float(np.sum(E**2))
        best, since = (loss, 0) if loss < best * (1 - 1e-12) else (best, since + 1)
        if since > 40 or loss < 2 * least_loss:
            break
        output = np.einsum("ij,ab->iajb", H, np.eye(d2)).reshape(N * d2, d1 * d2)
        jacobian = np.hstack([free.jacobian(V), output])
        hessian, hidden = jacobian.T @ jacobian, len(free.owner)
        mixed = np.zeros((hidden, d1, d2))
        mixed[np.arange(hidden), free.owner] = -free.moved.T @ E
        hessian[:hidden, hidden:] += mixed.reshape(hidden, -1)
        hessian[hidden:, :hidden] += mixed.reshape(hidden, -1).T
        gradient = -jacobian.T @ E.ravel()
        own = free.owner == np.arange(d1)[:, None]
        inward = np.where(own, np.sum(free.basis * W[:, free.owner], axis=0), 0.0)
        outward = np.einsum("jb,jk->jkb", -V, np.eye(d1)).reshape(d1, d1 * d2)
        lengths = np.sqrt(np.sum(W * W, axis=0) + np.sum(V * V, axis=1))[:, None]
        step = _newton_step(hessian, np.hstack([inward, outward]) / np.maximum(lengths, 1e-300), gradient)
        gain = -float(gradient @ step)
        D, dV = free.expand(step[:hidden], d1), step[hidden:].reshape(d1, d2)
        if gain > 1e-24 * label_norm and gain > 1e-15 * loss:
            dZ = np.where(kinks, 0.0, X @ D)
            wrong = (Z == 0) & ~kinks & nonzero & (dZ != 0) & ((dZ > 0) != positive)
            if wrong.any():
                kinks, let_go, one_at_a_time = kinks | wrong, let_go & ~wrong, True
                continue
            time, hit = _first_minimum(Y, Z, V, dZ, dV, active, ~kinks)
            W += time * D
            V += time * dV
            Z = Z + time * dZ
            positive = np.where(Z != 0, Z > 0, positive)
            let_go, last = let_go & (Z == 0), 0
            if hit is not None:
                kinks[hit] = True
            continue
        refines = last < 2 and gain > 0
        if refines and last:
            W, V, last = W + D, V + dV, last + 1
            continue
        C = E @ V.T
        multipliers = multipliers_of(X, C, kinks, active)
        excess = np.where(kinks, np.maximum(multipliers, C - multipliers) * scale, -np.inf)
        tolerance = (1e-5 if refines else 1e-10) * max(1.0, float(np.max(np.abs(C * scale), initial=0.0)))
        if refines and not np.any(excess > tolerance):
            W, V, last = W + D, V + dV, 1
            continue
        if not np.any(excess > tolerance):
            is_stationary = True
            break
        worst = np.zeros_like(kinks)
        columns = (
            [int(np.argmax(excess.max(axis=0)))] if one_at_a_time else np.flatnonzero(excess.max(axis=0) > tolerance)
        )
        worst[excess.argmax(axis=0)[columns], columns] = True
        one_at_a_time, last = False, 0
        positive = np.where(worst, C - multipliers > multipliers, positive)
        kinks, let_go = kinks & ~worst, let_go | worst
    active = positive & ~kinks
    C = (Y - np.where(active, X @ W, 0.0) @ V) @ V.T
    return Candidate(W, V, kinks, active, multipliers_of(X, C, kinks, active), is_stationary)


def verify_both_layers(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W_before: Float[np.ndarray, "d0 d1"],
    V_before: Float[np.ndarray, "d1 d2"],
    candidate: Candidate,
) -> Proof:
    """What is proved about a local minimum of L(W, V) beside a stationary point; W_before and V_before are those of
    theta, for the distance.

    W' is the projection of W onto the constraints, ||W' - W|| <= delta = ||K W|| / sigma_K; the setting holds at (W',
    V), so every computed quantity gets what moving by delta can change: E by ||X|| ||V|| delta, H by ||X|| delta, and
    so on. Rounding as in `verification`.
    """
    W, V = candidate.W, candidate.V
    active, S, mu = candidate.active, candidate.kinks, candidate.multipliers
    undecided = lambda reason: no_proof(reason, candidate, "both")
    if not all(np.all(np.abs(array) <= MAGNITUDE) for array in (W, V, mu)):
        return undecided("the search left the numbers for which rounding is bounded")
    nonzero = np.any(X != 0, axis=1)[:, None]
    active, S = active & nonzero, S & nonzero
    at = evaluate(X, Y, W, V, active)
    norms = at_most(np.sqrt(np.sum(X * X, axis=1)))[:, None]
    live = active.any(axis=0) | S.any(axis=0)
    if np.any(live & ~np.any(V != 0, axis=1)):
        return undecided("a neuron that acts has V_j = 0")
    if not live.any():
        return undecided("no neuron acts")
    neurons, d0, d2 = np.flatnonzero(live), X.shape[1], Y.shape[1]
    X_norm, V_norm, x = spectral_norm(X), spectral_norm(V), float(np.max(norms))
    H, H_error = np.where(active, at.Z, 0.0), np.where(active, at.Z_error, 0.0)

    independent = rows_of_kinks.basis(X, S)
    for j in np.flatnonzero((S & ~independent).any(axis=0)):
        if not rows_of_kinks.spans(X[independent[:, j]], X[S[:, j] & ~independent[:, j]]):
            return undecided(f"the rows of X at the kinks of neuron {j} are nearly dependent, and not exactly")
    at_kinks = np.argwhere(independent)
    sigma_K = singular_value_bound(np.eye(V.shape[0])[at_kinks[:, 1]], X[at_kinks[:, 0]])
    if sigma_K <= 0:
        return undecided("the rows of X at the kinks of a neuron are not proved independent")
    off = np.where(independent, np.abs(at.Z) + at.Z_error, 0.0)
    delta = float(at_most(frobenius(off) / sigma_K)) if off.any() else 0.0

    # Second order: 2 q + s^2 K^T K + slice, at the computed W.
    jacobian, mixed = _hessian(X, V, at.E, H, active, neurons)
    size = len(neurons)
    scale = power_of_two(float(np.sqrt(np.sum(jacobian[:, : d0 * size] ** 2) / (d0 * size))))
    K = np.zeros((len(at_kinks), size, d0))
    K[np.arange(len(at_kinks)), np.searchsorted(neurons, at_kinks[:, 1])] = X[at_kinks[:, 0]] * scale
    lengths = np.sqrt(np.sum(W[:, neurons] ** 2, axis=0) + np.sum(V[neurons] ** 2, axis=1))
    slices = np.array([power_of_two(float(scale / length)) for length in lengths])
    G = np.zeros((size, size, d0))
    G[np.arange(size), np.arange(size)] = (W[:, neurons] * slices).T
    G_V = np.zeros((size, size, d2))
    G_V[np.arange(size), np.arange(size)] = -V[neurons] * slices[:, None]
    stacked = np.vstack(
        [
            jacobian,
            np.hstack([K.reshape(len(at_kinks), d0 * size), np.zeros((len(at_kinks), d2 * size))]),
            np.hstack([G.reshape(size, -1), G_V.reshape(size, -1)]),
        ]
    )
    hessian = stacked.T @ stacked
    hessian[: d0 * size, d0 * size :] += mixed
    hessian[d0 * size :, : d0 * size] += mixed.T
    # Entries of the Jacobian: one rounding, or the error of H; of `mixed`: sums of N products with the error of E. Two
    # additions at the end.
    beta = float(at_most(np.sqrt((X_norm * V_norm) ** 2 + (frobenius(H) + frobenius(H_error)) ** 2) + X_norm * delta))
    stacked_norm = frobenius(stacked)
    H_total = float(at_most(frobenius(H_error) * np.sqrt(d2) + X_norm * delta))
    E_change = float(at_most(X_norm * V_norm * delta))
    mixed_error = np.sqrt(2.0) * (
        frobenius(np.abs(X).T @ at.E_error) * np.sqrt(size)
        + gamma(len(X)) * frobenius(np.abs(X).T @ np.abs(at.E)) * np.sqrt(size)
        + X_norm * E_change
    )
    second_order_error = at_most(
        gamma(len(stacked) + 2) * stacked_norm**2
        + 2 * stacked_norm * H_total
        + H_total**2
        + mixed_error
        + 4 * UNIT_ROUNDOFF * (frobenius(hessian) + 2 * frobenius(mixed))
    )
    convexity = eigenvalue_bound(hessian, float(second_order_error))
    if convexity <= 0:
        return undecided("L is not proved to be convex along the kinks, across the rescalings")

    # First order.
    T = np.where(active, at.C, 0.0) + np.where(S, mu, 0.0)
    T_error = np.where(active, at.C_error, 0.0)
    g_W = frobenius(np.abs(X.T @ T) + np.abs(X).T @ T_error + gamma(len(X)) * (np.abs(X).T @ np.abs(T)))
    H_size = np.abs(H) + H_error
    E_size = np.abs(at.E) + at.E_error
    g_V = frobenius(
        np.abs(H.T @ at.E) + H_error.T @ E_size + H_size.T @ at.E_error + gamma(len(X)) * (H_size.T @ E_size)
    )
    E_norm = frobenius(E_size)
    slack = X_norm * V_norm * E_change + X_norm * delta * (E_norm + E_change) + frobenius(H_size) * E_change
    slope_error = float(at_most(g_W + g_V + slack))
    V_rows = at_most(np.sqrt(np.sum(V * V, axis=1)))
    kappa_at = np.where(S, np.minimum(-mu, mu - at.C - at_most(at.C_error + E_change * V_rows)), np.inf)
    kappa = float(np.min(kappa_at, initial=np.inf))
    E_largest = float(at_most(np.max(np.sqrt(np.sum(E_size**2, axis=1))) + E_change))
    sure = np.where(active, at.Z, -at.Z) - at_most(at.Z_error + norms * delta)
    room_at = np.where(nonzero & ~S, sure / np.where(nonzero, norms, 1.0), np.inf)
    room = float(np.min(room_at, initial=np.inf)) * (1 - 2.0**-30)
    bend = float(at_most(scale**2 * x / 2 + E_largest + beta * V_norm))
    limits = [room, convexity / (2 * beta * X_norm), kappa / bend if S.any() else np.inf]
    radius = float(min(limits)) * (1 - 2.0**-20)
    inner = float(at_most(4 * slope_error / convexity))
    error = float(at_most(inner + delta))
    low = float(at_least(np.sqrt(np.sum(at_least(np.maximum(np.abs(at.E) - at.E_error, 0.0)) ** 2)))) - E_change
    loss = (
        float(max(low, 0.0) ** 2 / 2 * (1 - 2.0**-30) - at_most(slope_error * inner)),
        float(at_most((E_norm + E_change) ** 2 / 2)),
    )
    labels, least_labels = frobenius(Y), float(at_least(np.sqrt(np.sum(Y * Y))))
    relative = (
        float(np.sqrt(2 * max(loss[0], 0.0)) / labels * (1 - 2.0**-30)),
        float(np.sqrt(2 * loss[1]) / least_labels * (1 + 2.0**-30)),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where(S, np.where(at.C < 0, np.clip(mu / at.C, 0.0, 1.0), 0.0), active.astype(float))
    moved = np.sqrt(frobenius(W - W_before) ** 2 + frobenius(V - V_before) ** 2)
    proof = dataclasses.replace(
        undecided(""),
        kinks=S,
        active=active,
        slopes=slopes,
        error=error,
        distance=float(at_most(moved * (1 + 4 * UNIT_ROUNDOFF) + error)),
        loss=loss,
        relative_error=relative,
        singular_value=min(sigma_K, float(at_least(np.sqrt(convexity)))),
        margins={"sign": room, "slope": kappa, "coefficient": np.inf},
    )
    if not kappa > 0:
        return dataclasses.replace(proof, reason="a slope of a kink is not proved to lie in (0, 1)")
    if not room > 0:
        return dataclasses.replace(proof, reason="a sign off the kinks is not proved")
    if not 2 * inner < radius:
        return dataclasses.replace(
            proof, reason=f"the minimum is proved within {inner:.1e}, and L to grow within {radius:.1e} only"
        )
    if not loss[0] > 0:
        return dataclasses.replace(proof, reason="the loss of the minimum is not proved to be positive")
    # Every theta near theta* can be rescaled into the slice, at most 7.5 times as far away, where the length of every
    # neuron allows it.
    shortest = float(np.min(at_least(lengths)))
    reach = min((radius - inner) / 10, shortest / 12 - error) * (1 - 2.0**-20)
    if not reach > 0:
        return dataclasses.replace(proof, reason="a neuron is too short to be rescaled safely")
    return dataclasses.replace(proof, verdict=Verdict.LOCAL_MINIMUM, radius=reach)
