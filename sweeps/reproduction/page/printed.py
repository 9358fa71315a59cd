"""The ledger's table and the figures as a PDF, for those who print; by Matplotlib, without a browser."""

import functools
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D

from sweeps.reproduction.ledger import Finding, Judged, Verdict
from sweeps.reproduction.page.document import SYMBOLS
from sweeps.reproduction.page.text import duration, results

__all__ = ["write_pdf"]

# A4, in inches, and what is printed on it, in points.
_PAGE = (8.27, 11.69)
_MARGIN = 0.6
_FONT = "DejaVu Sans"  # Matplotlib brings it.
_SIZE = 7.0
_LINE = 9.0
# The table's columns: title and share of the width between the margins.
_COLUMNS = (("Place", 0.15), ("What the paper says", 0.42), ("Verdict", 0.16), ("Result", 0.27))
_GAP = 1  # Lines between two rows.


class _Writer:
    """Lines of text on pages, from top to bottom."""

    def __init__(self, pages: PdfPages) -> None:
        self._pages = pages
        self._figure: Figure | None = None
        self._at = 0.0

    @property
    def lines_left(self) -> int:
        return int((self._at - _MARGIN) * 72 / _LINE) if self._figure else 0

    def new_page(self) -> None:
        self.finish()
        self._figure, self._at = Figure(figsize=_PAGE), _PAGE[1] - _MARGIN

    def finish(self) -> None:
        if self._figure:
            self._pages.savefig(self._figure)
        self._figure = None

    def line(self, parts: Sequence[tuple[float, str]], size: float = _SIZE, **kwargs: Any) -> None:
        """Parts of a line, each at its distance from the left margin in inches."""
        if self._figure is None:
            self.new_page()
        assert self._figure is not None
        self._at -= _LINE * max(1.0, size / _SIZE) / 72
        for left, text in parts:
            if text:
                self._figure.text(
                    (_MARGIN + left) / _PAGE[0], self._at / _PAGE[1], text, fontsize=size, parse_math=False, **kwargs
                )

    def rule(self) -> None:
        assert self._figure is not None
        y = (self._at - 2 / 72) / _PAGE[1]
        left, right = _MARGIN / _PAGE[0], 1 - _MARGIN / _PAGE[0]
        self._figure.add_artist(Line2D([left, right], [y, y], color="0.7", linewidth=0.5))


@functools.cache
def _font() -> FT2Font:
    font = FT2Font(findfont(_FONT))
    font.set_size(_SIZE, 72)
    return font


@functools.cache
def _width(letter: str) -> float:
    """Of a letter in the size of the table, in inches; one that the font lacks is a box, as wide as a W at most."""
    shown = letter if _font().get_char_index(ord(letter)) else "W"
    return _font().load_char(ord(shown)).linearHoriAdvance / 65536 / 72


def _wrapped(text: str, inches: float) -> list[str]:
    """Lines that fit, broken between words where that is possible."""
    lines = []
    for part in text.splitlines() or [""]:
        line, room = "", inches
        for word in re.findall(r"\S+\s*|\s+", part):
            length = sum(map(_width, word.rstrip()))
            if line and length > room:
                lines.append(line.rstrip())
                line, room = "", inches
            for letter in word:
                if line and not letter.isspace() and _width(letter) > room:
                    lines.append(line)
                    line, room = "", inches
                line, room = line + letter, room - _width(letter)
        lines.append(line.rstrip())
    return lines


def _edges() -> list[float]:
    width, edges = _PAGE[0] - 2 * _MARGIN, [0.0]
    for _, share in _COLUMNS:
        edges.append(edges[-1] + share * width)
    return edges


def _heading(writer: _Writer) -> None:
    writer.line([(left, title) for left, (title, _) in zip(_edges(), _COLUMNS, strict=False)], weight="bold")
    writer.rule()
    writer.line([])


def _row(writer: _Writer, one: Judged) -> None:
    """A claim; a row that is longer than a page goes on on the next."""
    found = "\n".join(results(one.measurements)) or one.entry.out_of_scope or one.reason
    texts = (one.entry.place, one.entry.says, f"{SYMBOLS[one.verdict]} {one.verdict.value}", found)
    edges = _edges()
    columns = [
        _wrapped(text, right - left - 0.08) for text, left, right in zip(texts, edges[:-1], edges[1:], strict=True)
    ]
    height = max(map(len, columns))
    room = int((_PAGE[1] - 2 * _MARGIN) * 72 / _LINE) - 3
    if writer.lines_left < min(height, room):
        writer.new_page()
        _heading(writer)
    for index in range(height):
        if not writer.lines_left:
            writer.new_page()
            _heading(writer)
        writer.line(
            [(left, column[index]) for left, column in zip(edges, columns, strict=False) if index < len(column)]
        )
    writer.rule()
    if writer.lines_left > _GAP:
        writer.line([])


def _picture(pages: PdfPages, path: Path, caption: str, source: str) -> None:
    """A figure on a page of its own, turned where it is wide."""
    image = matplotlib.image.imread(path.with_suffix(".png") if path.suffix.lower() == ".svg" else path)
    height, width = image.shape[:2]
    size = _PAGE[::-1] if width > height else _PAGE
    figure = Figure(figsize=size)
    lines = _wrapped(caption, size[0] - 2 * _MARGIN) + _wrapped(source, size[0] - 2 * _MARGIN)
    below = (_MARGIN + len(lines) * _LINE / 72 + 0.1) / size[1]
    axes = figure.add_axes((_MARGIN / size[0], below, 1 - 2 * _MARGIN / size[0], 1 - _MARGIN / size[1] - below))
    axes.imshow(image)
    axes.set_axis_off()
    for index, line in enumerate(lines):
        y = below - 0.1 / size[1] - (index + 1) * _LINE / 72 / size[1]
        figure.text(_MARGIN / size[0], y, line, fontsize=_SIZE, parse_math=False)
    pages.savefig(figure, dpi=150)


def write_pdf(judged: Sequence[Judged], findings: Sequence[Finding], path: Path) -> None:
    """Writes the ledger's table, and a page for every figure with its caption, command and configuration.

    Args:
      judged: in the order of the paper.
      findings: the studies that were run. Of a figure in SVG its PNG is taken, which lies beside it.
      path: of the PDF; A4.

    Raises:
      OSError: a figure cannot be read, or the file not written.
    """
    written = io.BytesIO()  # The file appears when all is well.
    counts = [(verdict, sum(one.verdict is verdict for one in judged)) for verdict in Verdict]
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context({"pdf.fonttype": 42, "font.family": _FONT}),
        PdfPages(written, metadata={"Title": "The paper, reproduced", "CreationDate": None}) as pages,
    ):
        # A letter that the font lacks is a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        writer = _Writer(pages)
        writer.line([(0, "The paper, reproduced: a ledger of its claims")], size=14, weight="bold")
        writer.line([])
        for verdict, count in counts:
            writer.line([(0, f"{SYMBOLS[verdict]} {verdict.value}"), (2.6, str(count))], size=8)
        for _ in range(2):
            writer.line([])
        if judged:
            _heading(writer)
        for one in judged:
            _row(writer, one)
        writer.finish()
        for finding in findings:
            source = f"{finding.command} (configuration {finding.configuration}, {duration(finding.seconds)})"
            for figure, caption, _ in finding.figures:
                _picture(pages, Path(figure), caption, source)
    path.write_bytes(written.getvalue())
