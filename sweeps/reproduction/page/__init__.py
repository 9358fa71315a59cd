"""The ledger for readers: one page of HTML that needs nothing else, and a PDF."""

from sweeps.reproduction.page.document import render
from sweeps.reproduction.page.printed import write_pdf

__all__ = ["render", "write_pdf"]
