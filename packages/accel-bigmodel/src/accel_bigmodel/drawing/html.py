"""A page of its own: no scripts, and nothing is fetched."""

from __future__ import annotations

from html import escape

from .picture import KINDS, Bar, Picture

COLOURS = ("#3b6fb6", "#8e5bb5", "#d9a521", "#3aa6a0", "#e6e8eb")
"""Of each of the kinds of memory."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d2330 }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.15rem; overflow-wrap: anywhere }
.row { display: grid; grid-template-columns: 4rem 1fr 12rem; gap: .2rem .8rem; margin: .9rem 0 }
.row b { text-align: right }
.bar { display: flex; height: 1.5rem; border-radius: 4px; overflow: hidden }
.bar span { min-width: 2px }
.holds { grid-column: 2 / 4; color: #5a6475; font-size: .85rem; overflow-wrap: anywhere }
.legend span { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px }
.legend span { margin: 0 .35rem 0 1rem }
li { color: #3c4558 }
"""


def page(picture: Picture) -> str:
    """Return ``picture`` as an HTML document."""
    bars = "\n".join(_bar(bar) for bar in picture.bars)
    legend = "".join(
        f'<span style="background:{COLOURS[kind]}"></span>{KINDS[kind]}' for kind in picture.kinds
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in picture.notes)
    title = escape(picture.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n{bars}\n"
        f'<p class="legend">{legend}</p>\n<ul>{notes}</ul>\n</html>\n'
    )


def _bar(bar: Bar) -> str:
    pieces = "".join(
        f'<span style="flex:{size};background:{colour}" title="{kind}: {size:,} bytes"></span>'
        for kind, size, colour in zip(KINDS, bar.pieces, COLOURS, strict=True)
        if size
    )
    return (
        f'<div class="row"><b>{escape(bar.device)}</b><div class="bar">{pieces}</div>'
        f"<div>{escape(bar.said)}</div>"
        f'<div class="holds">{escape(", ".join(bar.holds))}</div></div>'
    )


__all__ = ["COLOURS", "page"]
