"""Types and shapes in annotations are checked while the tests run, see conftest.py."""

from typing import Any

from beartype import BeartypeConf, beartype

# Modules whose functions and data classes are checked. There must be no function inside of another in them: it would
# be changed by that, and worker processes refuse a parent whose functions are not those of the files. So descent,
# approximators, most of inclusion and clarke, proofs.both_layers, and of theory hidden_layer, path_certificate and
# width_search are not among them.
CHECKED = [
    "relu_sgd.activation",
    "relu_sgd.problem",
    "relu_sgd.network",
    "relu_sgd.initialization",
    "relu_sgd.measurements",
    "relu_sgd.differentials",
    "relu_sgd.dynamics",
    "relu_sgd.clarke.hull",
    "relu_sgd.proofs.kinks",
    "relu_sgd.proofs.result",
    "relu_sgd.proofs.rounding",
    "relu_sgd.proofs.verification",
    "relu_sgd.theory.certificate",
    "relu_sgd.theory.comparison",
    "relu_sgd.theory.conditions",
    "relu_sgd.theory.flip_certificate",
    "relu_sgd.theory.gram",
    "relu_sgd.theory.trajectory",
]

# An int where a float is wanted is right, as it is for every type checker.
_checker = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Any) -> Any:
    """The function, which refuses arguments and results of other types than its annotations name."""
    return _checker(function)
