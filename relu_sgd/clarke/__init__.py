"""The subdifferential of the loss: the product set of Lemma A.4, the true Clarke set of a neuron (`hull`), and which
element a step of descent takes (`selections`).
"""

from relu_sgd import _submodules
from relu_sgd.clarke._product_set import (
    Exactness,
    Membership,
    MinimumNorm,
    Subdifferential,
    kink_sides,
    subdifferential,
)

__all__ = ["Exactness", "Membership", "MinimumNorm", "Subdifferential", "kink_sides", "subdifferential"]

__getattr__, __dir__ = _submodules.lazily(__name__, __path__, __all__)
