"""Kernels in place of XLA's program for full-batch descent on the paper's network.

Each is a `dynamics.Dynamics` as `Descent` is, with the same states; XLA's program is the default and the reference.
"""

from relu_sgd.kernels._momentum_descent import MomentumDescent
from relu_sgd.kernels.fused import FusedDescent
from relu_sgd.kernels.native import NativeDescent, NativeError

__all__ = ["FusedDescent", "MomentumDescent", "NativeDescent", "NativeError"]
