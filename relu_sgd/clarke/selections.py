"""Which element of the subdifferential a step of descent takes, where relu has a kink.

A selection gives the slope of relu for every preactivation: 1 and 0 where it is positive and negative, and a choice in
[0, 1] at kinks. `descend` takes a number or an array for `at_zero` (a fixed slope), or one of these.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from relu_sgd import _draws as draws
from relu_sgd._checks import whole_number
from relu_sgd.clarke._product_set import subdifferential
from relu_sgd.network import Params, preactivations
from relu_sgd.problem import Problem

__all__ = ["Selection", "minimum_norm", "random"]

# From theta, the samples of the step, and a random key for the step, to N x d1 slopes.
Selection: TypeAlias = Callable[[Params, Problem, Key[Array, ""]], Float[Array, "N d1"]]


def random() -> Selection:
    """A slope that is uniform in [0, 1] at every exact zero, drawn anew at every step.

    The draw of neuron j does not depend on how many neurons, padding included, come after it.
    """

    def slopes(params: Params, problem: Problem, key: Key[Array, ""]) -> Float[Array, "N d1"]:
        Z = preactivations(params, problem)
        drawn = (1 + draws.uniform(key, (Z.shape[1], Z.shape[0])).T.astype(Z.dtype)) / 2
        return jnp.where(Z > 0, 1, jnp.where(Z < 0, 0, drawn))

    return slopes


def minimum_norm(max_kinks: int = 8, tolerance: float | None = None) -> Selection:
    """The slopes whose gradient has the least norm in the product set of Lemma A.4.

    Args:
      max_kinks: room for the kinks of one neuron; those beyond it get slope 1/2.
      tolerance: the relative size of a preactivation that counts as zero, see `clarke.kink_sides`.

    Raises:
      ValueError: `max_kinks` is no whole number from 1 on.
    """
    max_kinks = whole_number("max_kinks", max_kinks)

    def slopes(params: Params, problem: Problem, key: Key[Array, ""]) -> Float[Array, "N d1"]:
        del key
        num_samples, d1 = problem.X.shape[0], params.W.shape[1]
        room = min(max_kinks, num_samples)
        product = subdifferential(params, problem, trained_layers="hidden", tolerance=tolerance, max_kinks=room)
        has_room = jnp.zeros((num_samples + 1, d1), bool).at[product.samples, jnp.arange(d1)[:, None]].set(True)[:-1]
        # Most steps meet no kink, and then there is nothing to solve.
        least_norm = jax.lax.cond(
            jnp.any(has_room),
            lambda: product.minimum_norm().slopes,
            lambda: jnp.where(product.sides > 0, 1, 0).astype(params.W.dtype),
        )
        return jnp.where((product.sides == 0) & ~has_room, 0.5, least_norm)

    return slopes
