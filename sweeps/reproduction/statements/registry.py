"""All checks by the identity of their statement, in the order of the paper.

An identity that ends in "-repaired" is the corrected form of the statement before it; the other is as printed.
"""

from sweeps.reproduction.statements import (
    appendix_ab,
    appendix_c,
    appendix_g,
    appendix_h,
    section_3,
    section_4,
    section_5,
)
from sweeps.reproduction.statements.check import Checks

__all__ = ["CHECKS"]

CHECKS: Checks = {
    **appendix_ab.SECTION_2,
    **section_3.CHECKS,
    **section_4.CHECKS,
    **section_5.CHECKS,
    **appendix_ab.CHECKS,
    **appendix_c.CHECKS,
    **section_4.APPENDICES,
    **section_5.APPENDIX,
    **appendix_g.CHECKS,
    **appendix_h.CHECKS,
}
