"""All checks by the identity of their statement, in the order of the paper.

An identity that ends in "-repaired" is the corrected form of the statement before it; the other is as printed.
"""

from sweeps.reproduction.statements import appendix_h
from sweeps.reproduction.statements.check import Checks

__all__ = ["CHECKS"]

CHECKS: Checks = {**appendix_h.CHECKS}
