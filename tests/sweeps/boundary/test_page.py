"""The page of all boundaries is that of the counts beside it."""

import re

from support import ROOT

from sweeps.boundary import page


def test_the_repository_shows_the_boundaries_of_its_counts():
    """After a change of either scripts/boundary_docs writes it."""
    text = page.boundaries_page(ROOT / "docs")
    assert text == (ROOT / "docs" / "boundaries.md").read_text()
    assert re.search(r"\| 50 \|.* 7\.\d+ \(\d\.\d+ to \d\.\d+\); \d+ \|", text)
    assert "diverge; " in text
