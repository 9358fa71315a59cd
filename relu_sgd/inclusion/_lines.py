"""Samples on one line through 0: they share a kink in every neuron, and so they are treated together.

Samples X_i = a_i u with a_i > 0 act on theta as a single one does, with input sqrt(sum a_i^2) u and label sum a_i Y_i
/ sqrt(sum a_i^2): the loss differs by a constant. Samples on opposite rays, X_q = -kappa X_p, are never active
together, and in the Clarke subdifferential their slopes are r_p and 1 - r_p: one kink, whose c is c_p + kappa c_q.
Lemma A.4's set lets the slopes vary independently, and is larger.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from relu_sgd._algebra import matmul
from relu_sgd.problem import Problem

__all__ = ["Lines", "merge"]


class Lines(NamedTuple):
    """A training set with one sample for every ray, and what became of the others.

    Attributes:
      problem: merged samples, each in the place of its ray's first; zeros elsewhere.
      first: the first sample on the ray of every sample; itself for X_i = 0.
      multiplicity: the number of samples that were merged into this one, 0 for those that were merged into another and
        for X_i = 0.
      opposite: the place of the other one of two opposite rays; N elsewhere.
      ratio: kappa = ||X_q|| / ||X_p||, for the opposite ray q of p; 0 elsewhere.
      leads: whether a sample stands for its line: the place of its kink.
      offset: the loss of the training set minus that of the merged one.
    """

    problem: Problem
    first: Int[Array, " N"]
    multiplicity: Int[Array, " N"]
    opposite: Int[Array, " N"]
    ratio: Float[Array, " N"]
    leads: Bool[Array, " N"]
    offset: Float[Array, ""]


def merge(problem: Problem) -> Lines:
    """One sample for every ray; two samples count as on one line when rounding cannot tell them from such."""
    X, Y = problem
    num_samples = X.shape[0]
    eps = jnp.finfo(X.dtype).eps
    lengths = jnp.linalg.norm(X, axis=1)
    exists = lengths > 0
    units = X / jnp.where(exists, lengths, 1)[:, None]

    def along(unit: Array) -> Array:
        """1 for samples on this ray, -1 on the opposite one, 0 elsewhere."""
        cosines = matmul(units, unit)
        apart = jnp.linalg.norm(units - cosines[:, None] * unit[None, :], axis=1)
        return jnp.where(exists & (apart <= 16 * eps) & jnp.any(unit != 0), jnp.sign(cosines), 0)

    relation = jax.lax.map(along, units)
    places = jnp.arange(num_samples)
    first = jnp.where(exists, jnp.argmax(relation > 0, axis=0), places)
    leads_ray = exists & (first == places)
    count = jnp.where(leads_ray, jnp.sum(relation > 0, axis=1), 0)
    # One sample stays what it is, to the bit.
    merged_length = jnp.sqrt(jnp.zeros(num_samples, X.dtype).at[first].add(lengths**2))
    summed = jnp.zeros_like(Y).at[first].add(lengths[:, None] * Y) / jnp.where(exists, merged_length, 1)[:, None]
    merged_X = jnp.where((count > 1)[:, None], merged_length[:, None] * units, jnp.where((count == 1)[:, None], X, 0))
    merged_Y = jnp.where((count > 1)[:, None], summed, jnp.where((count == 1)[:, None], Y, 0))
    opposes = relation < 0
    other = jnp.where(jnp.any(opposes, axis=1), jnp.argmax(opposes, axis=1), num_samples)
    opposite = jnp.where(leads_ray, other, num_samples)
    merged_lengths = jnp.linalg.norm(merged_X, axis=1)
    ratio = merged_lengths.at[opposite].get(mode="fill", fill_value=0) / jnp.where(leads_ray, merged_lengths, 1)
    alone = jnp.all(count == 1)
    offset = jnp.where(alone, 0, 0.5 * (jnp.sum(Y**2) - jnp.sum(merged_Y**2)))
    return Lines(Problem(merged_X, merged_Y), first, count, opposite, ratio, leads_ray & (other > places), offset)
