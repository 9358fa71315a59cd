"""python -m sweeps.trajectories --help."""

from sweeps.command import app
from sweeps.trajectories.study import Trajectories

if __name__ == "__main__":
    app.main(Trajectories)
