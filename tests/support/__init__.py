"""What several tests share: references, problems that are degenerate, studies in one process."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
