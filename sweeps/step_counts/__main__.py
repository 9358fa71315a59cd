"""python -m sweeps.step_counts --help."""

from sweeps.command import app
from sweeps.step_counts.study import StepCounts

if __name__ == "__main__":
    app.main(StepCounts)
