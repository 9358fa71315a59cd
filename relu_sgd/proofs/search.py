"""A minimum of L(., V) below a given W, found in floating point: an active-set descent. Nothing here is proved;
`verification` does that.

On a region of one pattern L is a convex quadratic. With the kinks S held at 0 its minimiser is a linear least-squares
problem; the way to it is followed to the first local minimum of L along it, where either a kink holds (L would grow
beyond: it joins S) or the pattern has changed. At the minimiser for S a kink whose multiplier mu leaves [c, 0] lets
go, to the side on which L falls. L never grows, so no region is left twice.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Bool, Float, Int

__all__ = ["Candidate", "FreeNeurons", "descend_to_minimum", "multipliers_of", "nearest_fit"]

# Of multipliers, relative; so many times as much before the solution is refined.
_TOLERANCE, _UNREFINED = 1e-12, 1e6


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What the search proposes; arrays as in `result.Proof`.

    Attributes:
      W, V: the network, with Z_ij = 0 to rounding on the kinks.
      kinks, active, multipliers: see `result.Proof`.
      is_stationary: whether every multiplier lies in [c, 0] to rounding.
    """

    W: Float[np.ndarray, "d0 d1"]
    V: Float[np.ndarray, "d1 d2"]
    kinks: Bool[np.ndarray, "N d1"]
    active: Bool[np.ndarray, "N d1"]
    multipliers: Float[np.ndarray, "N d1"]
    is_stationary: bool


class FreeDirections(NamedTuple):
    """The directions that the kinks leave free, neuron by neuron.

    Attributes:
      basis: d0 x free, orthonormal for every neuron.
      moved: N x free, the change of Z_ij along each where (i, j) is active, 0 elsewhere.
      owner: the neuron of each.
    """

    basis: Float[np.ndarray, "d0 free"]
    moved: Float[np.ndarray, "N free"]
    owner: Int[np.ndarray, " free"]

    def jacobian(self, V: Float[np.ndarray, "d1 d2"]) -> Float[np.ndarray, "rows free"]:
        """The derivatives of Yhat, sample by sample."""
        return (self.moved[:, None, :] * V[self.owner].T).reshape(len(self.moved) * V.shape[1], len(self.owner))

    def expand(self, step: Float[np.ndarray, " free"], d1: int) -> Float[np.ndarray, "d0 d1"]:
        """The change of W for coefficients of the directions."""
        change = np.zeros((len(self.basis), d1))
        first = np.flatnonzero(np.diff(self.owner, prepend=-1))
        if len(first):
            change[:, self.owner[first]] = np.add.reduceat(self.basis * step, first, axis=1)
        return change

    def project(self, W: Float[np.ndarray, "d0 d1"], kinks: Bool[np.ndarray, "N d1"]) -> Float[np.ndarray, "d0 d1"]:
        """W on the kinks' constraints; neurons without kinks stay."""
        held = kinks.any(axis=0)
        projected = self.expand(np.sum(self.basis * W[:, self.owner], axis=0), W.shape[1])
        return np.where(held, projected, W)


class FreeNeurons:
    """`FreeDirections` of a pattern; what a neuron contributes is kept while its pattern stays."""

    def __init__(self, X: Float[np.ndarray, "N d0"], d1: int):
        self.X, self._all = X, np.eye(X.shape[1])
        self._kinks, self._active = np.zeros((2, len(X), d1), bool)
        self._bases = [self._all] * d1
        self._moved = [np.zeros_like(X)] * d1
        self._found: FreeDirections | None = None

    def __call__(self, kinks: Bool[np.ndarray, "N d1"], active: Bool[np.ndarray, "N d1"]) -> FreeDirections:
        """What these kinks leave free."""
        turned = np.any(kinks != self._kinks, axis=0)
        changed = turned | np.any(active != self._active, axis=0)
        if self._found is not None and not changed.any():
            return self._found
        for j in np.flatnonzero(turned):
            self._bases[j] = self._all
            if kinks[:, j].any():
                q, triangle, _ = scipy.linalg.qr(self.X[kinks[:, j]].T, pivoting=True, check_finite=False)
                diagonal = np.abs(np.diag(triangle))
                self._bases[j] = q[:, int(np.sum(diagonal > 1e-9 * max(diagonal[0], 1e-300))) :]
        for j in np.flatnonzero(changed):
            along = self.X if self._bases[j] is self._all else self.X @ self._bases[j]
            self._moved[j] = along * active[:, j, None]
        self._kinks, self._active = kinks.copy(), active.copy()
        owner = np.repeat(np.arange(len(self._bases)), [base.shape[1] for base in self._bases])
        self._found = FreeDirections(np.hstack(self._bases), np.hstack(self._moved), owner)
        return self._found


