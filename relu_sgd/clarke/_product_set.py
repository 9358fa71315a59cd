"""The Clarke subdifferential of the loss as a set (Lemma A.4), and what can be asked of it.

Lemma A.4 describes dL(theta) by {-X^T diag(r_j) E V_j^T : r_ij in [0, 1] where X_i W_j = 0} for every neuron j, and
-H^T E for V. This *product set* always contains the Clarke subdifferential. The lemma claims equality; that holds,
neuron by neuron, if and only if the sign of c_ij = <E_i, V_j> is constant on every minimal linearly dependent set of
the rows X_i with X_i W_j = 0 and c_ij != 0 (an erratum: linear independence of those rows suffices; duplicate,
antiparallel or symmetric rows, or W_j = 0 with more than d0 samples, do not have it). `Subdifferential.is_exact`
decides; `clarke_hull` computes the true set.

What is computed in floating point needs a meaning of "zero preactivation": |Z_ij| <= tolerance ||X_i|| ||W_j||, with
eight units of rounding unless told otherwise.
"""

import enum
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, ScalarLike

from relu_sgd._algebra import matmul
from relu_sgd._checks import whole_number
from relu_sgd._normalization import loss_scale
from relu_sgd.clarke._zonotope import nearest_point
from relu_sgd.network import Normalization, Params, TrainedLayers, hidden_layer, preactivations
from relu_sgd.problem import Problem

__all__ = ["Exactness", "Membership", "MinimumNorm", "Subdifferential", "kink_sides", "subdifferential"]

_HIGHEST = jax.lax.Precision.HIGHEST


class Exactness(enum.IntEnum):
    """Whether the product set of Lemma A.4 is the Clarke subdifferential, and not merely a superset."""

    NOT_EXACT = 0
    EXACT = 1
    UNDECIDED = 2


class MinimumNorm(NamedTuple):
    """The element of least norm of the product set.

    Attributes:
      element: the element, a gradient.
      slopes: N x d1, the slopes of relu that give it: 1 and 0 off the kinks.
      norm: its norm. dist(0, dL(theta)) when `exactness` is EXACT; a lower bound of it otherwise.
      lower_bound: what the duality gap proves: the product set's least norm lies in [lower_bound, norm].
      gap: sum of the neurons' duality gaps, in units of the squared norm; see `zonotope.NearestPoint`.
      exactness: an `Exactness`, of the whole set.
    """

    element: Params
    slopes: Float[Array, "N d1"]
    norm: Float[Array, ""]
    lower_bound: Float[Array, ""]
    gap: Float[Array, ""]
    exactness: Int8[Array, ""]


class Membership(NamedTuple):
    """Whether a point belongs to the product set, with a certificate for either answer.

    Attributes:
      contains: whether the distance is within the tolerance.
      distance: the distance from the point to the set.
      slopes: N x d1, of the element that is nearest to the point: the certificate of membership.
      direction: u, from that element to the point. When the point is outside, <point, u> exceeds the set's support in
        the direction u by `margin` > 0, which proves it.
      margin: <point, u> - support(u).
    """

    contains: Bool[Array, ""]
    distance: Float[Array, ""]
    slopes: Float[Array, "N d1"]
    direction: Params
    margin: Float[Array, ""]


def _dot(a: Params, b: Params) -> Float[Array, ""]:
    return jnp.sum(a.W * b.W) + jnp.sum(a.V * b.V)


def _norm(a: Params) -> Float[Array, ""]:
    return jnp.sqrt(_dot(a, a))


def kink_sides(params: Params, problem: Problem, tolerance: ScalarLike | None = None) -> Int8[Array, "N d1"]:
    """The sign of every preactivation: 1, -1, or 0 where |Z_ij| <= tolerance ||X_i|| ||W_j||.

    A sample X_i = 0 has no kink: its preactivation is 0 for every W, and its side is -1 here.

    Args:
      params: the weights.
      problem: the training set.
      tolerance: relative; 8 eps of the precision at hand when None.

    Raises:
      ValueError: the shapes do not fit, or the tolerance is known when traced and is negative.
    """
    Z = preactivations(params, problem)
    if tolerance is None:
        tolerance = 8 * jnp.finfo(Z.dtype).eps
    elif not isinstance(tolerance, jax.core.Tracer) and not np.all(np.asarray(tolerance) >= 0):
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    lengths = jnp.linalg.norm(problem.X, axis=1)[:, None]
    zero = jnp.abs(Z) <= tolerance * lengths * jnp.linalg.norm(params.W, axis=0)[None, :]
    return jnp.where(zero, jnp.where(lengths > 0, 0, -1), jnp.where(Z > 0, 1, -1)).astype(jnp.int8)


