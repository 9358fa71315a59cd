"""python -m sweeps.comparison_ode --help."""

from sweeps.command import app
from sweeps.comparison_ode.study import Comparison

if __name__ == "__main__":
    app.main(Comparison)
