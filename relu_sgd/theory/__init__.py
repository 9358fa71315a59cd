"""The paper's statements as functions: one module a section, one function a statement, each with its erratum where
there is one.

Everything here is computed on the host in NumPy's float64, whatever precision JAX runs in: a certificate in single
precision would certify rounding. The scalar problem (9) alone is integrated with JAX, and asks for its 64-bit mode.
"""

from relu_sgd import _submodules

__getattr__, __dir__ = _submodules.lazily(__name__, __path__, ())
