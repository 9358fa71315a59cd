"""The smallest width that is certified: alpha_0 measured on random neurons, or its population value, against every
condition that lives on alpha_0.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from relu_sgd._checks import finite_arrays, whole_number
from relu_sgd.theory.certificate import Certificate, certificate_of
from relu_sgd.theory.gram import gram, least_eigenvalue, operator_norm
from relu_sgd.theory.path_certificate import DescentCertificate, LocalCriterion, PathCertificate

__all__ = [
    "CONDITIONS",
    "Scaling",
    "certificates",
    "certified_widths",
    "population_certificate",
    "population_widths",
    "smallest_width",
]

# The rows of the board (`conditions`) for both layers, by name; each is below 1 where it certifies, so that they can
# be compared. "(11)" and "(10)" promise (12) and (13), the others what their certificates say.
CONDITIONS: Mapping[str, Callable[[Certificate], float]] = {
    "(11)": lambda start: 8 * start.F,
    "(10)": lambda start: start.left_side_10,
    "sharp": lambda start: start.left_side_sharp,
    "local criterion": lambda start: LocalCriterion(start.operator_norm, start.a, start.alpha).left_side,
    "path": lambda start: PathCertificate(start.operator_norm, start.a, start.alpha).left_side,
    # The left side does not depend on ||H(0)||, which only the step size does.
    "path, descent": lambda start: (
        DescentCertificate(
            start.operator_norm, start.a, start.alpha, hidden_layer_norm=start.alpha, output_norm=start.output_norm
        ).left_side
    ),
}

# Neurons are drawn in blocks of this many, each from a generator of its own: any block can be drawn again without the
# others.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Assumption 4.1, (2) and (3): W0 has entries N(0, beta_w^2), V0 has entries N(0, d1^-rho).

    Attributes:
      beta_w: standard deviation of the entries of W0. 1 for unit rows; 1 / sqrt(d0), LeCun's, for rows of norm
        sqrt(d0).
      rho: beta_v^2 = d1^-rho; 1 is LeCun's.

    Raises:
      ValueError: beta_w is not positive or rho is negative.
    """

    beta_w: float = 1.0
    rho: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.beta_w) and self.beta_w > 0):
            raise ValueError(f"beta_w must be finite and positive, got {self.beta_w}")
        if not (math.isfinite(self.rho) and self.rho >= 0):
            raise ValueError(f"rho must be finite and not negative, got {self.rho}")


def _checked(X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    X, Y = finite_arrays(X=X, Y=Y)
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y) or not X.size or not Y.size:
        raise ValueError(f"need X: N x d0 and Y: N x d2 with N >= 1, got {X.shape} and {Y.shape}")
    return X, Y


