"""A picture for slides and issues."""

from __future__ import annotations

import textwrap
from pathlib import Path

from accel_core.errors import NotInstalledError

from .html import COLOURS
from .picture import KINDS, Picture
from .terminal import plain

_WIDTH, _ROW, _LINE = 9.0, 0.78, 0.2
_LETTERS = 118


def write_png(picture: Picture, file: Path) -> None:
    """Draw ``picture`` into ``file``. Raises NotInstalledError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise NotInstalledError("library", "matplotlib", "accel-bigmodel[draw]") from error
    notes = [
        line
        for note in picture.notes
        for line in textwrap.wrap(_words(note), _LETTERS, initial_indent="- ", subsequent_indent="  ")
    ]
    bars = _ROW * len(picture.bars)
    below = 0.55 + _LINE * len(notes)
    height = 0.5 + bars + below
    # No pyplot: its windows and global state are none of our business.
    figure = Figure(figsize=(_WIDTH, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, below / height, 0.69, bars / height))
    for place, bar in enumerate(picture.bars):
        start = 0.0
        for size, colour in zip(bar.pieces, COLOURS, strict=True):
            share = size / bar.total if bar.total else 0.0
            axes.barh(place, share, left=start, height=0.42, color=colour)
            start += share
        axes.text(1.015, place, _words(bar.said), va="center", fontsize=9)
        holds = textwrap.shorten(_words(", ".join(bar.holds)), 104, placeholder=" ...")
        axes.text(0.0, place + 0.27, holds, va="top", fontsize=7, color="#5a6475")
    axes.set(xlim=(0, 1), ylim=(len(picture.bars) - 0.45, -0.45), xticks=[], frame_on=False)
    axes.set_yticks(range(len(picture.bars)), [_words(bar.device) for bar in picture.bars])
    axes.tick_params(length=0)
    figure.text(0.02, 1 - 0.28 / height, _words(picture.title), fontsize=10, weight="bold", va="center")
    patches = [Patch(color=COLOURS[kind], label=KINDS[kind]) for kind in picture.kinds]
    figure.legend(
        handles=patches,
        loc="lower left",
        bbox_to_anchor=(0.08, (below - 0.42) / height),
        ncols=5,
        frameon=False,
        fontsize=8,
    )
    for number, line in enumerate(notes):
        figure.text(0.09, (below - 0.55 - _LINE * number) / height, line, fontsize=7.5, va="center")
    figure.savefig(file, dpi=160, format="png")


def _words(text: str) -> str:
    """Return ``text`` as it is drawn: without formulas, which matplotlib reads between dollar signs."""
    return plain(text).replace("$", r"\$")


__all__ = ["write_png"]
