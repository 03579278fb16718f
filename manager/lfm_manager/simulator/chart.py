"""Lines over an axis, as SVG text: enough for a report, and nothing to install."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8a5a9e", "#7f7f7f", "#b08900")
LEFT, TOP, BOTTOM = 64, 34, 44


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False
    steps: bool = False  # stays until the next point


def chart(
    title: str, x_name: str, y_name: str, lines: Sequence[Line], *, width: int = 720, height: int = 260
) -> str:
    """One chart; both axes start at nought."""
    right = width - 16
    bottom = height - BOTTOM
    most_x = max((x for line in lines for x, _ in line.points), default=1.0) or 1.0
    most_y = max((y for line in lines for _, y in line.points), default=1.0) or 1.0
    ticks_x, ticks_y = ticks(most_x), ticks(most_y)
    most_y = max(most_y, ticks_y[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most_x * (right - LEFT), bottom - y / most_y * (bottom - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
        f'<text x="{right}" y="{height - 6}" text-anchor="end">{escape(x_name)}</text>',
        f'<text x="{LEFT}" y="{TOP - 6}" text-anchor="middle">{escape(y_name)}</text>',
    ]
    for value in ticks_y:
        _, y = at(0, value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks_x:
        x, _ = at(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(f'<path d="{_path(line, at)}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')
        parts.append(
            f'<text x="{LEFT + 8 + number * 120}" y="{height - 6}" fill="{colour}">{escape(line.name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


def ticks(most: float) -> list[float]:
    """Round values from nought up to about ``most``, at most seven."""
    size = 10.0 ** floor(log10(most))
    step = next(size * part for part in (0.1, 0.2, 0.5, 1, 2) if most / (size * part) <= 6)
    return [round(step * k, 10) for k in range(int(most / step + 1e-9) + 1)]


def _path(line: Line, at: object) -> str:
    assert callable(at)
    words: list[str] = []
    for x, y in line.points:
        px, py = at(x, y)
        if not words:
            words.append(f"M{px:.1f} {py:.1f}")
        elif line.steps:
            words.append(f"H{px:.1f}V{py:.1f}")
        else:
            words.append(f"L{px:.1f} {py:.1f}")
    return "".join(words)
