"""Draws the idea of the loss as two SVG files, for light and dark pages: python docs/tools/idea.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent / "figures"
WIDTH, HEIGHT = 700, 372
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


Point = tuple[float, float]


class Theme(NamedTuple):
    ink: str
    frame: str
    classes: tuple[str, str, str]  # Okabe and Ito's blue, vermilion and green: told apart by colour-blind readers too


THEMES = {
    "light": Theme("#24292f", "#8c959f", ("#0072b2", "#d55e00", "#00815d")),
    "dark": Theme("#e6edf3", "#7d8590", ("#56b4e9", "#ff9248", "#3fd0a4")),
}

LEFT, SIZE, STEP = 20, 24, 31  # left edge of the queues, side of a cell, distance from cell to cell
BATCH_STEP = 38  # distance from row to row
BATCH = (0, 0, 1, 0, 1)  # the class of each row; class 2 has none
ANCHOR_ROW = 1
DRAWN = ((0, 1, 1, 0, 1, 0), (1, 0, 0, 1, 0, 1), (0, 1, 0, 1, 1, 0))  # per class: which entries of its queue are drawn
QUEUE_TOPS = (178, 216, 254)

ANCHOR = (472, 196)
PULL = ((0, "star", (368, 196)), (0, "row", (402, 118)), (0, "row", (402, 274)))  # class, shape, place
PUSH = ((1, "row", (586, 92)), (1, "star", (634, 146)), (1, "row", (640, 214)), (2, "star", (598, 278)))


def text(x: float, y: float, content: str, fill: str, size: int = 18, anchor: str = "start", weight: int = 400) -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x}" y="{y}" {style}>{content}</text>'


def row(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="11" fill="{color}"/>'


def star(x: float, y: float, color: str) -> str:
    corners = []
    for corner in range(10):
        radius, angle = (17, 7.5)[corner % 2], math.pi * (corner / 5 - 0.5)
        corners.append(f"{x + radius * math.cos(angle):.1f},{y + radius * math.sin(angle):.1f}")
    return f'<polygon points="{" ".join(corners)}" fill="{color}"/>'


def cell(x: float, y: float, color: str, drawn: bool) -> str:
    fill = color if drawn else "none"
    return (
        f'<rect x="{x}" y="{y}" width="{SIZE}" height="{SIZE}" rx="4" fill="{fill}" stroke="{color}" stroke-width="2"/>'
    )


def arrow(start: Point, end: Point, color: str, width: float, dashes: str = "none") -> str:
    length, angle = math.dist(start, end), math.degrees(math.atan2(end[1] - start[1], end[0] - start[0]))
    return (
        f'<g transform="translate({start[0]:.1f} {start[1]:.1f}) rotate({angle:.1f})" fill="{color}">'
        f'<path d="M0 0H{length - 10:.1f}" stroke="{color}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
        f'<path d="M{length:.1f} 0l-13 -7v14z"/></g>'
    )


def between(start: Point, end: Point, color: str, width: float, dashes: str = "none") -> str:
    """An arrow from one mark to another that keeps clear of both."""
    share = 23 / math.dist(start, end)
    step = [(b - a) * share for a, b in zip(start, end, strict=True)]
    return arrow((start[0] + step[0], start[1] + step[1]), (end[0] - step[0], end[1] - step[1]), color, width, dashes)


def ring(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="16" fill="none" stroke="{color}" stroke-width="2.5"/>'


def batch_and_memory(theme: Theme) -> list[str]:
    parts = [text(LEFT, 32, "Batch", theme.ink, 20, weight=600)]
    for index, label in enumerate(BATCH):
        parts.append(row(LEFT + SIZE / 2 + BATCH_STEP * index, 62, theme.classes[label]))
    parts.append(ring(LEFT + SIZE / 2 + BATCH_STEP * ANCHOR_ROW, 62, theme.ink))
    parts.append(arrow((LEFT + 90, 86), (LEFT + 90, 124), theme.frame, 2.5))
    parts.append(text(LEFT + 106, 111, "after the step", theme.ink))
    parts.append(text(LEFT, 158, "One queue per class", theme.ink, 20, weight=600))
    for top, color, drawn in zip(QUEUE_TOPS, theme.classes, DRAWN, strict=True):
        parts += [cell(LEFT + STEP * index, top, color, bool(used)) for index, used in enumerate(drawn)]
        middle = top + SIZE / 2
        parts.append(arrow((LEFT + 190, middle), (LEFT + 226, middle), theme.frame, 2.5))
        parts.append(star(LEFT + 250, middle, color))
    parts.append(cell(LEFT, 302, theme.ink, True))
    parts.append(text(LEFT + 36, 320, "K drawn at random", theme.ink))
    parts.append(star(LEFT + 12, 348, theme.ink))
    parts.append(text(LEFT + 36, 354, "prototype: their mean", theme.ink))
    return parts


def comparison(theme: Theme) -> list[str]:
    shapes = {"row": row, "star": star}
    own, _, absent = theme.classes
    frame = f'fill="none" stroke="{theme.frame}" stroke-width="2"'
    parts = [f'<rect x="322" y="12" width="366" height="348" rx="14" {frame}/>']
    parts.append(text(340, 44, "Loss of one row", theme.ink, 20, weight=600))
    for label, shape, place in PULL:
        parts.append(between(ANCHOR, place, own, 3.5))
        parts.append(shapes[shape](*place, theme.classes[label]))
    for label, shape, place in PUSH:
        parts.append(between(place, ANCHOR, theme.frame, 2.5, "6 5"))
        parts.append(shapes[shape](*place, theme.classes[label]))
    parts += [row(*ANCHOR, own), ring(*ANCHOR, theme.ink)]
    letter = '<tspan font-style="italic" font-size="22">z</tspan>'
    index = '<tspan font-style="italic" font-size="15" dy="5">i</tspan>'
    parts.append(text(500, 258, f"anchor {letter}{index}", theme.ink, 18, "middle"))
    parts.append(text(376, 76, "pull", own, 20, "middle", 600))
    parts.append(text(376, 97, "positives", theme.ink, 17, "middle"))
    parts.append(text(508, 76, "push", theme.ink, 20, "middle", 600))
    parts.append(text(508, 97, "negatives", theme.ink, 17, "middle"))
    parts.append(text(672, 322, "no row in this batch,", absent, 17, "end"))
    parts.append(text(672, 344, "but a prototype", absent, 17, "end"))
    return parts


def picture(theme: Theme) -> str:
    title = "A row of the batch is pulled to its class and pushed from the others: their rows and their prototypes."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="{FONT}" role="img">',
        f"<title>{title}</title>",
        *batch_and_memory(theme),
        *comparison(theme),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    for name, theme in THEMES.items():
        (FOLDER / f"idea-{name}.svg").write_text(picture(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