class Subdifferential(NamedTuple):
    """The product set of Lemma A.4 at one theta: for every neuron a zonotope, for V a point. Made by
    `subdifferential`.

    A pytree of arrays; every method is pure and works under jit and vmap. When `is_complete` is False a neuron has
    more kinks than there was room for: then real results are NaN and exactness is UNDECIDED.

    Attributes:
      fixed: the element with slope 0 at every kink. V is 0 when the hidden layer alone is trained.
      generators: d1 x max_kinks x d0; neuron j's zonotope is fixed.W_j + sum_k r_k generators[j, k], with r_k in [0,
        1].
      rows: d1 x max_kinks x d0, the samples X_i that the generators are multiples of; zeros where there is none.
      coefficients: d1 x max_kinks, c_ij; 0 where there is no kink.
      coefficient_rounding: d1 x max_kinks, below which c_ij may have either sign.
      samples: d1 x max_kinks, i; N where there is no kink.
      sides: N x d1, 1 where Z_ij > 0, -1 where Z_ij < 0, 0 at a kink.
      is_complete: whether all kinks found room.
    """

    fixed: Params
    generators: Float[Array, "d1 K d0"]
    rows: Float[Array, "d1 K d0"]
    coefficients: Float[Array, "d1 K"]
    coefficient_rounding: Float[Array, "d1 K"]
    samples: Int[Array, "d1 K"]
    sides: Int8[Array, "N d1"]
    is_complete: Bool[Array, ""]

    def element(self, slopes: Float[Array, "N d1"]) -> Params:
        """The element that belongs to the slopes r_ij; only those at kinks matter.

        Raises:
          ValueError: the slopes are not N x d1.
        """
        if jnp.shape(slopes) != self.sides.shape:
            raise ValueError(f"slopes must be N x d1 = {self.sides.shape}, got {jnp.shape(slopes)}")
        padded = jnp.concatenate([slopes, jnp.zeros((1, slopes.shape[1]), slopes.dtype)])
        coefficients = padded[self.samples, jnp.arange(self.samples.shape[0])[:, None]]
        return self._at(coefficients)

    def support(self, direction: Params) -> Float[Array, ""]:
        """Max over g in the set of <g, direction>; where the set is exact, Clarke's directional derivative of L."""
        reach = jnp.einsum("jkd,dj->jk", self.generators, direction.W, precision=_HIGHEST)
        return self._checked(_dot(self.fixed, direction) + jnp.sum(jnp.maximum(reach, 0)))

    def minimum_norm(self) -> MinimumNorm:
        """The element of least norm: the velocity of the differential inclusion, up to its sign (Lemma A.2)."""
        element, slopes, gap = self._nearest(Params(jnp.zeros_like(self.fixed.W), jnp.zeros_like(self.fixed.V)))
        norm = _norm(element)
        lower = jnp.maximum(norm**2 - gap, 0) / jnp.where(norm > 0, norm, 1)
        return MinimumNorm(element, slopes, norm, lower, gap, self.is_exact)

    def distance(self, point: Params) -> Float[Array, ""]:
        """The distance from a point to the set."""
        element, _, _ = self._nearest(point)
        return _norm(Params(element.W - point.W, element.V - point.V))

    def contains(self, point: Params, tolerance: ScalarLike | None = None) -> Membership:
        """Whether a point belongs to the set, with a certificate.

        Args:
          point: the candidate.
          tolerance: the distance up to which it counts as inside; rounding of the numbers at hand when None.
        """
        element, slopes, _ = self._nearest(point)
        direction = Params(point.W - element.W, point.V - element.V)
        distance = _norm(direction)
        if tolerance is None:
            scale = _norm(self.fixed) + _norm(point) + jnp.sum(jnp.abs(self.generators))
            tolerance = 64 * jnp.finfo(self.generators.dtype).eps * scale
        margin = _dot(point, direction) - self.support(direction)
        return Membership(distance <= tolerance, distance, slopes, direction, margin)

    @property
    def exactness(self) -> Int8[Array, " d1"]:
        """For every neuron, whether its zonotope is its part of the Clarke subdifferential: an `Exactness`."""
        decide = _exactness_of_neurons(self.rows, self.coefficients, self.coefficient_rounding)
        return jnp.where(self.is_complete, decide, Exactness.UNDECIDED).astype(jnp.int8)

    @property
    def is_exact(self) -> Int8[Array, ""]:
        """Whether the whole set is the Clarke subdifferential: an `Exactness`.

        The neurons' kinks are independent of each other and of V, so the set is exact when every neuron's part is.
        """
        parts = self.exactness
        decided = jnp.where(jnp.any(parts == Exactness.UNDECIDED), Exactness.UNDECIDED, Exactness.EXACT)
        return jnp.where(jnp.any(parts == Exactness.NOT_EXACT), Exactness.NOT_EXACT, decided).astype(jnp.int8)

    def _checked(self, value: Array) -> Array:
        return jnp.where(self.is_complete, value, jnp.nan)

    def _at(self, coefficients: Float[Array, "d1 K"]) -> Params:
        moved = jnp.einsum("jk,jkd->dj", coefficients, self.generators, precision=_HIGHEST)
        return self.fixed._replace(W=self._checked(self.fixed.W + moved))

    def _nearest(self, point: Params) -> tuple[Params, Float[Array, "N d1"], Float[Array, ""]]:
        """The element nearest to a point, its slopes, and the sum of the duality gaps."""
        nearest = _nearest_points((self.fixed.W - point.W).T, self.generators)
        num_samples, d1 = self.sides.shape
        slopes = jnp.zeros((num_samples + 1, d1), nearest.coefficients.dtype)
        slopes = slopes.at[self.samples, jnp.arange(d1)[:, None]].set(nearest.coefficients)[:-1]
        slopes = jnp.where(self.sides > 0, 1, jnp.where(self.sides < 0, 0, slopes))
        return self._at(nearest.coefficients), slopes, self._checked(jnp.sum(nearest.gap))


