"""python -m sweeps.inclusion_limit --help."""

from sweeps.command import app
from sweeps.inclusion_limit.study import Limit

if __name__ == "__main__":
    app.main(Limit)
