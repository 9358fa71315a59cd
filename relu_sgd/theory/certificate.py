"""Section 3: is convergence promised from this initialisation, which term decides, and what is promised?"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad

from relu_sgd._checks import check_fields, finite_arrays, whole_number
from relu_sgd.network import Params
from relu_sgd.problem import Problem
from relu_sgd.theory._streaming import neuron_chunks
from relu_sgd.theory.path_certificate import PathCertificate

__all__ = ["Certificate", "certificate", "certificate_of", "drift_bounds"]


def _smallest_singular_value(X: np.ndarray, chunks: Callable[[], Iterable[np.ndarray]], gram: np.ndarray) -> float:
    """sigma_min(H^T) of H = relu(X W), from H H^T; `chunks` streams the neurons once more where that is too coarse."""
    eigenvalues = np.linalg.eigvalsh(gram)
    if eigenvalues[0] > math.sqrt(np.finfo(float).eps) * eigenvalues[-1]:
        return math.sqrt(eigenvalues[0])
    # The Gram matrix squares the condition. The triangular factor of H^T has its singular values, and can be streamed
    # too.
    factor = np.zeros((0, len(X)))
    for part in chunks():
        factor = np.asarray(np.linalg.qr(np.vstack([factor, np.maximum(X @ part, 0).T]), mode="r"))
    return float(np.linalg.svd(factor, compute_uv=False)[-1])


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The constants of (7) and (8) and what follows from them; everything is a number in float64.

    The conditions depend on three ratios, k = ||X|| a / alpha^2, ||X|| ||W(0)||_F / alpha and ||X|| ||V(0)||_F /
    alpha, and are computed from these: no scale of data or weights overflows.

    Attributes:
      a: sqrt(L(theta(0))), (8).
      alpha: alpha_0(0) = sigma_min(H^T), (8).
      operator_norm: ||X||.
      hidden_norm, output_norm: ||W(0)||_F, ||V(0)||_F.

    Raises:
      ValueError: a number is negative or not finite.
    """

    a: float
    alpha: float
    operator_norm: float
    hidden_norm: float
    output_norm: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be finite and not negative, got {value}")

    @property
    def c(self) -> float:
        """||X||^2, (7)."""
        return self.operator_norm * self.operator_norm

    @property
    def c1(self) -> float:
        """2 sqrt(2) ||X||^2 ||V(0)||_F, (7)."""
        return 2 * math.sqrt(2) * self.c * self.output_norm

    @property
    def c2(self) -> float:
        """2 ||X||^3 ||W(0)||_F, (7)."""
        return 2 * self.c * self.operator_norm * self.hidden_norm

    def _ratio(self, value: float) -> float:
        return self.operator_norm / self.alpha * value if self.alpha > 0 else math.inf

    @property
    def _k(self) -> float:
        return self._ratio(self.a / self.alpha) if self.alpha > 0 else math.inf

    @property
    def terms(self) -> dict[str, float]:
        """The factors of the left side of (10), to see which is to blame."""
        if self.alpha <= 0:
            return {"alpha": 0.0}
        return {
            "4 a c1 / alpha^3": _product(8 * math.sqrt(2), self._k, self._ratio(self.output_norm)),
            "8 a^2 c2 / alpha^5": _product(16, self._k, self._k, self._ratio(self.hidden_norm)),
            "exp(4 c a^2 / alpha^4)": _exp(4 * self._k * self._k),
        }

    def _condition(self, second: float) -> float:
        if self.alpha <= 0:
            return math.inf
        first_term, second_term, exponential = self.terms.values()
        return _product(first_term + second * second_term, exponential)

    @property
    def left_side_10(self) -> float:
        """4 (a c1 / alpha^3 + 2 a^2 c2 / alpha^5) exp(4 c a^2 / alpha^4), which (10) wants below 1.

        inf when alpha is 0.
        """
        return self._condition(1.0)

    @property
    def F(self) -> float:  # noqa: N802
        """F of (11), which wants it below 1/8: (a c1 / alpha^3 + a^2 c2 / alpha^5) exp(4 c a^2 / alpha^4).

        8 F is at least the left side of (10) and at most twice it: (11) implies (10), and (10) is up to twice weaker.
        """
        return self._condition(0.5) / 4

    @property
    def left_side_sharp(self) -> float:
        """A weaker condition than the paper's, met where it is below 1: a / integral of (alpha - ||X|| B(y))^2 dy.

        B is the sharper bound of the drift of W (`drift_bounds`), and the integral runs from 0 to where ||X|| B(y) =
        alpha. By Weyl (4), alpha_0 >= alpha - ||X|| B(Lbar) along a solution, so that Lbar' <= a exp(-I) with I' >=
        (alpha - ||X|| B(Lbar))^2. As a function of y = Lbar, a exp(-I) falls by at least (alpha - ||X|| B(y))^2 per
        unit, so Lbar stops before alpha is used up if the integral exceeds a. It replaces (u - v)^2 >= u^2 - 2 u v and
        the two constants 1/2 in Lemma 3.3's proof.

        It does not promise (12), whose rate needs that alpha_0^2 stays above alpha^2 / 2. What it promises is what
        `path` does, whose left side it implies to be below 9 acosh(2) / 2 - 3 sqrt(3) = 0.7302: the integral is
        largest at V(0) = 0 and ||X|| ||W(0)||_F = alpha, the least that there is. So L(t) <= L(0) exp(-0.539 t
        alpha^2), and theta's path has at most the length 2.73 a / alpha, which is less than (13) allows.
        """
        if self.alpha <= 0:
            return math.inf
        if self.a == 0 or (self.output_norm == 0 and self.hidden_norm == 0):
            return 0.0
        hidden, output = self._ratio(self.hidden_norm), self._ratio(self.output_norm)
        if not math.isfinite(hidden + output):
            return math.inf
        # In units of alpha, and of 1 / (sqrt(2) ||X||) for y.
        drift = lambda z: output * math.sinh(z) + 2 * hidden * math.sinh(z / 2) ** 2
        root = math.hypot(math.sqrt(1 + 2 * hidden), output)
        end = math.log1p((1 + (1 + 2 * hidden) / (output + root)) / (hidden + output))
        # On the unit interval, so that the quadrature meets no extreme scale.
        mean, _ = quad(lambda x: (1 - drift(x * end)) ** 2, 0, 1)
        return math.sqrt(2) * self._k / (end * mean)

    @property
    def path(self) -> PathCertificate:
        """Theorem B for the same start: it is implied by the sharp condition, and by (10) with a left side below
        0.3193.
        """
        return PathCertificate(self.operator_norm, self.a, self.alpha)

    @property
    def margins(self) -> dict[str, float]:
        """How far each condition is from its limit, as limit - value; positive where it holds."""
        return {
            "(10)": 1 - self.left_side_10,
            "(11)": 1 / 8 - self.F,
            "sharp": 1 - self.left_side_sharp,
            "path": 1 - self.path.left_side,
        }

    @property
    def is_certified(self) -> bool:
        """Whether (10) holds, the weaker of the paper's own conditions: then (12) and (13) do."""
        return self.left_side_10 < 1

    def loss_bound(self, t: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
        """(12): L(theta(t)) <= L(theta(0)) exp(-t alpha_0(0)^2), promised where (10) or (11) holds."""
        return self.a * self.a * np.exp(-np.asarray(t, float) * self.alpha * self.alpha)

    @property
    def drift(self) -> float:
        """(13): ||theta(t) - theta(0)|| <= u ||theta(0)|| e^u for all t, u = 4 ||X|| a / alpha^2, where (10) holds.

        inf when alpha is 0.
        """
        u = 4 * self._k
        return _product(u, math.hypot(self.hidden_norm, self.output_norm), _exp(u)) if self.alpha > 0 else math.inf

    @property
    def sharp_drift(self) -> float:
        """As `drift`, sharper, where (10) holds: ||theta(0)|| (exp(u / sqrt(2)) - 1)."""
        growth = _exp(4 * self._k / math.sqrt(2), math.expm1)
        return _product(math.hypot(self.hidden_norm, self.output_norm), growth) if self.alpha > 0 else math.inf


def _exp(exponent: float, function: Callable[[float], float] = math.exp) -> float:
    return function(exponent) if exponent < 700 else math.inf


def _product(*factors: float) -> float:
    """0 where a factor is 0, whatever the others: ratios of extreme numbers may be infinite."""
    return 0.0 if 0 in factors else math.prod(factors)


def certificate_of(
    loss: float, alpha_squared: float, operator_norm: float, hidden_norm: float, output_norm: float
) -> Certificate:
    """The certificate from L(theta(0)), lambda_min(H H^T), ||X||, ||W(0)||_F and ||V(0)||_F.

    Raises:
      ValueError: a number is negative (alpha_squared may be, by rounding) or not finite.
    """
    if not (math.isfinite(loss) and loss >= 0):
        raise ValueError(f"loss must be finite and not negative, got {loss}")
    alpha = math.sqrt(alpha_squared) if alpha_squared > 0 else 0.0 if alpha_squared <= 0 else math.nan
    return Certificate(math.sqrt(loss), alpha, operator_norm, hidden_norm, output_norm)


def _scaled(array: np.ndarray) -> tuple[np.ndarray, int]:
    """The array divided by a power of 2 that makes its largest entry about 1, and the exponent: exact."""
    exponent = math.frexp(float(np.max(np.abs(array), initial=0.0)))[1]
    return np.ldexp(array, -exponent), exponent


def certificate(params: Params, problem: Problem, *, chunk: int = 4096) -> Certificate:
    """The certificate of an initialisation, (7)-(13). d2 may be any.

    Memory is that of the inputs, an N x N matrix and N x chunk hidden values. The error of alpha is about eps ||H||:
    where H H^T would hide it (below 1e-4 ||H||) it is taken from a triangular factor of H^T, streamed as well.

    Args:
      params: theta(0).
      problem: the training set.
      chunk: neurons at a time.

    Raises:
      TypeError: `params` or `problem` is of another kind.
      ValueError: the shapes do not fit, an entry is not finite, chunk is no whole number from 1 on, or a number of the
        certificate is out of float64's range.
    """
    chunk = whole_number("chunk", chunk)
    check_fields("params", params, Params)
    check_fields("problem", problem, Problem)
    W, V, X, Y = finite_arrays(W=params.W, V=params.V, X=problem.X, Y=problem.Y)
    if not (
        X.ndim == Y.ndim == W.ndim == V.ndim == 2
        and (len(X), X.shape[1], W.shape[1], V.shape[1]) == (len(Y), W.shape[0], V.shape[0], Y.shape[1])
    ):
        raise ValueError(
            f"need X: N x d0, Y: N x d2, W: d0 x d1, V: d1 x d2; got {X.shape}, {Y.shape}, {W.shape}, {V.shape}"
        )
    # Near 1 products and squares are within range, whatever the scales.
    (W, of_W), (V, of_V), (X, of_X), (Y, of_Y) = map(_scaled, (W, V, X, Y))
    predicted = np.zeros_like(Y)
    gram = np.zeros((len(X), len(X)))
    for start, part in zip(range(0, W.shape[1], chunk), neuron_chunks(W, chunk), strict=True):
        hidden = np.maximum(X @ part, 0)
        predicted += hidden @ V[start : start + chunk]
        gram += hidden @ hidden.T
    # With fewer neurons than samples H has no full row rank.
    alpha = _smallest_singular_value(X, lambda: neuron_chunks(W, chunk), gram) if W.shape[1] >= len(X) else 0.0
    of_prediction = of_X + of_W + of_V
    of_error = max(of_Y, of_prediction)
    error = np.linalg.norm(np.ldexp(Y, of_Y - of_error) - np.ldexp(predicted, of_prediction - of_error))
    with np.errstate(over="ignore"):
        return Certificate(
            a=float(np.ldexp(error / math.sqrt(2), of_error)),
            alpha=float(np.ldexp(alpha, of_X + of_W)),
            operator_norm=float(np.ldexp(np.linalg.norm(X, 2), of_X)),
            hidden_norm=float(np.ldexp(np.linalg.norm(W), of_W)),
            output_norm=float(np.ldexp(np.linalg.norm(V), of_V)),
        )


def drift_bounds(start: Certificate, integral: Float[np.ndarray, "*times"]) -> dict[str, Float[np.ndarray, "*times"]]:
    """Lemma 3.1's bounds along a solution, from the integral Lbar(t) of sqrt(L) along it.

    Returns:
      "theta": (5), of ||theta(t) - theta(0)||. "hidden": (6) divided by ||X||, of ||W(t) - W(0)||_F. "hidden_sharp": a
      sharper one of the same, ||V0|| sinh(k Lbar) + ||W0|| (cosh(k Lbar) - 1) with k = sqrt(2) ||X||.
    """
    z = start.operator_norm * np.asarray(integral, float)
    k = math.sqrt(2) * z
    hidden, output = start.hidden_norm, start.output_norm
    growth = lambda exponent: np.exp(np.minimum(exponent, 700))
    return {
        "theta": k * (hidden + output) * growth(k),
        "hidden": (k * output + z**2 * hidden) * growth(z**2),
        "hidden_sharp": output * np.sinh(np.minimum(k, 700)) + 2 * hidden * np.sinh(np.minimum(k, 700) / 2) ** 2,
    }
