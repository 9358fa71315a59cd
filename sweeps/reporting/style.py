"""What all figures share: colours readable to the colour-blind, axes, captions, titles, files."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sweeps.study import Variant

__all__ = ["FORMATS", "add_caption", "save", "set_log_x", "shades", "variant_title"]

FORMATS = ("png", "pdf", "svg")
LETTERS_PER_INCH = 19  # Of captions, on average.
LAYERS_TITLES = {"hidden": "hidden layer trained", "both": "both layers trained"}


def shades(count: int) -> list[Any]:
    """Colours for `count` ordered values, readable to the colour-blind, from dark to light."""
    return [matplotlib.colormaps["viridis"](0.85 * index / max(count - 1, 1)) for index in range(count)]


def set_log_x(axes: Axes, values: Sequence[float] | np.ndarray, base: float = 10) -> None:
    """A log axis over some positive values, whatever is drawn: Matplotlib fails where nothing is."""
    low, high = float(min(values)), float(max(values))
    room = max((high / low) ** 0.05, 1.1)
    axes.set_xlim(low / room, high * room)
    axes.set_xscale("log", base=base)


def add_caption(figure: Figure, caption: str) -> None:
    """The small print below a figure, wrapped here: Matplotlib would measure it word by word at every draw."""
    width = int(LETTERS_PER_INCH * figure.get_figwidth())
    figure.supxlabel("\n".join(textwrap.fill(line, width) for line in caption.splitlines()), fontsize="x-small")


def variant_title(variant: Variant) -> str:
    """A variant as the title of a panel."""
    title = LAYERS_TITLES.get(variant.trained_layers or "", variant.group)
    slope = variant.relu_at_zero
    if slope is None:
        return title
    return f"{title}, {slope.replace('_', ' ')} slope" if isinstance(slope, str) else f"{title}, relu'(0) = {slope}"


def save(figure: Figure, folder: Path, name: str, configuration: str) -> list[Path]:
    """The figure as PNG, PDF with embedded fonts, and SVG, with the configuration in each file's metadata."""
    keyword = f"configuration {configuration}"
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Keywords": keyword},
        "pdf": {"Keywords": keyword, "CreationDate": None},
        "svg": {"Keywords": [keyword], "Date": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": configuration}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # Once is enough for all formats.
        for kind in FORMATS:
            paths.append(folder / f"{name}.{kind}")
            figure.savefig(paths[-1], dpi=150, metadata=metadata[kind])
    return paths
