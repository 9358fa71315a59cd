"""Convergence from the length of the path that W can afford: Theorem B for the inclusion (3), Theorem C for gradient
descent.

Both layers trained, any d2. alpha_0 = sigma_min(H^T) drives the decrease of L through V, and W has to travel alpha_0
/ ||X|| to use it up; every piece of the way costs loss. The proofs are in docs/conditions.md. Neither is in the
paper: (10) implies the hypothesis of B, and so does the sharp condition.
"""

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar

__all__ = ["DescentCertificate", "LocalCriterion", "PathCertificate"]


def _check(certificate: object, *names: str) -> None:
    for name in names:
        value = getattr(certificate, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


@dataclasses.dataclass(frozen=True)
class PathCertificate:
    """Theorem B: if sqrt(2) ||X|| sqrt(L(0)) < alpha_0^2, every solution of the inclusion converges to zero loss.

    With alpha_inf^2 = alpha_0^2 - sqrt(2) ||X|| sqrt(L(0)): the path of W has length at most (alpha_0 - alpha_inf) /
    ||X||, sigma_min(H^T) >= alpha_inf for all time, L(t) <= L(0) exp(-2 alpha_inf^2 t), and the whole path of theta
    has length at most sqrt(2 L(0)) / alpha_inf. sqrt(2) is the best constant: one sample, one neuron, W = V = 1. It
    holds for Lemma A.4's set as well, which may be larger than the Clarke subdifferential.

    Attributes:
      operator_norm: ||X||.
      a: sqrt(L(theta(0))).
      alpha: alpha_0(0) = sigma_min(H^T).

    Raises:
      ValueError: a number is negative or not finite.
    """

    operator_norm: float
    a: float
    alpha: float

    def __post_init__(self) -> None:
        _check(self, "operator_norm", "a", "alpha")

    @property
    def left_side(self) -> float:
        """sqrt(2) ||X|| sqrt(L(0)) / alpha_0^2, which Theorem B wants below 1: no power that could overflow. inf when
        alpha_0 is 0, but for L(0) = 0.
        """
        if self.a == 0:
            return 0.0
        return math.sqrt(2) * (self.operator_norm / self.alpha) * (self.a / self.alpha) if self.alpha > 0 else math.inf

    @property
    def holds(self) -> bool:
        """Whether Theorem B promises convergence."""
        return self.left_side < 1

    @property
    def least_alpha(self) -> float:
        """alpha_inf, below which sigma_min(H^T) never falls; 0 where nothing is promised."""
        return self.alpha * math.sqrt(max(1 - self.left_side, 0.0)) if self.holds else 0.0

    @property
    def rate(self) -> float:
        """2 alpha_inf^2: L(t) <= L(0) exp(-rate t)."""
        return 2 * self.least_alpha**2

    @property
    def hidden_path(self) -> float:
        """(alpha_0 - alpha_inf) / ||X||, the longest path of W: written as sqrt(2) a / (alpha_0 + alpha_inf), which
        does not cancel.
        """
        if self.a == 0:
            return 0.0
        return math.sqrt(2) * self.a / (self.alpha + self.least_alpha) if self.holds else math.inf

    @property
    def path(self) -> float:
        """sqrt(2 L(0)) / alpha_inf, the longest path of theta."""
        if self.a == 0:
            return 0.0
        return math.sqrt(2) * self.a / self.least_alpha if self.holds else math.inf

    def loss_bound(self, t: Float[np.ndarray, "*times"]) -> Float[np.ndarray, "*times"]:
        """A bound of L(t), sharper than L(0) exp(-rate t): W has not travelled far while little loss is gone.

        y = sqrt(L) obeys y' <= -(alpha_inf^2 + s y) y with s = sqrt(2) ||X||, so that y <= y_0 e^(-b t) / (1 + s y_0
        (1 - e^(-b t)) / b), b = alpha_inf^2. At the limit of Theorem B, b = 0, that is y_0 / (1 + s y_0 t): still
        convergence, but not exponential. Where B fails (and its limit too), L(0).
        """
        t = np.asarray(t, float)
        if self.left_side > 1:
            return np.full_like(t, self.a**2)
        b, s = self.alpha**2 * max(1 - self.left_side, 0.0), math.sqrt(2) * self.operator_norm
        # (1 - e^(-b t)) / b, and t where b is 0.
        grown = -np.expm1(-b * t) / b if b > 0 else t
        return (self.a * np.exp(-b * t) / (1 + s * self.a * grown)) ** 2


@dataclasses.dataclass(frozen=True)
class LocalCriterion:
    """Chatterjee's local criterion, for the part of the gradient that the output layer has; the same numbers as in
    `PathCertificate`.

    For a loss f >= 0 with ||f'||^2 >= alpha_r f on the ball of radius r about theta_0: if 4 f(theta_0) < r^2 alpha_r,
    the flow stays in the ball and f(t) <= f(0) exp(-alpha_r t). Here ||L'||^2 >= ||H^T E||^2 >= 2 (alpha_0 - ||X||
    r)^2 L, and r = alpha_0 / (2 ||X||) is best: 32 ||X||^2 L(0) / alpha_0^4 < 1, four times Theorem B's left side.
    """

    operator_norm: float
    a: float
    alpha: float

    @property
    def left_side(self) -> float:
        """4 L(0) / (r^2 alpha_r) = 32 ||X||^2 L(0) / alpha_0^4."""
        return 16 * PathCertificate(self.operator_norm, self.a, self.alpha).left_side ** 2

    @property
    def rate(self) -> float:
        """alpha_r = alpha_0^2 / 2."""
        return self.alpha**2 / 2

    @property
    def path(self) -> float:
        """2 sqrt(L(0) / alpha_r), at most r."""
        return 2 * math.sqrt(2) * self.a / self.alpha if self.alpha > 0 else (0.0 if self.a == 0 else math.inf)


@dataclasses.dataclass(frozen=True)
class DescentCertificate:
    """Theorem C: full-batch gradient descent without momentum converges, with the largest learning rate that the
    proof allows.

    theta_{k+1} = theta_k - eta g_k on L = 1/2 ||Y - Yhat||_F^2, with slopes of relu at 0 that may be any numbers of
    [0, 1] in every step. For kappa in (0, 1) and vbar with a_k = (1 - kappa) alpha_0 - ||X|| vbar / 2 > 0, g^2 =
    a_k^2 - sqrt(2) (1 - kappa) ||X|| sqrt(L(0)) > 0 and vbar >= ||V(0)|| + sqrt(L(0) / 2) (1 / g + 1 / (g + ||X||
    vbar)), and for eta <= `learning_rate`: L_k <= L(0) (1 - 2 eta g (g + ||X|| vbar) / (1 - kappa))^k, sum ||W_{k+1}
    - W_k|| <= (a_k - g) / ((1 - kappa) ||X||), ||V_k|| <= vbar. ||X|| vbar / 2 is what chatter may cost: signs that
    change within a step.

    In units of alpha_0 all of it depends on two numbers, `left_side` of Theorem B and ||X|| ||V(0)|| / alpha_0, and
    the step on ||H(0)|| / alpha_0 too.

    Attributes:
      operator_norm, a, alpha: as in `PathCertificate`.
      hidden_layer_norm: ||H(0)||, the operator norm; at least alpha.
      output_norm: ||V(0)||, the operator norm (the Frobenius norm will do).
      kappa: the share of the decrease that second-order terms may take; None for the one with the fastest promised
        decrease a step.

    Raises:
      ValueError: a number is negative or not finite, or kappa is not in (0, 1).
    """

    operator_norm: float
    a: float
    alpha: float
    hidden_layer_norm: float
    output_norm: float
    kappa: float | None = None

    def __post_init__(self) -> None:
        _check(self, "operator_norm", "a", "alpha", "hidden_layer_norm", "output_norm")
        if self.kappa is not None and not 0 < self.kappa < 1:
            raise ValueError(f"kappa must be in (0, 1), got {self.kappa}")

    @property
    def _numbers(self) -> tuple[float, float]:
        """sqrt(2) ||X|| a / alpha^2 and ||X|| ||V(0)|| / alpha."""
        s = PathCertificate(self.operator_norm, self.a, self.alpha).left_side
        if self.alpha == 0:
            return s, math.inf
        return s, (self.operator_norm / self.alpha) * self.output_norm

    @functools.cached_property
    def left_side(self) -> float:
        """The least of (the bound of vbar) / vbar over vbar as kappa tends to 0: below 1 where Theorem C holds for
        some kappa. inf where it is not defined.
        """
        s, u0 = self._numbers
        if s == 0 and u0 == 0:
            return 0.0
        top = _largest_output(s, 0.0)
        if not u0 < top:
            return math.inf
        minimum = minimize_scalar(
            lambda u: _output_bound(u, s, u0, 0.0) / u,
            bounds=(u0, top),
            method="bounded",
            options={"xatol": 1e-13 * top},
        )
        return float(minimum.fun)

    @functools.cached_property
    def _solved(self) -> tuple[float, float] | None:
        """The pair of kappa and ||X|| vbar / alpha."""
        s, u0 = self._numbers
        if self.kappa is not None:
            u = _fixed_output(s, u0, self.kappa)
            return None if u is None else (self.kappa, u)
        if not self.left_side < 1:
            return None
        # What holds for a kappa holds for the smaller ones.
        low, high = 1e-12, 1.0
        if _fixed_output(s, u0, low) is None:
            return None
        while high > low * (1 + 1e-6):
            middle = math.sqrt(low * high)
            if middle < 1 and _fixed_output(s, u0, middle) is not None:
                low = middle
            else:
                high = middle

        def decrease(kappa: float) -> float:
            u = _fixed_output(s, u0, kappa)
            return 0.0 if u is None else self._decrease(kappa, u)

        grid = low * np.linspace(0, 1, 50)[1:]
        best = int(np.argmax([decrease(kappa) for kappa in grid]))
        around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
        refined = float(minimize_scalar(lambda kappa: -decrease(kappa), bounds=around, method="bounded").x)
        kappa = max((float(grid[best]), refined), key=decrease)
        u = _fixed_output(s, u0, kappa)
        assert u is not None
        return kappa, u

    def _slack(self, kappa: float, u: float) -> tuple[float, float]:
        """a_k and g in units of alpha."""
        s, _ = self._numbers
        return 1 - kappa - u / 2, math.sqrt(_squared(u, s, kappa))

    def _scaled_rate(self, kappa: float, u: float) -> float:
        """The largest learning rate times alpha^2."""
        s, _ = self._numbers
        linear, g = self._slack(kappa, u)
        hidden = self.hidden_layer_norm / self.alpha + (linear - g) / (1 - kappa)
        return kappa / (max(hidden, u) ** 2 + s / 2)

    def _decrease(self, kappa: float, u: float) -> float:
        _, g = self._slack(kappa, u)
        return 2 * self._scaled_rate(kappa, u) * g * (g + u) / (1 - kappa)

    @property
    def holds(self) -> bool:
        """Whether Theorem C promises convergence, with `kappa` where it is given."""
        return self.alpha > 0 and self._solved is not None

    @property
    def learning_rate(self) -> float:
        """The largest eta: kappa / max(hbar^2, ||X||^2 vbar^2) with ||X|| sqrt(L(0) / 2) added to the maximum; 0
        where nothing is promised.

        hbar = ||H(0)|| + (a_k - g) / (1 - kappa) bounds ||H_k||, since W cannot go farther.
        """
        return self._scaled_rate(*self._solved) / self.alpha / self.alpha if self.holds and self._solved else 0.0

    @property
    def decrease(self) -> float:
        """2 eta g (g + ||X|| vbar) / (1 - kappa) at the largest eta: L_{k+1} <= L_k (1 - decrease); proportional to
        eta below it. 0 where nothing is promised.
        """
        return self._decrease(*self._solved) if self.holds and self._solved else 0.0

    @property
    def chosen_kappa(self) -> float:
        """The kappa in use; nan where nothing is promised."""
        return self._solved[0] if self.holds and self._solved else math.nan

    @property
    def output_bound(self) -> float:
        """vbar, which ||V_k|| never exceeds. inf where nothing is promised."""
        if not (self.holds and self._solved):
            return math.inf
        if self.operator_norm == 0 or self.a == 0:
            return self.output_norm
        return self._solved[1] * self.alpha / self.operator_norm

    @property
    def least_alpha(self) -> float:
        """(g + ||X|| vbar / 2) / (1 - kappa), below which sigma_min(H_k^T) never falls; 0 where nothing is
        promised.
        """
        if not (self.holds and self._solved):
            return 0.0
        kappa, u = self._solved
        _, g = self._slack(kappa, u)
        return self.alpha * (g + u / 2) / (1 - kappa)

    @property
    def hidden_path(self) -> float:
        """The largest sum of ||W_{k+1} - W_k||_F: (a_k - g) / ((1 - kappa) ||X||), which is sqrt(2) a / (a_k + g).
        inf where nothing is promised.
        """
        if not (self.holds and self._solved):
            return math.inf
        return math.sqrt(2) * self.a / (self.alpha * sum(self._slack(*self._solved)))

    @property
    def output_path(self) -> float:
        """The largest sum of ||V_{k+1} - V_k||_F: sqrt(L(0) / 2) (1 / g + 1 / (g + ||X|| vbar)). inf where nothing is
        promised.
        """
        if not (self.holds and self._solved):
            return math.inf
        kappa, u = self._solved
        _, g = self._slack(kappa, u)
        return self.a / math.sqrt(2) * (1 / g + 1 / (g + u)) / self.alpha


def _squared(u: float, s: float, kappa: float) -> float:
    """g^2 in units of alpha^2."""
    return (1 - kappa - u / 2) ** 2 - (1 - kappa) * s


def _largest_output(s: float, kappa: float) -> float:
    """The u at which g is 0."""
    return 2 * (1 - kappa - math.sqrt((1 - kappa) * s))


def _output_bound(u: float, s: float, u0: float, kappa: float) -> float:
    """u0 + s (1 / g + 1 / (g + u)) / 2, convex and increasing in u because g is concave and decreasing."""
    squared = _squared(u, s, kappa)
    if not squared > 0:
        return math.inf if s > 0 else u0
    g = math.sqrt(squared)
    return u0 + s / 2 * (1 / g + 1 / (g + u))


def _fixed_output(s: float, u0: float, kappa: float) -> float | None:
    """The least u with _output_bound(u) <= u and g > 0, or None."""
    top = _largest_output(s, kappa)
    if not u0 < top:
        return None
    excess = lambda u: _output_bound(u, s, u0, kappa) - u
    if excess(u0) <= 0:
        return u0
    lowest = float(minimize_scalar(excess, bounds=(u0, top), method="bounded", options={"xatol": 1e-13 * top}).x)
    if not excess(lowest) <= 0:
        return None
    u = float(brentq(excess, u0, lowest, xtol=1e-15 * top, rtol=1e-15))
    share = 1e-15
    while excess(u) > 0:  # On the side where the inequality holds in floating point.
        u, share = u + share * (lowest - u), 2 * share
    return u
