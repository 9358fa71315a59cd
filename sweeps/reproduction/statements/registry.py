"""All checks by the identity of their statement, in the order of the paper.

An identity that ends in "-repaired" is the corrected form of the statement before it; the other is as printed.
"""

from sweeps.reproduction.statements import appendix_h, section_3
from sweeps.reproduction.statements.check import Checks

__all__ = ["CHECKS"]

CHECKS: Checks = {**section_3.CHECKS, **appendix_h.CHECKS}