def _exactness(
    rows: Float[Array, "K d0"], coefficients: Float[Array, " K"], rounding: Float[Array, " K"]
) -> Int8[Array, ""]:
    """Whether the sign of the coefficients is constant on every circuit of the rows whose coefficient is not 0.

    Two rows lie on a common circuit if and only if they are connected through the fundamental circuits of one basis
    (Krogdahl 1977), so one elimination decides, however many kinks there are. A pivot or entry that is neither clearly
    zero nor clearly not leaves the answer open, and so does a coefficient of unknown sign on a circuit.
    """
    num_rows, d0 = rows.shape
    eps = jnp.finfo(rows.dtype).eps
    certain, negligible = jnp.sqrt(eps), eps * 16 * (num_rows + d0)
    lengths = jnp.linalg.norm(rows, axis=1)
    present = (lengths > 0) & (coefficients != 0)
    # d0 x K, unit columns.
    columns = jnp.where(present[None, :], rows.T / jnp.where(lengths > 0, lengths, 1)[None, :], 0)

    def eliminate(state: Any, _: None) -> tuple[Any, None]:
        matrix, used, basis, unsure = state
        # The largest entry outside the rows that have a pivot already.
        left = jnp.where(used[:, None], 0, jnp.abs(matrix))
        row, column = jnp.unravel_index(jnp.argmax(left), left.shape)
        pivot, size = matrix[row, column], left[row, column]
        unsure |= (size > negligible) & (size < certain)
        take = size >= certain
        line = matrix[row] / jnp.where(take, pivot, 1)
        cleared = (matrix - jnp.outer(matrix[:, column], line)).at[row].set(line)
        matrix = jnp.where(take, cleared, matrix)
        used = used.at[row].set(jnp.where(take, True, used[row]))
        basis = basis.at[row].set(jnp.where(take, column, basis[row]))
        return (matrix, used, basis, unsure), None

    start = (columns, jnp.zeros(d0, bool), jnp.full(d0, num_rows), jnp.bool_(False))
    (matrix, used, basis, unsure), _ = jax.lax.scan(eliminate, start, length=min(num_rows, d0))
    # Entry (b, e): how much of basis element b the element e needs.
    entries = jnp.where(used[:, None] & present[None, :], jnp.abs(matrix), 0)
    unsure |= jnp.any((entries > negligible) & (entries < certain))
    needs = jnp.zeros((num_rows + 1, num_rows), bool).at[basis].set(entries >= certain)[:-1]
    together = needs | needs.T | jnp.eye(num_rows, dtype=bool)
    # Reachability by repeated squaring.
    for _ in range(max(1, (num_rows - 1).bit_length())):
        together = matmul(together.astype(jnp.float32), together.astype(jnp.float32)) > 0
    known = jnp.abs(coefficients) > rounding
    positive, negative = present & known & (coefficients > 0), present & known & (coefficients < 0)
    mixed = together & positive[:, None] & negative[None, :]
    open_sign = together & (present & ~known)[:, None] & present[None, :] & ~jnp.eye(num_rows, dtype=bool)
    one_sign = ~jnp.any(present & ~known) & ~(jnp.any(positive) & jnp.any(negative))
    decided = jnp.where(unsure | jnp.any(open_sign), Exactness.UNDECIDED, Exactness.EXACT)
    decided = jnp.where(jnp.any(mixed) & ~unsure, Exactness.NOT_EXACT, decided)
    return jnp.where(one_sign, Exactness.EXACT, decided).astype(jnp.int8)


