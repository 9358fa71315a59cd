"""scripts/boundary_docs: one line where its counts are no counts, and the page stays as it is."""

import shutil
import subprocess
import sys

from support import ROOT


def test_damaged_counts_are_refused_and_the_page_is_left(tmp_path):
    for name in ("scripts/boundary_docs", "docs/boundaries.md", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("relu_sgd", "sweeps", "docs/boundary"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    counts = tmp_path / "docs" / "boundary" / "counts.csv"
    lines = counts.read_text().splitlines(keepends=True)
    counts.write_text("".join(line.partition(",")[2] for line in lines))  # Without its first column.
    page = tmp_path / "docs" / "boundaries.md"
    before = page.read_text()
    done = subprocess.run(
        [sys.executable, tmp_path / "scripts" / "boundary_docs"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == f"boundary_docs: {counts}: no table of counts: it has no column configuration\n"
    assert page.read_text() == before
