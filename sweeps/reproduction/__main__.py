"""python -m sweeps.reproduction --help."""

from sweeps.reproduction import run

if __name__ == "__main__":
    raise SystemExit(run.main())
