"""Section 3: is convergence promised from this initialisation, which term decides, and what is promised?"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float
from scipy.integrate import quad
from scipy.optimize import brentq

from relu_sgd.network import Params
from relu_sgd.problem import Problem

__all__ = ["Certificate", "certificate", "certificate_of", "drift_bounds", "hidden_gram", "neuron_chunks"]


def neuron_chunks(W: Float[np.ndarray, "d0 d1"], size: int = 4096) -> Iterator[np.ndarray]:
    """The neurons of W, `size` at a time."""
    for start in range(0, W.shape[1], size):
        yield np.asarray(W[:, start : start + size], float)


def hidden_gram(X: Float[np.ndarray, "N d0"], chunks: Iterable[np.ndarray]) -> Float[np.ndarray, "N N"]:
    """H H^T for H = relu(X W), with the neurons streamed: memory for one chunk, however many there are.

    Args:
      X: the samples.
      chunks: parts of W, d0 x any, see `neuron_chunks`; they may be drawn on the way.
    """
    X = np.asarray(X, float)
    total = np.zeros((len(X), len(X)))
    for W in chunks:
        hidden = np.maximum(X @ W, 0)
        total += hidden @ hidden.T
    return total


@dataclasses.dataclass(frozen=True)
class Certificate:
    """The constants of (7) and (8) and what follows from them; everything is a number in float64.

    Attributes:
      a: sqrt(L(theta(0))), (8).
      alpha: alpha_0(0) = sigma_min(H^T), (8).
      c, c1, c2: ||X||^2, 2 sqrt(2) ||X||^2 ||V(0)||_F and 2 ||X||^3 ||W(0)||_F, (7).
      operator_norm: ||X||.
      hidden_norm, output_norm: ||W(0)||_F, ||V(0)||_F.
    """

    a: float
    alpha: float
    c: float
    c1: float
    c2: float
    operator_norm: float
    hidden_norm: float
    output_norm: float

    @property
    def _exponential(self) -> float:
        exponent = 4 * self.c * self.a**2 / self.alpha**4 if self.alpha > 0 else math.inf
        return math.exp(exponent) if exponent < 700 else math.inf

    @property
    def left_side_10(self) -> float:
        """4 (a c1 / alpha^3 + 2 a^2 c2 / alpha^5) exp(4 c a^2 / alpha^4), which (10) wants below 1. inf when alpha is 0."""
        if self.alpha <= 0:
            return math.inf
        return 4 * (self.a * self.c1 / self.alpha**3 + 2 * self.a**2 * self.c2 / self.alpha**5) * self._exponential

    @property
    def F(self) -> float:  # noqa: N802
        """F of (11), which wants it below 1/8: (a c1 / alpha^3 + a^2 c2 / alpha^5) exp(4 c a^2 / alpha^4).

        8 F is at least the left side of (10) and at most twice it: (11) implies (10), and (10) is up to twice weaker.
        """
        if self.alpha <= 0:
            return math.inf
        return (self.a * self.c1 / self.alpha**3 + self.a**2 * self.c2 / self.alpha**5) * self._exponential

    @property
    def left_side_sharp(self) -> float:
        """A sharper condition than the paper's, below 1 where convergence is certified: a / integral of (alpha - ||X|| B(y))^2 dy.

        B is the sharper bound of the drift of W (`drift_bounds`), and the integral runs from 0 to where ||X|| B(y) = alpha. By
        Weyl (4), alpha_0 >= alpha - ||X|| B(Lbar) along a solution, so that Lbar' <= a exp(-I) and I' >= (alpha - ||X|| B(Lbar))^2.
        As a function of y = Lbar, exp(-I) falls by at least (alpha - ||X|| B(y))^2 / a per unit, so Lbar stops before alpha is
        used up if the integral exceeds a. It replaces (u - v)^2 >= u^2 - 2 u v and the two constants 1/2 in Lemma 3.3's proof.
        """
        if self.alpha <= 0:
            return math.inf
        if self.a == 0:
            return 0.0
        k = math.sqrt(2) * self.operator_norm
        drift = lambda y: (
            self.operator_norm * (self.output_norm * math.sinh(k * y) + self.hidden_norm * (math.cosh(k * y) - 1))
        )
        if self.output_norm == 0 and self.hidden_norm == 0:
            return 0.0
        end = 1.0 / k
        while drift(end) > self.alpha:
            end /= 2
        while drift(end) < self.alpha:
            end *= 2
        end = brentq(lambda y: drift(y) - self.alpha, end / 2, end, xtol=1e-300, rtol=1e-14)
        # On the unit interval, so that the quadrature meets no extreme scale.
        mean, _ = quad(lambda x: (1 - drift(x * end) / self.alpha) ** 2, 0, 1)
        return self.a / (self.alpha**2 * end * mean)

    @property
    def margins(self) -> dict[str, float]:
        """How far each condition is from its limit, as limit - value; positive is certified."""
        return {"(10)": 1 - self.left_side_10, "(11)": 1 / 8 - self.F, "sharp": 1 - self.left_side_sharp}

    @property
    def is_certified(self) -> bool:
        """Whether (10) promises convergence: the weakest of the paper's own conditions."""
        return self.left_side_10 < 1

    @property
    def terms(self) -> dict[str, float]:
        """The factors of the left side of (10), to see which is to blame."""
        if self.alpha <= 0:
            return {"alpha": 0.0}
        return {
            "4 a c1 / alpha^3": 4 * self.a * self.c1 / self.alpha**3,
            "8 a^2 c2 / alpha^5": 8 * self.a**2 * self.c2 / self.alpha**5,
            "exp(4 c a^2 / alpha^4)": self._exponential,
        }

    def loss_bound(self, t: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
        """(12): L(theta(t)) <= L(theta(0)) exp(-t alpha_0(0)^2), promised where a condition holds."""
        return self.a**2 * np.exp(-np.asarray(t) * self.alpha**2)

    @property
    def drift(self) -> float:
        """(13): ||theta(t) - theta(0)|| <= u ||theta(0)|| e^u for all t, u = 4 ||X|| a / alpha^2. inf when alpha is 0."""
        if self.alpha <= 0:
            return math.inf
        u = 4 * self.operator_norm * self.a / self.alpha**2
        return u * math.hypot(self.hidden_norm, self.output_norm) * math.exp(min(u, 700))

    @property
    def sharp_drift(self) -> float:
        """As `drift`, sharper: ||theta(0)|| (exp(u / sqrt(2)) - 1)."""
        if self.alpha <= 0:
            return math.inf
        u = 4 * self.operator_norm * self.a / self.alpha**2
        return math.hypot(self.hidden_norm, self.output_norm) * math.expm1(min(u / math.sqrt(2), 700))


def certificate_of(
    loss: float, alpha_squared: float, operator_norm: float, hidden_norm: float, output_norm: float
) -> Certificate:
    """The certificate from L(theta(0)), lambda_min(H H^T), ||X||, ||W(0)||_F and ||V(0)||_F.

    Raises:
      ValueError: a number is negative (alpha_squared may be, by rounding) or not finite.
    """
    values = dict(loss=loss, operator_norm=operator_norm, hidden_norm=hidden_norm, output_norm=output_norm)
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    return Certificate(
        a=math.sqrt(loss),
        alpha=math.sqrt(max(alpha_squared, 0.0)),
        c=operator_norm**2,
        c1=2 * math.sqrt(2) * operator_norm**2 * output_norm,
        c2=2 * operator_norm**3 * hidden_norm,
        operator_norm=operator_norm,
        hidden_norm=hidden_norm,
        output_norm=output_norm,
    )


def certificate(params: Params, problem: Problem, *, chunk: int = 4096) -> Certificate:
    """The certificate of an initialisation, (7)-(13). d2 may be any.

    Memory is that of the inputs, an N x N matrix and N x chunk hidden values.

    Args:
      params: theta(0).
      problem: the training set.
      chunk: neurons at a time.

    Raises:
      ValueError: the shapes do not fit, an entry is not finite, or chunk is less than 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    W, V, X, Y = (np.asarray(array, float) for array in (*params, *problem))
    if not (
        X.ndim == Y.ndim == W.ndim == V.ndim == 2
        and (len(X), X.shape[1], W.shape[1], V.shape[1]) == (len(Y), W.shape[0], V.shape[0], Y.shape[1])
    ):
        raise ValueError(
            f"need X: N x d0, Y: N x d2, W: d0 x d1, V: d1 x d2; got {X.shape}, {Y.shape}, {W.shape}, {V.shape}"
        )
    predicted = np.zeros_like(Y)
    gram = np.zeros((len(X), len(X)))
    for start, part in zip(range(0, W.shape[1], chunk), neuron_chunks(W, chunk), strict=True):
        hidden = np.maximum(X @ part, 0)
        predicted += hidden @ V[start : start + chunk]
        gram += hidden @ hidden.T
    # With fewer neurons than samples H has no full row rank, and what eigvalsh finds is rounding.
    smallest = float(np.linalg.eigvalsh(gram)[0]) if W.shape[1] >= len(X) else 0.0
    return certificate_of(
        loss=0.5 * float(np.sum((Y - predicted) ** 2)),
        alpha_squared=smallest,
        operator_norm=float(np.linalg.norm(X, 2)),
        hidden_norm=float(np.linalg.norm(W)),
        output_norm=float(np.linalg.norm(V)),
    )


def drift_bounds(found: Certificate, integral: Float[np.ndarray, "*times"]) -> dict[str, Float[np.ndarray, "*times"]]:
    """Lemma 3.1's bounds along a solution, from the integral Lbar(t) of sqrt(L) along it.

    Returns:
      "theta": (5), of ||theta(t) - theta(0)||. "hidden": (6) divided by ||X||, of ||W(t) - W(0)||_F. "hidden_sharp": a sharper one
      of the same, ||V0|| sinh(k Lbar) + ||W0|| (cosh(k Lbar) - 1) with k = sqrt(2) ||X||.
    """
    integral = np.asarray(integral, float)
    k = math.sqrt(2) * found.operator_norm
    return {
        "theta": k * (found.hidden_norm + found.output_norm) * integral * np.exp(k * integral),
        "hidden": 0.5
        * (found.c1 * integral + found.c2 * integral**2)
        * np.exp(found.c * integral**2)
        / found.operator_norm,
        "hidden_sharp": found.output_norm * np.sinh(k * integral) + found.hidden_norm * (np.cosh(k * integral) - 1),
    }
