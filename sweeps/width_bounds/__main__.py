"""python -m sweeps.width_bounds --help."""

from sweeps.command import app
from sweeps.width_bounds.study import WidthBounds

if __name__ == "__main__":
    app.main(WidthBounds)
