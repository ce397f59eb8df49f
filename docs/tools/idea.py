"""Draws the idea of the loss as SVG files, for light and dark pages: python docs/tools/idea.py."""

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
    return frame(title, HEIGHT, [*batch_and_memory(theme), *comparison(theme)])


def frame(title: str, height: int, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="{FONT}" role="img">'
    )
    return "\n".join([head, f"<title>{title}</title>", *parts, "</svg>"]) + "\n"


def alone(share: float, rows: int) -> float:
    """The chance that none of the other rows of a batch is of a row's class, which has this share of the data."""
    return (1 - share) ** (rows - 1)


def lonely(theme: Theme) -> str:
    left, right, top, bottom, most = 70, 670, 44, 270, 0.12

    def place(share: float, chance: float) -> Point:
        return left + (right - left) * share / most, bottom - (bottom - top) * chance

    parts = [text(20, 24, "Chance that a row is alone of its class in the batch", theme.ink, 18, weight=600)]
    for chance in (0, 0.25, 0.5, 0.75, 1):
        y = place(0, chance)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="{theme.frame}" stroke-width="1" stroke-opacity=".5"/>')
        parts.append(text(left - 10, y + 5, f"{chance:.0%}", theme.ink, 15, "end"))
    for percent in range(0, 13, 2):
        parts.append(text(place(percent / 100, 0)[0], bottom + 22, f"{percent}%", theme.ink, 15, "middle"))
    parts.append(text((left + right) / 2, bottom + 48, "share of the class in the data", theme.ink, 16, "middle"))
    for rows, color, share in zip((16, 32, 128), theme.classes, (0.06, 0.04, 0.012), strict=True):
        points = [place(most * i / 120, alone(most * i / 120, rows)) for i in range(121)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="3"/>')
        x, y = place(share, alone(share, rows))
        parts.append(text(x + 8, y - 8, f"{rows} rows", color, 16, weight=600))
    return frame("Without prototypes, rows of rare classes are often alone of their class in the batch.", 330, parts)


PICTURES = {"idea": picture, "lonely": lonely}


def main() -> None:
    for name, draw in PICTURES.items():
        for scheme, theme in THEMES.items():
            (FOLDER / f"{name}-{scheme}.svg").write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
