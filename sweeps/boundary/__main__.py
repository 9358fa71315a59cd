"""python -m sweeps.boundary --help."""

from sweeps.boundary.study import BoundaryStudy
from sweeps.command import app

if __name__ == "__main__":
    app.main(BoundaryStudy)
