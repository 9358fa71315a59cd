"""How one neuron leaves a point on its kinks: the solutions of v(t)' in -dL for a short time, one neuron at a time, on
the host.

About such a point, with everything else held fixed, the loss is a positively homogeneous and piecewise linear function
psi of the neuron's displacement u, on the cells of the arrangement of the lines' hyperplanes. A solution from u = 0
either stays there, within the span of the lines, or leaves along a critical direction: u = t v with v in -d psi(v).
(|u| u' has a radial part -psi(u) and a tangential part that descends psi on the sphere: in logarithmic time every
solution emanates from a critical point, and if it does not stay there it ends in another one of lower psi.) So the
solution is unique if and only if there is exactly one such v, 0 included; and v = 0 alone if and only if psi >= 0,
which the rays of the arrangement decide: psi is linear on the cones that they span. d psi is the Clarke
subdifferential, the hull of the cells' gradients, not the product set of Lemma A.4.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import lsq_linear

from relu_sgd.clarke.hull import ClarkeHull, achievable_patterns, rays
from relu_sgd.inclusion._solve import Status

__all__ = ["Continuation", "Field", "continuations", "projection", "slopes"]

# Lines whose directions depend on each other up to this count as dependent; products of unit vectors below it as 0.
_RANK = 1e-9
# The cells of more lines than these are not enumerated, nor more sign vectors.
_MOST_LINES_WITH_CELLS, _MOST_SIGNS = 16, 1000


class Field(NamedTuple):
    """The velocities of one neuron about a point on K of its kinks, at most one for each line through the origin.

    Attributes:
      units: K x d0, the lines' directions.
      above, below: K, what a line adds to the velocity, along its unit vector, on its positive side and on its
        negative one.
      free: d0, the velocity without them.
    """

    units: Float[np.ndarray, "K d0"]
    above: Float[np.ndarray, " K"]
    below: Float[np.ndarray, " K"]
    free: Float[np.ndarray, " d0"]

    def velocity(self, sides: np.ndarray) -> np.ndarray:
        """Of a side 1 or -1 for every line; one with 0 adds nothing."""
        return self.free + np.where(sides > 0, self.above, np.where(sides < 0, self.below, 0)) @ self.units

    def on(self, sides: np.ndarray) -> "Field":
        """The field near a point on the lines whose side is 0, which the others have left."""
        at = sides == 0
        return Field(self.units[at], self.above[at], self.below[at], self.velocity(sides))

    def growth(self, directions: np.ndarray) -> np.ndarray:
        """psi, for many directions."""
        products = directions @ self.units.T
        return -directions @ self.free - np.sum(products * np.where(products > 0, self.above, self.below), axis=1)


class Continuation(NamedTuple):
    """A critical direction, and the sides of the lines on which it may run.

    Attributes:
      velocity: d0.
      options: each K sides: 1, -1, or 0 where the line is held. More than one when speeds and multipliers vanish
        together, so that the first order does not decide; then none of them is sure.
      is_sure: whether the only option is a solution.
    """

    velocity: Float[np.ndarray, " d0"]
    options: tuple[Int[np.ndarray, " K"], ...]
    is_sure: bool


def projection(units: Float[np.ndarray, "K d0"]) -> Float[np.ndarray, "d0 d0"]:
    """Onto the orthogonal complement of the lines."""
    return np.eye(units.shape[1]) - np.linalg.pinv(units, rcond=_RANK) @ units


def _signs(products: np.ndarray, tolerance: float) -> np.ndarray:
    return np.where(np.abs(products) <= tolerance, 0, np.sign(products)).astype(int)


def _are_independent(units: np.ndarray) -> bool:
    return bool(np.linalg.matrix_rank(units, tol=_RANK) == len(units))


def _is_product(field: Field) -> bool:
    """Whether the hull of the cells' velocities is that of all patterns: independent lines, or jumps of one sign."""
    jumps = field.above - field.below
    return bool(_are_independent(field.units) or (jumps <= 0).all() or (jumps >= 0).all())


