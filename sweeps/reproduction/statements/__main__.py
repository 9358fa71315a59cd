"""python -m sweeps.reproduction.statements --help."""

from sweeps.command import app
from sweeps.reproduction.statements.study import Statements

if __name__ == "__main__":
    app.main(Statements)
