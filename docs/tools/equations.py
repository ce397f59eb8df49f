"""MkDocs hook: equations become drawings while the site is built, so they need no script and no font to be read.

A number also stays on one line with its interval.
"""

from __future__ import annotations

import html
import re

import ziamath

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)
CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
INTERVAL = re.compile(r"(?<=\d) (±|to) (?=[-+]?\d+\.\d)")  # 0.8 ± 0.1, -1.0 to +2.0
SIZE = 100  # units a font size; the page scales the drawing to its own
ziamath.config.svg2 = False  # outlines stand where they are used: an id would have to be unique in the page


def draw(latex: str, *, display: bool) -> str:
    latex = html.unescape(latex).strip()
    equation = ziamath.Latex(latex, size=SIZE, inline=not display, color="currentColor", margin=0)
    width, height = (length / SIZE for length in equation.getsize())
    if height > 8:
        raise ValueError(f"{latex!r} is drawn {height:.0f} lines high; write its brackets as \\biggl( and \\biggr)")
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{equation.getyofst() / SIZE:.3f}em"
    label = html.escape(latex, quote=True)
    _, _, drawing = equation.svg().partition(" viewBox")
    return f'<svg class="equation" role="img" aria-label="{label}" style="{style}" viewBox{drawing}'


def draw_inline(content: str, *, display: bool) -> str:
    return INLINE.sub(lambda match: draw(match[1], display=display), content)


def on_page_content(content: str, **_: object) -> str:
    """Replace what the arithmatex extension marked."""
    content = INTERVAL.sub("\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", content)
    content = BLOCK.sub(
        lambda match: f'<div class="equation">{draw(match[1], display=True)}</div>',
        content,
    )
    content = CELL.sub(lambda match: draw_inline(match[0], display=True), content)  # a cell has room for fractions
    return draw_inline(content, display=False)