def _neurons(d0: int, d2: int, start: int, stop: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Standard normal W (d0 x any) and V (any x d2) of the neurons start, ..., stop - 1, which do not depend on how
    they are cut.
    """
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))
        # A neuron a row: rows of a block are filled in order.
        drawn = generator.standard_normal((_BLOCK, d0 + d2))
        drawn = drawn[max(start - block * _BLOCK, 0) : stop - block * _BLOCK]
        yield drawn[:, :d0].T, drawn[:, d0:]


@dataclasses.dataclass
class _Sums:
    """What a certificate needs of the first d1 neurons, each a sum over neurons."""

    d1: int
    gram: Float[np.ndarray, "N N"]
    predicted: Float[np.ndarray, "N d2"]
    hidden_squared: float
    output_squared: float

    def extended(self, X: np.ndarray, d1: int, seed: int) -> "_Sums":
        """The sums of the first d1 neurons; self stays as it is."""
        total = _Sums(d1, self.gram.copy(), self.predicted.copy(), self.hidden_squared, self.output_squared)
        for W, V in _neurons(X.shape[1], self.predicted.shape[1], self.d1, d1, seed):
            hidden = np.maximum(X @ W, 0)
            total.gram += hidden @ hidden.T
            total.predicted += hidden @ V
            total.hidden_squared += float(np.sum(W**2))
            total.output_squared += float(np.sum(V**2))
        return total

    def certificate(self, Y: np.ndarray, norm: float, scaling: Scaling) -> Certificate:
        beta_v = self.d1 ** (-scaling.rho / 2)
        smallest = float(np.linalg.eigvalsh(self.gram)[0]) if self.d1 >= len(Y) else 0.0
        return certificate_of(
            loss=0.5 * float(np.sum((Y - scaling.beta_w * beta_v * self.predicted) ** 2)),
            alpha_squared=scaling.beta_w**2 * smallest,
            operator_norm=norm,
            hidden_norm=scaling.beta_w * math.sqrt(self.hidden_squared),
            output_norm=beta_v * math.sqrt(self.output_squared),
        )


def certificates(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    widths: Sequence[int],
    *,
    scaling: Scaling | None = None,
    seed: int = 0,
) -> dict[int, Certificate]:
    """The certificates of a random start at several widths: the narrower networks are the first neurons of the
    widest, with V0 rescaled.

    Cost: one accumulation of H H^T over the widest network, and an N x N eigenvalue problem a width. Memory for a
    block of neurons.

    Args:
      X, Y: the training set.
      widths: increasing.
      scaling: the laws of W0 and V0; None for `Scaling()`.
      seed: the seed that the neurons are drawn from.

    Raises:
      ValueError: the shapes do not fit, an entry is not finite, or the widths are not increasing from 1 on.
    """
    X, Y = _checked(X, Y)
    widths = [whole_number("a width", width) for width in widths]
    if list(widths) != sorted(set(widths)) or not widths:
        raise ValueError(f"widths must be increasing and at least 1, got {list(widths)}")
    norm = operator_norm(X)
    sums = _empty(X, Y)
    at_width = {}
    for d1 in widths:
        sums = sums.extended(X, d1, seed)
        at_width[d1] = sums.certificate(Y, norm, scaling or Scaling())
    return at_width


def _empty(X: np.ndarray, Y: np.ndarray) -> _Sums:
    return _Sums(0, np.zeros((len(X), len(X))), np.zeros_like(Y), 0.0, 0.0)


def certified_widths(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    *,
    scaling: Scaling | None = None,
    seed: int = 0,
    tolerance: float = 0.01,
    max_width: int = 10_000_000,
    conditions: Sequence[str] = tuple(CONDITIONS),
) -> dict[str, int | None]:
    """The smallest certified width of a random start, by each of the conditions, with alpha_0 and the initial loss
    measured.

    The width doubles from N on until all conditions hold; then each is bisected inside the octave where it first
    held. Neurons are prefixes of one sequence, so alpha_0 grows with the width and is accumulated: the neurons beyond
    the last width that was not certified are all that a step adds. alpha_0 comes from H H^T, so it ends in rounding
    below about 1e-8 ||H||. Doubling draws fewer than twice the final number
    of neurons and each bisection fewer than half of it; log2(final / N) and, for each condition, log2(1 / tolerance)
    eigenvalue problems. Below N neurons alpha_0 = 0.

    Args:
      X, Y: the training set.
      scaling: the laws of W0 and V0; None for `Scaling()`.
      seed: the seed that the neurons are drawn from.
      tolerance: the width is certified, and (1 - tolerance) times it is not.
      max_width: the width at which to give up.
      conditions: names of `CONDITIONS`; all of them unless told otherwise.

    Returns:
      A width for each condition, None where none up to max_width is certified.

    Raises:
      ValueError: the shapes do not fit, an entry is not finite, or tolerance is not in (0, 1), max_width is below N,
        or a condition is unknown.
    """
    X, Y = _checked(X, Y)
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")
    if whole_number("max_width", max_width) < len(X):
        raise ValueError(f"max_width must be at least N = {len(X)}, below which alpha_0 is 0, got {max_width}")
    if unknown := set(conditions) - set(CONDITIONS):
        raise ValueError(f"conditions must be of {list(CONDITIONS)}, got {sorted(unknown)}")
    norm = operator_norm(X)
    scaling = scaling or Scaling()
    certified = lambda sums, name: CONDITIONS[name](sums.certificate(Y, norm, scaling)) < 1
    certified_at: dict[str, int | None] = dict.fromkeys(conditions)
    low, high = _empty(X, Y), _empty(X, Y).extended(X, len(X), seed)
    while True:
        values = high.certificate(Y, norm, scaling)
        for name in [name for name in certified_at if certified_at[name] is None and CONDITIONS[name](values) < 1]:
            below, width = low, high.d1
            # Nothing lies below N neurons.
            while low.d1 and width - below.d1 > max(1, tolerance * width):
                middle = below.extended(X, (below.d1 + width) // 2, seed)
                if certified(middle, name):
                    width = middle.d1
                else:
                    below = middle
            certified_at[name] = width
        if all(certified_at.values()) or high.d1 >= max_width:
            return certified_at
        low, high = high, high.extended(X, min(2 * high.d1, max_width), seed)


def population_certificate(
    X: Float[np.ndarray, "N d0"], Y: Float[np.ndarray, "N d2"], d1: float, *, scaling: Scaling | None = None
) -> Certificate:
    """The certificate with expectations in place of a draw: alpha^2 = beta_w^2 d1 lambda(X), and the mean loss and
    squared norms.

    Raises:
      ValueError: as `gram`, the shapes do not fit, or d1 is not positive.
    """
    return _population(X, Y, scaling or Scaling())(d1)


def _population(
    X: np.ndarray, Y: np.ndarray, scaling: Scaling, gram_matrix: np.ndarray | None = None
) -> Callable[[float], Certificate]:
    X, Y = _checked(X, Y)
    G = gram(X) if gram_matrix is None else gram_matrix
    smallest, trace, norm = least_eigenvalue(G), float(np.trace(G)), operator_norm(X)
    if smallest <= len(X) * np.finfo(float).eps * trace:
        raise ValueError(f"lambda(X) is 0 up to rounding ({smallest:.3g}): rows of X are equal, or too close")
    d2 = Y.shape[1]

    def at(d1: float) -> Certificate:
        if not d1 > 0:
            raise ValueError(f"d1 must be positive, got {d1}")
        beta_v = d1 ** (-scaling.rho / 2)
        return certificate_of(
            loss=0.5 * (float(np.sum(Y**2)) + d2 * d1 * (scaling.beta_w * beta_v) ** 2 * trace),
            alpha_squared=scaling.beta_w**2 * d1 * smallest,
            operator_norm=norm,
            hidden_norm=scaling.beta_w * math.sqrt(X.shape[1] * d1),
            output_norm=beta_v * math.sqrt(d1 * d2),
        )

    return at


def smallest_width(left_side: Callable[[float], float], low: float, high: float) -> float:
    """The width from which on a left side that falls with the width is below 1: at least `low`, and inf where it is
    not below 1 at `high`.
    """
    excess = lambda log_width: math.log(max(min(left_side(math.exp(log_width)), 1e300), 1e-300))
    if excess(math.log(low)) < 0:
        return float(low)
    if excess(math.log(high)) >= 0:
        return math.inf
    return math.exp(brentq(excess, math.log(low), math.log(high), xtol=1e-9))


def population_widths(
    X: Float[np.ndarray, "N d0"],
    Y: Float[np.ndarray, "N d2"],
    *,
    scaling: Scaling | None = None,
    gram_matrix: Float[np.ndarray, "N N"] | None = None,
) -> dict[str, float]:
    """As `certified_widths`, with `population_certificate`: no neuron is drawn, and any width is in reach.

    Args:
      X, Y: the training set.
      scaling: the laws of W0 and V0; None for `Scaling()`.
      gram_matrix: G(X), where it is known already.

    Returns:
      A width for each condition, at least N; inf where no width up to 1e30 is certified.

    Raises:
      ValueError: as `population_certificate`.
    """
    at = _population(X, Y, scaling or Scaling(), gram_matrix)
    certified_at = {}
    for name, condition in CONDITIONS.items():
        left_side = functools.partial(lambda condition, d1: condition(at(d1)), condition)
        certified_at[name] = smallest_width(left_side, len(X), 1e30)
    return certified_at
