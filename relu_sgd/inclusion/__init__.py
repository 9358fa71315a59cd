"""Solutions of the differential inclusion (3) of the paper: `solve`, and `event_driven`, a reference that locates
every event.
"""

from relu_sgd import _submodules
from relu_sgd.inclusion._solve import Solution, Status, solve

__all__ = ["Solution", "Status", "solve"]

__getattr__, __dir__ = _submodules.lazily(__name__, __path__, __all__)
