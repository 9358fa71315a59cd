"""Appendix G: V = v stays fixed, d2 = 1 and the hidden layer is trained; the part of alpha_0 is played by beta_0 =
sigma_min(J^T).

J = X * (R dg(v)) is the Jacobian of the predictions in W, N x d0 d1, R the 0/1 activation pattern; it is never formed,
since J J^T = (X X^T) o (R dg(v)^2 R^T). Assumption G.1: unit rows, W0 with N(0, 1) entries, v half +||y|| / sqrt(N d1)
and half -||y|| / sqrt(N d1).
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from relu_sgd._checks import finite_arrays, whole_number
from relu_sgd.theory._streaming import neuron_chunks
from relu_sgd.theory.gram import angles, least_eigenvalue, operator_norm
from relu_sgd.theory.width_search import smallest_width

__all__ = [
    "HiddenCertificate",
    "assumption_g1_output",
    "corollary_g6_bound",
    "corollary_g6_failure",
    "hidden_certificate",
    "least_jacobian_singular_value",
    "lemma_g4_radius",
    "lemma_g5_bound",
    "lemma_h2_bound",
    "pattern_distance",
    "population_tangent_kernel",
    "population_width",
    "proposition_g7_bounds",
    "smallest_entry",
    "tangent_kernel",
    "theorem_g2_width",
]


def assumption_g1_output(y: Float[np.ndarray, " N"], d1: int) -> Float[np.ndarray, " d1"]:
    """The fixed output weights v of Assumption G.1.

    Raises:
      ValueError: d1 is odd or less than 2, or y is empty.
    """
    d1 = whole_number("d1", d1)
    if d1 % 2 or not len(y):
        raise ValueError(f"d1 must be even and positive and y not empty, got d1 = {d1} and {len(y)} labels")
    v = np.full(d1, float(np.linalg.norm(y)) / math.sqrt(len(y) * d1))
    v[d1 // 2 :] *= -1
    return v


def _columns(v: np.ndarray, W: np.ndarray) -> np.ndarray:
    (v,) = finite_arrays(v=v)
    if v.shape == (W.shape[1], 1):
        v = v[:, 0]
    if v.shape != (W.shape[1],):
        raise ValueError(f"v must have d1 = {W.shape[1]} entries (d2 = 1), got shape {v.shape}")
    return v


def tangent_kernel(
    X: Float[np.ndarray, "N d0"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"], *, chunk: int = 4096
) -> Float[np.ndarray, "N N"]:
    """J J^T = (X X^T) o (R dg(v)^2 R^T), with R_ij = 1 where X_i W_j > 0, `chunk` neurons at a time.

    Raises:
      ValueError: v does not have d1 entries, or an entry is not finite.
    """
    (X, W), v = finite_arrays(X=X, W=W), _columns(v, W)
    pattern = np.zeros((len(X), len(X)))
    for start, part in zip(range(0, W.shape[1], chunk), neuron_chunks(W, chunk), strict=True):
        weighted = (X @ part > 0) * np.abs(v[start : start + chunk])
        pattern += weighted @ weighted.T
    return (X @ X.T) * pattern


def least_jacobian_singular_value(
    X: Float[np.ndarray, "N d0"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"]
) -> float:
    """beta_0 of Proposition G.7 (beta_s at W = W_s): sigma_min(J^T). 0 where d0 d1 < N, by rank.

    From J J^T, so that it ends in rounding below about 1e-8 ||J||: there it may be 0, or a number that means nothing.

    Raises:
      ValueError: v does not have d1 entries, or an entry is not finite.
    """
    largest = float(np.abs(_columns(v, W)).max(initial=0.0))
    if W.size < len(X) or largest == 0:
        return 0.0
    # Relative to the largest output, whose square may be out of range.
    return largest * math.sqrt(max(least_eigenvalue(tangent_kernel(X, W, np.asarray(v, float) / largest)), 0.0))


def pattern_distance(first: Bool[np.ndarray, "N d1"], second: Bool[np.ndarray, "N d1"]) -> float:
    """max_i ||(R_s - R_0)_i||_2 of two activation patterns: the root of the largest number of changes in a sample."""
    return math.sqrt(int(np.max(np.sum(np.asarray(first) != np.asarray(second), axis=1))))


def smallest_entry(Z: Float[np.ndarray, "N d1"], m: int) -> float:
    """min_i ||Z_i||_{m-}: over the samples, the least of the m-th smallest |Z_ij|.

    Raises:
      ValueError: m is not in 1, ..., d1.
    """
    if whole_number("m", m) > Z.shape[1]:
        raise ValueError(f"m must be from 1 to d1 = {Z.shape[1]}, got {m}")
    return float(np.partition(np.abs(np.asarray(Z, float)), m - 1, axis=1)[:, m - 1].min())


def lemma_g4_radius(Z: Float[np.ndarray, "N d1"], m: int) -> float:
    """Lemma G.4: while ||W_s - W_0||_F <= sqrt(m) min_i ||X_i W_0||_{m-}, `pattern_distance` is at most sqrt(2 m). For
    unit rows.

    Why: of more than 2 m neurons that changed on sample i, more than m had |Z_ij| of at least the m-th smallest, and
    each had to move that far.

    Args:
      Z: X W_0.
      m: as in the lemma.

    Raises:
      ValueError: m is not in 1, ..., d1.
    """
    return math.sqrt(m) * smallest_entry(Z, m)


# P(|g| <= m / (2 d1)) <= q m / d1 for a standard normal g, with q = 1 / sqrt(2 pi).
_G5_DENSITY = 1 / math.sqrt(2 * math.pi)
# How fast the failure probability of Lemma G.5 falls with m: log(1 / q) - 1 + q = 0.3179, where the lemma is printed
# with 1/6.
LEMMA_G5_RATE = -math.log(_G5_DENSITY) - 1 + _G5_DENSITY


def lemma_g5_bound(num_samples: int, d1: int, m: int) -> tuple[float, float]:
    """Lemma G.5: min_i ||X_i W_0||_{m-} >= m / (2 d1), for unit rows and N(0, 1) entries.

    It fails with probability at most N exp(-`LEMMA_G5_RATE` m), which is less than the printed N exp(-m / 6). Why:
    ||X_i W_0||_{m-} is below the bound if m of d1 independent normal numbers are, whose number has a mean of at most q
    m, and by Chernoff a binomial number of mean q m reaches m with probability at most exp(-m (log(1 / q) - 1 + q)).

    Returns:
      (m / (2 d1), N exp(-0.3179 m)): the bound, and how likely it fails at most (above 1 where nothing is promised).

    Raises:
      ValueError: m is no whole number from 1 to d1, or N is no whole number from 1 on.
    """
    whole_number("num_samples", num_samples)
    if whole_number("m", m) > d1:
        raise ValueError(f"m must be from 1 to d1 = {d1}, got {m}")
    return m / (2 * d1), num_samples * math.exp(-LEMMA_G5_RATE * m)


def corollary_g6_failure(num_samples: int) -> float:
    """How likely `corollary_g6_bound` fails at most for some s: the sum of Lemma G.5's failures over all m >= 12 log
    N.

    N exp(-r m0) / (1 - exp(-r)), r = `LEMMA_G5_RATE` and m0 = ceil(12 log N): at most 1 / N for every N >= 2, and of
    the order N^-2.81.

    Raises:
      ValueError: N is no whole number from 2 on.
    """
    num_samples = whole_number("num_samples", num_samples, 2)
    first = math.ceil(12 * math.log(num_samples))
    return num_samples * math.exp(-LEMMA_G5_RATE * first) / -math.expm1(-LEMMA_G5_RATE)


def corollary_g6_bound(
    num_samples: int, d1: float, distance: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """Corollary G.6: `pattern_distance` is at most 10 sqrt(log N) + 2 (d1 ||W_s - W_0||_F)^(1/3) for all s at once.

    With probability at least 1 - `corollary_g6_failure`(N) >= 1 - 1/N, for unit rows, N(0, 1) entries and N >= 2.
    Errata: the paper's proof takes Lemma G.5 for one m, which depends on s, so that it speaks about one s. For all s
    it has to hold for all m >= 12 log N at once, and the sum of its failures with the printed rate, 6.5 / N, is more
    than 1 / N; with the true rate it is not. Where m exceeds d1 the lemma has no such m, and sqrt(2 m) > sqrt(d1)
    bounds the distance anyway. The step ceil(a + 12 log N) <= a + 48 log N needs N >= 2.

    Raises:
      ValueError: N is less than 2, d1 less than 1, or a distance is negative.
    """
    distance = np.asarray(distance, float)
    if num_samples < 2 or d1 < 1 or not (distance >= 0).all():
        raise ValueError(
            f"need N >= 2, d1 >= 1 and distances that are not negative, got N = {num_samples}, d1 = {d1}, {distance}"
        )
    return 10 * math.sqrt(math.log(num_samples)) + 2 * np.cbrt(d1 * distance)


def lemma_h2_bound(
    A: Float[np.ndarray, "p N"], x: Float[np.ndarray, " N"], B: Float[np.ndarray, "N d1"]
) -> tuple[float, float]:
    """Lemma H.2: ||(A^T * B)^T x|| = ||A dg(x) B||_F <= ||A|| ||x|| max_i ||B_i||, B_i the rows of B.

    Erratum: (56) is printed with columns of B. Its last display needs x_i^2.

    Returns:
      The left side and the right side.

    Raises:
      ValueError: the shapes do not fit.
    """
    A, x, B = (np.asarray(array, float) for array in (A, x, B))
    if A.ndim != 2 or B.ndim != 2 or x.shape != (A.shape[1],) or len(B) != len(x):
        raise ValueError(f"need A: p x N, x: N, B: N x d1, got {A.shape}, {x.shape}, {B.shape}")
    left = float(np.linalg.norm((A * x) @ B))
    return left, float(np.linalg.norm(A, 2) * np.linalg.norm(x) * np.linalg.norm(B, axis=1).max())


def proposition_g7_bounds(
    X: Float[np.ndarray, "N d0"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"]
) -> dict[str, float]:
    """Upper bounds of beta_0, which hold for every W; unit constants where the proposition has some.

    Proposition G.7 says c ||y|| / sqrt(N) <= beta_0 <= C ||y||_2 / sqrt(d0) WHP. The upper one is not sharp: beta_0^2
    is at most any diagonal entry of J J^T, ||X_i||^2 times the sum of v_j^2 over the active neurons, so that beta_0 <=
    max_i ||X_i|| ||v||, which is ||y|| / sqrt(N) for unit rows: beta_0 is of that order.

    Returns:
      "weyl": ||X|| ||v||_inf sqrt(d1), the proposition's own route. "norm": min_i ||X_i|| ||v||. "diagonal": the least
      diagonal entry's root.

    Raises:
      ValueError: v does not have d1 entries, or an entry is not finite.
    """
    (X, W), v = finite_arrays(X=X, W=W), _columns(v, W)
    lengths = np.linalg.norm(X, axis=1)
    return {
        "weyl": float(np.linalg.norm(X, 2) * np.abs(v).max() * math.sqrt(len(v))),
        "norm": float(lengths.min() * np.linalg.norm(v)),
        "diagonal": math.sqrt(float(np.min(lengths**2 * ((X @ W > 0) @ v**2)))),
    }


def population_tangent_kernel(X: Float[np.ndarray, "N d0"]) -> Float[np.ndarray, "N N"]:
    """E J J^T / ||v||^2 over W0 with N(0, sigma^2) entries: (X X^T) o (pi - t) / (2 pi), t the angles (the arc-cosine
    kernel of degree 0).

    Raises:
      ValueError: as `gram.gram`.
    """
    return (np.asarray(X, float) @ np.asarray(X, float).T) * (np.pi - angles(X)) / (2 * np.pi)


@dataclasses.dataclass(frozen=True)
class HiddenCertificate:
    """The numbers of Appendix G at a start, and what follows from them with explicit constants.

    Attributes:
      num_samples, d0, d1: N and the sizes of the network.
      a: sqrt(L(W(0))).
      beta: beta_0.
      operator_norm: ||X||.
      largest_output: ||v||_inf.
    """

    num_samples: int
    d0: int
    d1: float
    a: float
    beta: float
    operator_norm: float
    largest_output: float

    def weight_bound(self, integral: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
        """(52): ||W_t - W_0||_F <= sqrt(2 d1) ||X|| ||v||_inf Lbar(t), from the integral Lbar(t) of sqrt(L). Holds
        always.
        """
        return math.sqrt(2 * self.d1) * self.operator_norm * self.largest_output * np.asarray(integral, float)

    def beta_bound(self, distance: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
        """(51): |beta_s - beta_0| <= ||X|| ||v||_inf [10 sqrt(log N) + 2 (d1 ||W_s - W_0||_F)^(1/3)], where Corollary
        G.6 holds.
        """
        return self.operator_norm * self.largest_output * corollary_g6_bound(self.num_samples, self.d1, distance)

    def loss_bound(
        self, t: Float[np.ndarray, "*times"], integral: Float[np.ndarray, "*times"]
    ) -> Float[np.ndarray, "*times"]:
        """(53), its first line with ||W_s - W_0|| bounded by (52) at t: L(t) <= L(0) exp(-2 t beta_0^2 + 4 beta_0 t
        |beta_t - beta_0|'s bound).

        Where Corollary G.6 holds. Erratum: the inequality that the paper draws from (53) for y = Lbar is printed with
        exp(-2 t beta_0^2 [...]); y' is sqrt(L), so it is sqrt(L(0)) exp(-t beta_0^2 [...]).
        """
        t = np.asarray(t, float)
        exponent = -2 * t * self.beta**2 + 4 * self.beta * t * self.beta_bound(self.weight_bound(integral))
        return self.a**2 * np.exp(np.minimum(exponent, 700))

    @property
    def left_side_54(self) -> float:
        """(54) with explicit constants: below 1, L(t) <= L(0) exp(-t beta_0^2) and Lbar < 2 a / beta_0^2 for all t,
        where Corollary G.6 holds.

        4 ||X|| ||v||_inf [10 sqrt(log N) + 2 (d1 sqrt(2 d1) ||X|| ||v||_inf 2 a / beta_0^2)^(1/3)] / beta_0, by Lemma
        3.3's argument: as long as the bracket of (53) is at least 1/2, Lbar' <= a exp(-t beta_0^2 / 2), so that Lbar <
        2 a / beta_0^2, at which the bracket is still above 1/2. inf when beta_0 is 0.
        """
        if self.beta <= 0:
            return math.inf
        return float(4 * self.beta_bound(self.weight_bound(np.array(2 * self.a / self.beta / self.beta))) / self.beta)

    @property
    def is_certified(self) -> bool:
        """Whether (54) with explicit constants promises convergence (with probability 1 - 1/N over W0, G.6)."""
        return self.left_side_54 < 1

    def order_54(self, label_norm: float) -> float:
        """(54)'s left side as printed, with unit constants: it is to tend to 0. inf when beta_0 is 0."""
        if self.beta <= 0:
            return math.inf
        move = np.cbrt(self.d1 * label_norm / math.sqrt(self.d0) * self.a / self.beta / self.beta)
        bracket = math.sqrt(math.log(self.num_samples)) + move
        return float(label_norm / (self.beta * math.sqrt(self.d0 * self.d1)) * bracket)


def hidden_certificate(
    X: Float[np.ndarray, "N d0"], y: Float[np.ndarray, " N"], W: Float[np.ndarray, "d0 d1"], v: Float[np.ndarray, " d1"]
) -> HiddenCertificate:
    """The certificate of Appendix G at a start.

    Raises:
      ValueError: the rows of X are not of norm 1, N is less than 2, the shapes do not fit, or an entry is not finite.
    """
    X, y, W = finite_arrays(X=X, y=y, W=W)
    y, v = y.reshape(-1), _columns(v, W)
    if X.ndim != 2 or len(X) < 2 or len(y) != len(X) or W.shape[0] != X.shape[1]:
        raise ValueError(f"need X: N x d0 with N >= 2, y: N, W: d0 x d1, got {X.shape}, {y.shape}, {W.shape}")
    _check_unit_rows(X)
    predicted = np.zeros(len(X))
    for start, part in zip(range(0, W.shape[1], 4096), neuron_chunks(W), strict=True):
        predicted += np.maximum(X @ part, 0) @ v[start : start + 4096]
    return HiddenCertificate(
        num_samples=len(X),
        d0=X.shape[1],
        d1=W.shape[1],
        a=float(np.linalg.norm(y - predicted)) / math.sqrt(2),
        beta=least_jacobian_singular_value(X, W, v),
        operator_norm=operator_norm(X),
        largest_output=float(np.abs(v).max()),
    )


def _check_unit_rows(X: np.ndarray) -> None:
    deviation = np.abs(np.linalg.norm(X, axis=1) - 1)
    if not deviation.max() < 1e-5:
        raise ValueError(
            f"Appendix G wants rows of norm 1; row {int(deviation.argmax())} has "
            f"{np.linalg.norm(X[deviation.argmax()]):.6g}"
        )


def population_width(X: Float[np.ndarray, "N d0"], y: Float[np.ndarray, " N"]) -> float:
    """The smallest width with `left_side_54` below 1 under Assumption G.1, with expectations in place of a draw.

    beta_0^2 is lambda_min of `population_tangent_kernel` times ||v||^2 = ||y||^2 / N, and L(0) its mean, ||y||^2 (3/2 -
    1 / (2 pi)) / 2. The width is of order N^5 / d0^4, with a constant of about 1e12: the sixth power of what stands in
    (54).

    Returns:
      The width, at least N; inf where none up to 1e60 is certified.

    Raises:
      ValueError: the rows of X are not of norm 1, N is less than 2, y is 0, an entry is not finite, or beta_0 is 0 up
        to rounding.
    """
    X, y = finite_arrays(X=X, y=y)
    y = y.reshape(-1)
    if X.ndim != 2 or len(X) < 2 or len(y) != len(X) or not np.linalg.norm(y) > 0:
        raise ValueError(f"need X: N x d0 with N >= 2 and y: N, not 0, got {X.shape} and {y.shape}")
    _check_unit_rows(X)
    label_norm, N = float(np.linalg.norm(y)), len(X)
    smallest = least_eigenvalue(population_tangent_kernel(X))
    if smallest <= N * np.finfo(float).eps:
        raise ValueError(f"beta_0 is 0 up to rounding (lambda_min {smallest:.3g}): rows of X are equal, or too close")
    # Half of the outputs are negative, and so the mean of Yhat is 0 and that of ||Yhat||^2 is ||v||^2 times the sum of
    # the variances of relu(g), 1/2 - 1/(2 pi), over the samples.
    loss = 0.5 * label_norm**2 * (1 + 0.5 - 1 / (2 * math.pi))
    norm = operator_norm(X)

    def left_side(d1: float) -> float:
        return HiddenCertificate(
            N, X.shape[1], d1, math.sqrt(loss), label_norm * math.sqrt(smallest / N), norm,
            label_norm / math.sqrt(N * d1),
        ).left_side_54  # fmt: skip

    return smallest_width(left_side, N, 1e60)


def theorem_g2_width(num_samples: float, d0: float, *, constant: float = 1.0) -> float:
    """(49): d1 >= C max(N log(N) / d0, N^5 / d0^4), for d0 in [sqrt(N), N]; with the paper's global assumption d1 >=
    N.

    Raises:
      ValueError: N is less than 1, d0 is not in [sqrt(N), N], or the constant is not positive.
    """
    if not num_samples >= 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if not math.sqrt(num_samples) - 0.5 <= d0 <= num_samples:
        raise ValueError(f"d0 must be in [sqrt(N), N] = [{math.sqrt(num_samples):.4g}, {num_samples:g}], got {d0}")
    if not constant > 0:
        raise ValueError(f"constant must be positive, got {constant}")
    return max(num_samples, constant * max(num_samples * math.log(num_samples) / d0, num_samples**5 / d0**4))
