"""python -m sweeps.convergence_map --help."""

from sweeps.command import app
from sweeps.convergence_map.study import ConvergenceMap

if __name__ == "__main__":
    app.main(ConvergenceMap)
