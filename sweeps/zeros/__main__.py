"""python -m sweeps.zeros --help."""

from sweeps.command import app
from sweeps.zeros.study import Zeros

if __name__ == "__main__":
    app.main(Zeros)
