"""What a step descends on, from the losses of its samples."""

from typing import Literal, TypeAlias, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Normalization", "loss_scale", "normalize"]

Normalization: TypeAlias = Literal["half_sum", "mean", "sample_mean"]


def loss_scale(num_samples: int, d2: int, normalization: Normalization) -> float:
    """The objective divided by the half sum: 1 for "half_sum", 2 / (samples d2) for "mean", 1 / samples for
    "sample_mean".

    Raises:
      ValueError: `normalization` is none of them.
    """
    if normalization == "half_sum":
        return 1.0
    if normalization == "mean":
        return 2 / (num_samples * d2)
    if normalization == "sample_mean":
        return 1 / num_samples
    raise ValueError(f"normalization must be one of {get_args(Normalization)}, got {normalization!r}")


def normalize(losses: Float[Array, " samples"], d2: int, normalization: Normalization) -> Float[Array, ""]:
    """The objective that a step descends on, from the sample losses 1/2 ||Y_i - Yhat_i||^2.

    "half_sum" is their sum, the paper's L (and L^b on a mini-batch, Section 5). "mean" is the mean squared error over
    all entries, (2 / (samples d2)) times the sum, which the authors' released code descends on. "sample_mean" is the
    mean of the sample losses, whatever they are.

    Raises:
      ValueError: `normalization` is none of them.
    """
    return jnp.sum(losses) * loss_scale(losses.shape[0], d2, normalization)
