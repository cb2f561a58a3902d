"""Charts as inline SVG: lines of points on a linear or logarithmic axis, with marks. No script, no style attributes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.watch.html import Html, element, join_html

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 26, 44
MOST_POINTS = 400  # of a line; more are thinned out


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point, and what is shown when the mouse is on it."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points in order, drawn in the style of a CSS class; marks are points that no line connects."""

    name: str
    style: str
    points: Sequence[Point]
    marks: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    y_name: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    log_x: bool = False,
) -> Html:
    """A chart; says so where there is nothing to draw yet."""
    shown = [_drawable(line, log_x) for line in lines]
    points = [point for line in shown for point in line.points]
    if not points:
        return element("p", f"{title}: nothing to draw yet", class_="empty")
    low, high = _x_range([p.x for p in points], log_x)
    bottom, top = _padded([p.y for p in points])
    place = math.log10 if log_x else float

    def x_of(x: float) -> float:
        share = (place(x) - place(low)) / (place(high) - place(low))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y_of(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    x_ticks = [(x_of(x), x_text(x)) for x in (_log_ticks(low, high) if log_x else _whole(low, high))]
    y_ticks = [(y_of(y), y_text(y)) for y in ticks(bottom, top, 8)]
    drawn = [_line(line, x_of, y_of) for line in shown]
    return element(
        "svg",
        element("title", title),
        _axes(x_ticks, y_ticks, x_name, y_name),
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def legend(lines: Sequence[Line]) -> Html:
    """Names of the lines beside their colours."""
    entries = [element("span", element("i", class_=f"key {line.style}"), " ", line.name) for line in lines]
    return element("p", *entries, class_="legend")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers in a range, at most so many.

    Examples:
        >>> ticks(0.0, 1.0, 5)
        [0.0, 0.5, 1.0]
    """
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10, 20) if power * m >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _whole(low: float, high: float) -> list[float]:
    return [tick for tick in ticks(low, high, 6) if tick == int(tick)]  # there is no half of a round


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5)):
        found = [m * 10.0**e for e in exponents for m in parts if low <= m * 10.0**e <= high]
        if len(found) >= 3:
            return found
    return [low, high]


def _drawable(line: Line, log_x: bool) -> Line:
    points = [p for p in line.points if math.isfinite(p.x) and math.isfinite(p.y) and (p.x > 0 or not log_x)]
    every = math.ceil(len(points) / MOST_POINTS) or 1
    kept = points[::every] + (points[-1:] if points and (len(points) - 1) % every else [])
    return Line(name=line.name, style=line.style, points=kept, marks=line.marks)


def _x_range(values: Sequence[float], log_x: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log_x:
        return low / 1.3, high * 1.3
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    rest = 0.08 * (high - low) or max(abs(high) * 0.05, 1e-6)
    return low - rest, high + rest


def _axes(x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_name: str, y_name: str) -> Html:
    base, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    grid = [element("line", x1=x, y1=TOP, x2=x, y2=base, class_="grid") for x, _ in x_ticks]
    grid += [element("line", x1=LEFT, y1=y, x2=right, y2=y, class_="grid") for y, _ in y_ticks]
    names = [element("text", text, x=x, y=base + 16, text_anchor="middle") for x, text in x_ticks]
    names += [element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end") for y, text in y_ticks]
    names.append(element("text", x_name, x=(LEFT + right) / 2, y=HEIGHT - 8, text_anchor="middle", class_="axis"))
    names.append(element("text", y_name, x=LEFT, y=TOP - 10, text_anchor="middle", class_="axis"))
    frame = element("polyline", points=f"{LEFT},{TOP} {LEFT},{base} {right},{base}", class_="frame")
    return join_html(*grid, frame, *names)


def _line(line: Line, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> Html:
    places = [(x_of(p.x), y_of(p.y), p.label) for p in line.points]
    radius = 5 if line.marks else 3
    dots = [element("circle", element("title", label), cx=x, cy=y, r=radius) for x, y, label in places]
    path = element("polyline", points=" ".join(f"{x},{y}" for x, y, _ in places))
    return element("g", *([] if line.marks or len(places) < 2 else [path]), *dots, class_=line.style)
