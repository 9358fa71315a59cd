"""Wide networks, some neurons at a time."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

from relu_sgd._checks import whole_number

__all__ = ["hidden_gram", "neuron_chunks"]


def neuron_chunks(W: Float[np.ndarray, "d0 d1"], size: int = 4096) -> Iterator[np.ndarray]:
    """The neurons of W, `size` at a time.

    Raises:
      ValueError: the size is no whole number, or less than 1.
    """
    size = whole_number("chunk", size)
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