def _least_squares(
    jacobian: Float[np.ndarray, "rows free"], error: Float[np.ndarray, " rows"], damping: float
) -> Float[np.ndarray, " free"]:
    """The least-squares solution of least norm, or Levenberg and Marquardt's step: by normal equations where they are
    well conditioned.
    """
    says = jacobian.any(axis=1)  # Samples that nothing acts on would make the normal equations singular.
    if not says.all():
        jacobian, error = jacobian[says], error[says]
    rows, free = jacobian.shape
    wide = rows <= free
    try:
        gram = jacobian @ jacobian.T if wide else jacobian.T @ jacobian
        gram[np.diag_indices_from(gram)] += damping
        factor = scipy.linalg.cho_factor(gram, check_finite=False)
        diagonal = np.abs(np.diag(factor[0]))
        if diagonal.size and diagonal.min() > 1e-5 * diagonal.max():
            if wide:
                return jacobian.T @ scipy.linalg.cho_solve(factor, error, check_finite=False)
            return scipy.linalg.cho_solve(factor, jacobian.T @ error, check_finite=False)
    except np.linalg.LinAlgError:
        pass
    return scipy.linalg.lstsq(jacobian, error, cond=1e-11, lapack_driver="gelsy", check_finite=False)[0]


def _first_minimum(
    E: Float[np.ndarray, "N d2"],
    Z: Float[np.ndarray, "N d1"],
    direction: Float[np.ndarray, "N d1"],
    V: Float[np.ndarray, "d1 d2"],
    active: Bool[np.ndarray, "N d1"],
    may_cross: Bool[np.ndarray, "N d1"],
) -> tuple[float, tuple[int, int] | None]:
    """The first local minimum of 1/2 ||Y - Yhat||^2 along Z + t direction, t >= 0, and the kink at which it lies, if
    any.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(may_cross & (Z != 0), -Z / direction, np.inf)
    times[~(times > 0)] = np.inf
    change = np.where(active, direction, 0.0) @ V
    curvature, slope = float(np.sum(change**2)), -float(np.sum(E * change))
    residual, since, now = E.copy(), np.zeros(len(E)), 0.0
    for place in np.argsort(times, axis=None):
        i, j = divmod(int(place), times.shape[1])
        lowest = now - slope / curvature if curvature > 0 else np.inf
        if slope >= 0 or lowest <= times[i, j] or not np.isfinite(times[i, j]):
            break
        slope += curvature * (times[i, j] - now)
        now = times[i, j]
        residual[i] -= change[i] * (now - since[i])
        since[i] = now
        jump = (-1.0 if active[i, j] else 1.0) * direction[i, j] * V[j]
        slope -= float(residual[i] @ jump)
        curvature += float((2 * change[i] + jump) @ jump)
        change[i] += jump
        if slope >= 0:
            return now, (i, j)
    if slope >= 0:
        return now, None
    lowest = now - slope / curvature if curvature > 0 else now
    return (lowest if np.isfinite(lowest) else now), None


def multipliers_of(
    X: Float[np.ndarray, "N d0"],
    C: Float[np.ndarray, "N d1"],
    kinks: Bool[np.ndarray, "N d1"],
    active: Bool[np.ndarray, "N d1"],
) -> Float[np.ndarray, "N d1"]:
    """The mu with sum over the active i of c_ij x_i plus sum over the kinks of mu_ij x_i as near 0 as can be; within
    [c, 0] where rows are dependent.
    """
    gradient = X.T @ np.where(active, C, 0.0)
    multipliers = np.zeros_like(C)
    for j in np.flatnonzero(kinks.any(axis=0)):
        indices = np.flatnonzero(kinks[:, j])
        rows = X[indices].T
        solution, _, rank, _ = np.linalg.lstsq(rows, -gradient[:, j], rcond=1e-9)
        low = np.minimum(C[indices, j], 0.0)
        if rank < len(indices) and np.any((solution > 0) | (solution < low)):
            # Half way to the bounds first, for a margin.
            for inset in (0.25, 0.02, 0.0):
                bounds = (1 - inset) * low - _TOLERANCE, inset * low + _TOLERANCE
                bounded = scipy.optimize.lsq_linear(rows, -gradient[:, j], bounds, method="bvls", tol=1e-14)
                if bounded.cost <= 1e-20 * max(1.0, float(np.sum(gradient[:, j] ** 2))):
                    solution = bounded.x
                    break
        multipliers[indices, j] = solution
    return multipliers


def descend_to_minimum(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W: Float[np.ndarray, "d0 d1"],
    V: Float[np.ndarray, "d1 d2"],
    held: Bool[np.ndarray, "N d1"] | None = None,
    damping: float = 0.0,
    max_iterations: int = 200,
    patience: int = 40,
    least_loss: float = 0.0,
) -> Candidate:
    """From W down to a minimum of L(., V).

    Args:
      X, Y, W, V: the problem and the network; zero rows of V are left alone.
      held: N x d1, kinks to begin with; none by default.
      damping: that of the first least-squares problem (Levenberg and Marquardt), halved after every one: shorter steps
        find nearer minima.
      max_iterations: least-squares problems that may be solved.
      patience: how many of them may pass without L falling, before the search gives up.
      least_loss: minima below it are of no interest: the search gives up there.
    """
    W = np.array(W)
    alive = np.any(V != 0, axis=1)
    nonzero = np.any(X != 0, axis=1)[:, None]
    scale = np.linalg.norm(X, axis=1)[:, None]
    kinks = np.zeros((len(X), W.shape[1]), bool) if held is None else held & nonzero & alive
    positive = X @ W > 0
    neurons = FreeNeurons(X, W.shape[1])
    one_at_a_time, is_stationary = False, False
    label_norm = float(np.sum(Y**2))
    last = 0
    let_go = np.zeros_like(kinks)  # At 0 until the next step, with the side known.
    best, since = np.inf, 0
    for _ in range(max_iterations):
        free = neurons(kinks, positive & ~kinks)
        W = free.project(W, kinks)
        Z = np.where(kinks | let_go, 0.0, X @ W)
        # What is zero with the kinks, by linear dependence, is one of them.
        dependent = (
            (np.abs(Z) <= 1e-13 * scale * (np.linalg.norm(W, axis=0) + 1e-3)) & nonzero & alive & ~kinks & ~let_go
        )
        dependent &= kinks.any(axis=0)
        if dependent.any() and not one_at_a_time:
            joins = np.array([_depends(X, kinks[:, j], dependent[:, j]) for j in range(W.shape[1])]).T
            if joins.any():
                kinks = kinks | joins
                Z = np.where(kinks, 0.0, Z)
                free = neurons(kinks, positive & ~kinks)
        active = positive & ~kinks
        E = Y - np.where(active, Z, 0.0) @ V
        jacobian = free.jacobian(V)
        step = _least_squares(jacobian, E.ravel(), damping)
        damping = damping / 2 if damping > 1e-12 else 0.0
        D = free.expand(step, W.shape[1])
        gain = float((jacobian @ step) @ E.ravel())
        loss = float(np.sum(E**2))
        best, since = (loss, 0) if loss < best * (1 - 1e-12) else (best, since + 1)
        if since > patience or loss < 2 * least_loss:
            break
        if gain > 1e-24 * label_norm and gain > 1e-15 * loss:
            dZ = np.where(kinks, 0.0, X @ D)
            # A kink that let go and would move to the wrong side holds again.
            wrong = (Z == 0) & ~kinks & nonzero & alive & (dZ != 0) & ((dZ > 0) != positive)
            if wrong.any():
                kinks, let_go, one_at_a_time = kinks | wrong, let_go & ~wrong, True
                continue
            time, hit = _first_minimum(E, Z, dZ, V, active, ~kinks & alive)
            W += time * D
            Z = Z + time * dZ
            positive = np.where(Z != 0, Z > 0, positive)
            let_go = let_go & (Z == 0)
            if hit is not None:
                kinks[hit] = True
            last = 0
            continue
        refines = last < 2 and gain > 0  # Two more, for the last digits; what is far from them is seen before.
        if refines and last:
            W, last = W + D, last + 1
            continue
        C = E @ V.T
        multipliers = multipliers_of(X, C, kinks, active)
        excess = np.where(kinks, np.maximum(multipliers, C - multipliers) * scale, -np.inf)
        tolerance = _TOLERANCE * max(1.0, float(np.max(np.abs(C * scale), initial=0.0)))
        if refines:
            tolerance *= _UNREFINED
        if refines and not np.any(excess > tolerance):
            W, last = W + D, 1
            continue
        if not np.any(excess > tolerance):
            # What a solution came to rest on without being pushed there is a kink as well; it holds from now on.
            resting = (np.abs(Z) <= 1e-9 * scale * np.linalg.norm(W, axis=0)) & ~kinks & nonzero & alive
            if resting.any() and not is_stationary:
                kinks, is_stationary, last = kinks | resting, True, 0
                continue
            is_stationary = True
            break
        worst = np.zeros_like(kinks)
        columns = (
            [int(np.argmax(excess.max(axis=0)))] if one_at_a_time else np.flatnonzero(excess.max(axis=0) > tolerance)
        )
        worst[excess.argmax(axis=0)[columns], columns] = True
        one_at_a_time, is_stationary, last = False, False, 0
        positive = np.where(worst, C - multipliers > multipliers, positive)
        kinks, let_go = kinks & ~worst, let_go | worst
    if is_stationary:
        W, kinks, positive = _let_go_of_idle_kinks(X, Y, W, V, kinks, positive)
    active = positive & ~kinks
    C = (Y - np.where(active, X @ W, 0.0) @ V) @ V.T
    return Candidate(W, V, kinks, active, multipliers_of(X, C, kinks, active), is_stationary)


def nearest_fit(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W: Float[np.ndarray, "d0 d1"],
    V: Float[np.ndarray, "d1 d2"],
    max_iterations: int = 12,
) -> Candidate | None:
    """The nearest W that fits all labels on the linear pieces of its region, where pairs that would change their sign
    on the way become kinks; None where no such is found, as near the edge, where too many would.

    The equations are those of Theorem 1 of docs/proofs.md, in whose Gram matrix inputs and output weights part.
    """
    Z = X @ W
    has_say = np.any(X != 0, axis=1)[:, None] & np.any(V != 0, axis=1)
    active, kinks = (Z > 0) & has_say, np.zeros_like(Z, bool)
    for _ in range(max_iterations):
        at = np.argwhere(kinks)
        factors = np.vstack(
            [*(np.where(active & ~kinks, V[:, a], 0.0) for a in range(V.shape[1])), np.eye(len(V))[at[:, 1]]]
        )
        inputs = np.vstack([*[X] * V.shape[1], X[at[:, 0]]])
        if len(inputs) > W.size:
            return None
        E = Y - np.where(active & ~kinks, Z, 0.0) @ V
        gram = (factors @ factors.T) * (inputs @ inputs.T)
        try:
            factor = scipy.linalg.cho_factor(gram, check_finite=False)
            right = np.concatenate([E.T.ravel(), -Z[kinks]])
            solution = scipy.linalg.cho_solve(factor, right, check_finite=False)
            solution += scipy.linalg.cho_solve(factor, right - gram @ solution, check_finite=False)
        except np.linalg.LinAlgError:
            return None
        D = (inputs.T * solution) @ factors
        moved = Z + X @ D
        turned = ((moved > 0) != active) & has_say & ~kinks
        if not turned.any():
            return Candidate(W + D, V, kinks, active & ~kinks, np.zeros_like(Z), True)
        kinks |= turned
    return None


def _let_go_of_idle_kinks(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    W: Float[np.ndarray, "d0 d1"],
    V: Float[np.ndarray, "d1 d2"],
    kinks: Bool[np.ndarray, "N d1"],
    positive: Bool[np.ndarray, "N d1"],
) -> tuple[Float[np.ndarray, "d0 d1"], Bool[np.ndarray, "N d1"], Bool[np.ndarray, "N d1"]]:
    """Moves along directions that leave Yhat alone, away from kinks with slope 0 or 1, which nothing holds; by a
    linear program for the largest distance from them. Such kinks end a flat valley of minima:
    neurons that share a pattern.
    """
    active = positive & ~kinks
    C = (Y - np.where(active, X @ W, 0.0) @ V) @ V.T
    multipliers = multipliers_of(X, C, kinks, active)
    tolerance = 1e-9 * max(1.0, float(np.max(np.abs(C), initial=0.0)))
    pulled = kinks & (tolerance < -C)
    up = pulled & (np.abs(multipliers - C) <= tolerance)
    idle = up | (pulled & (np.abs(multipliers) <= tolerance))
    if not idle.any():
        return W, kinks, positive
    kept, sides = kinks & ~idle, np.where(idle, up, positive)
    free = FreeNeurons(X, W.shape[1])(kept, sides & ~kept)
    _, values, rows = np.linalg.svd(free.jacobian(V))
    flat = rows[int(np.sum(values > 1e-10 * max(values.max(initial=0.0), 1e-300))) :]
    if not len(flat):
        return W, kinks, positive
    along = [np.where(free.owner == j, flat, 0.0) @ free.basis.T for j in range(W.shape[1])]
    away = np.array([(1 if up[i, j] else -1) * along[j] @ X[i] / np.linalg.norm(X[i]) for i, j in np.argwhere(idle)])
    best = scipy.optimize.linprog(
        np.append(np.zeros(len(flat)), -1.0),
        A_ub=np.hstack([-away, np.ones((len(away), 1))]),
        b_ub=np.zeros(len(away)),
        bounds=[(-1, 1)] * len(flat) + [(0, 1)],
    )
    if not best.success or best.x[-1] < 1e-6:
        return W, kinks, positive
    D = np.stack([best.x[:-1] @ part for part in along], axis=1)
    Z, dZ = X @ W, X @ D
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(~kinks & (Z * dZ < 0), -Z / dZ, np.inf)
    step = 0.5 * min(float(np.min(times, initial=np.inf)), float(np.max(np.abs(W))))
    return W + step * D, kept, sides


def _depends(
    X: Float[np.ndarray, "N d0"], kinks: Bool[np.ndarray, " N"], others: Bool[np.ndarray, " N"]
) -> Bool[np.ndarray, " N"]:
    """Which of the others have a row that is in the span of the kinks' rows, to rounding."""
    dependent = np.zeros(len(X), bool)
    if kinks.any() and others.any():
        q = scipy.linalg.orth(X[kinks].T, rcond=1e-9)
        rows = X[others]
        outside = np.linalg.norm(rows - (rows @ q) @ q.T, axis=1)
        dependent[others] = outside <= 1e-9 * np.linalg.norm(rows, axis=1)
    return dependent