# Compiled once for every shape, where a method is called outside of jit.
_nearest_points = jax.jit(jax.vmap(nearest_point), inline=True)
_exactness_of_neurons = jax.jit(jax.vmap(_exactness), inline=True)


def subdifferential(
    params: Params,
    problem: Problem,
    *,
    trained_layers: TrainedLayers = "both",
    normalization: Normalization = "half_sum",
    tolerance: ScalarLike | None = None,
    max_kinks: int | None = None,
) -> Subdifferential:
    """The product set of Lemma A.4, which contains the Clarke subdifferential of the loss at theta.

    Args:
      params: theta.
      problem: the training set.
      trained_layers: "both", or "hidden" when V is fixed (then the V-block is {0}).
      normalization: the loss's normalization.
      tolerance: the size of a preactivation that counts as zero, relative to ||X_i|| ||W_j||; see `kink_sides`.
      max_kinks: room for the kinks of one neuron, N when None. The cost of the methods grows with its cube. Kinks with
        c_ij exactly 0 need no room: they add nothing to the set.

    Raises:
      ValueError: the shapes do not fit, an option is not allowed, or `max_kinks` is not in [1, N].
    """
    if trained_layers not in get_args(TrainedLayers):
        raise ValueError(f"trained_layers must be one of {get_args(TrainedLayers)}, got {trained_layers!r}")
    sides = kink_sides(params, problem, tolerance)
    V, (X, Y) = params.V, problem
    num_samples = sides.shape[0]
    room = num_samples if max_kinks is None else whole_number("max_kinks", max_kinks)
    if room > num_samples:
        raise ValueError(f"max_kinks must lie in [1, N = {num_samples}], got {max_kinks}")
    scale = loss_scale(num_samples, Y.shape[1], normalization)
    H = hidden_layer(params, problem)
    E = Y - matmul(H, V)
    C = matmul(E, V.T)
    fixed_W = -scale * matmul(X.T, jnp.where(sides > 0, C, 0))
    fixed_V = -scale * matmul(H.T, E) if trained_layers == "both" else jnp.zeros_like(V)

    at_kink = ((sides == 0) & (C != 0)).T  # d1 x N
    marks, samples = jax.lax.top_k(at_kink.astype(jnp.int8), room)
    is_kink = marks > 0
    rows = jnp.where(is_kink[:, :, None], X[samples], 0)
    coefficients = jnp.where(is_kink, jnp.take_along_axis(C.T, samples, axis=1), 0)
    # E is a difference of Y and a sum over d1 neurons; c is a sum over d2 outputs.
    sizes = matmul(jnp.abs(Y) + matmul(H, jnp.abs(V)), jnp.abs(V).T)
    rounding = 4 * jnp.finfo(C.dtype).eps * jnp.take_along_axis(sizes.T, samples, axis=1)
    return Subdifferential(
        fixed=Params(fixed_W, fixed_V),
        generators=-scale * coefficients[:, :, None] * rows,
        rows=rows,
        coefficients=coefficients,
        coefficient_rounding=jnp.where(is_kink, rounding, 0),
        samples=jnp.where(is_kink, samples, num_samples),
        sides=sides,
        is_complete=jnp.all(jnp.sum(at_kink, axis=1) <= room),
    )
