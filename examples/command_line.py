"""The command line that the examples share: DIR, then how many seeds, then how many steps."""

import argparse
from typing import Never


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        self.exit(2, f"{message}; --help says more\n")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_positive.__name__ = "positive whole number"  # argparse names the type so.


def read(doc: str, *, seeds: int, steps: int | None = None) -> argparse.Namespace:
    """What was asked for: `out`, `seeds`, and `steps` where the example has them.

    Args:
      doc: the example's docstring.
      seeds, steps: the defaults.

    Raises:
      SystemExit: with status 2 and one line, where words are wrong; with 0 for --help.
    """
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="DIR", help="folder of the results: new, or of an earlier call, which goes on")
    parser.add_argument("seeds", nargs="?", type=_positive, default=seeds, help="runs of a cell (default: %(default)s)")
    if steps is not None:
        parser.add_argument("steps", nargs="?", type=_positive, default=steps, help="at most (default: %(default)s)")
    return parser.parse_args()
