"""When does gradient descent on a ReLU network find a global minimum? The pure-functional core.

After B. Polaczyk and J. Cyranka, "Improved overparametrization bounds for global convergence of SGD for shallow neural
networks" (TMLR 2023). Arrays go in and arrays come out; no flag, file or plot is known here.

All modules are attributes: after `import relu_sgd` there are `relu_sgd.inclusion.solve`, `relu_sgd.theory.certificate`
and so on, imported when they are first used.
"""

from relu_sgd import _submodules
from relu_sgd.activation import relu
from relu_sgd.descent import (
    Descent,
    DescentResult,
    DescentState,
    Evaluation,
    descend,
    gradient_norm_below,
    mean_loss_below,
    mean_squared_error_below,
    relative_error_below,
    zero_loss,
)
from relu_sgd.dynamics import Dynamics, Status, Stepwise
from relu_sgd.network import Params, hidden_layer, jacobian_gram, loss, preactivations, predict, sample_losses
from relu_sgd.problem import Problem

__all__ = [
    "Descent",
    "DescentResult",
    "DescentState",
    "Dynamics",
    "Evaluation",
    "Params",
    "Problem",
    "Status",
    "Stepwise",
    "descend",
    "gradient_norm_below",
    "hidden_layer",
    "jacobian_gram",
    "loss",
    "mean_loss_below",
    "mean_squared_error_below",
    "preactivations",
    "predict",
    "relative_error_below",
    "relu",
    "sample_losses",
    "zero_loss",
]

__getattr__, __dir__ = _submodules.lazily(__name__, __path__, __all__)