def _least_norm(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """The least velocity over slopes in [0, 1], and those slopes."""
    start, moves = field.velocity(-np.ones(len(field.units))), (field.above - field.below)[:, None] * field.units
    # Of all slopes that hold still, those of least norm where they are allowed.
    least = np.linalg.lstsq(moves.T, -start, rcond=_RANK)[0]
    if (least < 0).any() or (least > 1).any():
        least = lsq_linear(moves.T, -start, bounds=(0, 1), method="bvls", tol=1e-15).x
    return start + least @ moves, least


def slopes(field: Field) -> Float[np.ndarray, " K"]:
    """Slopes in [0, 1] with which the lines hold the neuron: those of the Clarke hull's element nearest to 0 in their
    span.
    """
    within = field._replace(free=field.free - projection(field.units) @ field.free)
    if _is_product(field) or len(field.units) > _MOST_LINES_WITH_CELLS:
        return np.clip(_least_norm(within)[1], 0, 1)
    hull, patterns = _hull(within)
    return hull.weights(np.zeros(field.free.shape)) @ patterns


def _hull(field: Field) -> tuple[ClarkeHull, np.ndarray]:
    patterns = achievable_patterns(field.units)
    vertices = np.stack([field.velocity(np.where(pattern, 1, -1)) for pattern in patterns])
    return ClarkeHull(vertices, patterns, np.arange(len(field.units))), patterns


def _stay(field: Field, tolerance: float) -> Continuation | Status | None:
    """The continuation on which all lines are held, if it is a solution, up to the tolerance.

    BRANCHING when it is one, and a solution can leave it at any time; None when it is none.
    """
    still = np.zeros(len(field.units), int)
    if not len(still):
        return Continuation(field.free, (still,), True)
    velocity = projection(field.units) @ field.free
    within = field._replace(free=field.free - velocity)
    directions = rays(field.units)
    convex = bool((field.above - field.below <= tolerance).all())
    if directions is None:
        if not convex:
            return Status.UNDECIDED
        holds = float(np.linalg.norm(_least_norm(within)[0])) <= tolerance
        return Continuation(velocity, (still,), True) if holds else None
    growth = within.growth(directions)
    tied = _signs(directions @ field.units.T, _RANK)[np.abs(growth) <= tolerance]
    if (growth >= -tolerance).all():
        return Continuation(velocity, (still, *_alternatives(field, tied)), not len(tied))
    if convex:
        return None
    if _is_product(field):
        holds = float(np.linalg.norm(_least_norm(within)[0])) <= tolerance
    elif len(field.units) > _MOST_LINES_WITH_CELLS:
        return Status.UNDECIDED
    else:
        holds = _hull(within)[0].distance(np.zeros(field.free.shape)) <= 10 * tolerance
    if holds and len(tied) and _are_independent(field.units):
        # With a multiplier at its bound the line may as well be let go: if that is no solution, holding it is none.
        return Continuation(velocity, tuple(_alternatives(field, tied)), False)
    return Status.BRANCHING if holds else None


def _alternatives(field: Field, tied: np.ndarray) -> Iterator[np.ndarray]:
    """Sides instead of 0 that rays without growth allow; all their combinations where the lines are independent."""
    if len(tied) and not _are_independent(field.units):
        yield from tied
    elif len(tied):
        choices = [(0, *sorted(set(column[column != 0]))) for column in tied.T]
        yield from map(np.array, itertools.islice(itertools.product(*choices), 1, _MOST_SIGNS))


def continuations(field: Field, tolerance: float) -> list[Continuation] | Status:
    """All critical directions, or what is known without them.

    Args:
      field: about the point.
      tolerance: speeds up to it count as 0.
    """
    stay = _stay(field, tolerance)
    if isinstance(stay, Status):
        return stay
    if isinstance(stay, Continuation) and len(stay.options) and not stay.options[0].any():
        return [stay]
    jumps = field.above - field.below
    concave = np.flatnonzero(jumps > tolerance)
    convex = np.flatnonzero(jumps <= tolerance)
    if 3 ** len(concave) > _MOST_SIGNS:
        return Status.UNDECIDED
    continued: list[Continuation] = []
    # With the signs at the concave lines given, psi is convex on the rest, and has one critical direction.
    for signs in itertools.product((-1, 0, 1), repeat=len(concave)):
        sides = -np.ones(len(jumps), int)
        sides[concave] = signs
        along = projection(field.units[sides == 0])
        inner = Field(
            field.units[convex] @ along,
            field.above[convex],
            field.below[convex],
            along @ field._replace(below=np.where(jumps > tolerance, field.below, 0)).velocity(sides),
        )
        velocity = _least_norm(inner)[0]
        reached = _signs(field.units @ velocity, tolerance)
        if (reached[concave] != signs).any():
            continue
        there = _stay(field.on(reached), tolerance)
        if isinstance(there, Status):
            return there
        if isinstance(there, Continuation):
            options = []
            for option in there.options:
                sides = reached.copy()
                sides[reached == 0] = option
                options.append(sides)
            continued.append(there._replace(options=tuple(options)))
    if sum(continuation.is_sure for continuation in continued) > 1:
        return Status.BRANCHING
    return continued or Status.UNDECIDED
