"""The scalar comparison problem (9), and Figure 1: does Lbar(t) stay bounded, or may it explode?

y(0) = 0, y' = a exp(factor alpha t (c1 y + c2 y^2) e^(c y^2) - alpha^2 t), with factor 1 as (9) is printed. Erratum:
with a = c = c1 = c2 = 1 the solutions of (9) as printed blow up for alpha below 1.7293, far from Figure 1's range
[2.042, 2.045]; with factor 2 the threshold is 2.0441, inside it. Figure 1 must have been drawn with factor 2. Both are
computed.
"""

import enum
import math
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, ScalarLike
from scipy.optimize import bisect

__all__ = ["ComparisonSolution", "Outcome", "blow_up_threshold", "lemma_3_3", "solve_comparison"]

# The exponent is t times a function that grows with y: once it is positive it only grows, and y blows up in finite
# time. Where it is this small nothing is added to y any more.
_EXPLODING, _SETTLED = 5.0, -60.0


class Outcome(enum.IntEnum):
    """What becomes of a solution."""

    UNDECIDED = 0
    BOUNDED = 1
    BLOWS_UP = 2


class ComparisonSolution(NamedTuple):
    """A solution of (9).

    Attributes:
      y: the values at the given times; NaN after a blow-up.
      outcome: an `Outcome`.
      end: the time at which the outcome was known.
    """

    y: Float[Array, " times"]
    outcome: Int8[Array, ""]
    end: Float[Array, ""]


def _exponent(t: Any, y: Array, constants: tuple[Array, ...]) -> Array:
    alpha, _, c, c1, c2, factor = constants
    # Beyond 600 the exponential is out of range, and the outcome has long been known.
    growth = (c1 * y + c2 * y**2) * jnp.exp(jnp.minimum(c * y**2, 600.0))
    return factor * alpha * t * growth - alpha**2 * t


def _field(t: Any, y: Array, constants: tuple[Array, ...]) -> Array:
    return constants[1] * jnp.exp(jnp.minimum(_exponent(t, y, constants), 2 * _EXPLODING))


def _known(t: Any, y: Array, args: tuple[Array, ...], **_: Any) -> Array:
    exponent = _exponent(t, y, args)
    return (exponent > _EXPLODING) | (exponent < _SETTLED)


def solve_comparison(
    alpha: ScalarLike,
    times: Float[Array | np.ndarray, " times"],
    *,
    a: ScalarLike = 1.0,
    c: ScalarLike = 1.0,
    c1: ScalarLike = 1.0,
    c2: ScalarLike = 1.0,
    factor: ScalarLike = 1.0,
    t_max: float = 1000.0,
) -> ComparisonSolution:
    """The solution of (9) with equality, the largest of all. jit and vmap work, over alpha and the constants too.

    Args:
      alpha: sigma_min(H^T) at initialisation; positive.
      times: increasing, in [0, t_max], where y is wanted.
      a, c, c1, c2: the other constants of (7) and (8).
      factor: 1 as printed, 2 as Figure 1 was drawn.
      t_max: the time at which to give up.

    Raises:
      RuntimeError: JAX runs in 32 bits.
    """
    if not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise RuntimeError("the comparison problem needs jax_enable_x64: its outcome turns on the last digits")
    times = jnp.asarray(times, float)
    constants = tuple(jnp.asarray(value, float) for value in (alpha, a, c, c1, c2, factor))
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(_field),
        diffrax.Dopri8(),
        t0=0.0,
        t1=t_max,
        dt0=1e-3,
        y0=jnp.zeros(()),
        args=constants,
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-13),
        saveat=diffrax.SaveAt(subs=[diffrax.SubSaveAt(ts=times), diffrax.SubSaveAt(t1=True)]),
        event=diffrax.Event(_known),
        max_steps=20_000,
        throw=False,
    )
    assert solved.ts is not None
    assert solved.ys is not None
    (_, ends), (y, lasts) = solved.ts, solved.ys
    end, last = ends[0], lasts[0]
    exponent = _exponent(end, last, constants)
    outcome = jnp.where(
        exponent > _EXPLODING, Outcome.BLOWS_UP, jnp.where(exponent < _SETTLED, Outcome.BOUNDED, Outcome.UNDECIDED)
    )
    after = jnp.where(outcome == Outcome.BOUNDED, last, jnp.nan)
    return ComparisonSolution(jnp.where(times <= end, y, after), outcome.astype(jnp.int8), end)


def lemma_3_3(alpha: float, *, a: float = 1.0, c: float = 1.0, c1: float = 1.0, c2: float = 1.0) -> float:
    """The left side of (10) for arbitrary constants: below 1, solutions of (9) stay below 2 a / alpha^2 (Lemma 3.3).

    For the constants of a network it is `Certificate.left_side_10`.

    Raises:
      ValueError: alpha is not positive, or another constant is negative or not finite.
    """
    if not (0 < alpha < math.inf and all(0 <= constant < math.inf for constant in (a, c, c1, c2))):
        raise ValueError(f"alpha must be positive and a, c, c1, c2 not negative, got {alpha}, {a}, {c}, {c1}, {c2}")
    ratio = a / alpha / alpha
    exponent = 4 * c * ratio * ratio
    terms = 4 * (ratio * c1 + 2 * ratio * ratio * c2) / alpha
    return terms * math.exp(exponent) if exponent < 700 else math.inf


def blow_up_threshold(
    *,
    low: float = 0.5,
    high: float = 8.0,
    a: float = 1.0,
    c: float = 1.0,
    c1: float = 1.0,
    c2: float = 1.0,
    factor: float = 1.0,
    tolerance: float = 1e-6,
) -> float:
    """The alpha below which solutions of (9) blow up and above which they stay bounded, by bisection.

    Args:
      low, high: the interval that is searched.
      a, c, c1, c2, factor: as for `solve_comparison`.
      tolerance: the error allowed in the result.

    Raises:
      ValueError: solutions do not blow up at `low` or are not bounded at `high`.
      RuntimeError: JAX runs in 32 bits.
    """
    outcome = jax.jit(
        lambda alpha: solve_comparison(alpha, jnp.zeros(1), a=a, c=c, c1=c1, c2=c2, factor=factor).outcome
    )
    if not 0 < low < high or outcome(low) != Outcome.BLOWS_UP or outcome(high) != Outcome.BOUNDED:
        raise ValueError(
            f"the threshold is not in ({low}, {high}), where solutions must blow up below and stay bounded above"
        )
    # Undecided within t_max is so close to the threshold that either end will do.
    return bisect(lambda alpha: 1 if outcome(alpha) == Outcome.BOUNDED else -1, low, high, xtol=tolerance)
