"""Charts are drawn as inline SVG: lines of points on a linear or logarithmic axis, and marks.

They have no script and no style attributes, so that the page can forbid both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.watch.html import Html, element, join_html

WIDTH = 460  # of a chart; this and the margins are in units of the SVG
HEIGHT = 260
LEFT = 56  # margins around the axes
RIGHT = 18
TOP = 26
BOTTOM = 44
MOST_POINTS = 400  # points of a line; a line with more is thinned out


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a line.

    Attributes:
        x: its place on the x axis.
        y: its place on the y axis.
        label: is shown when the mouse is on the point.
    """

    x: float
    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line is drawn through some points.

    Attributes:
        name: for the legend.
        style: a CSS class.
        points: in order.
        marks: whether the points are marks, which no line connects.
    """

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
    """Draw a chart, or say that there is nothing to draw yet.

    Args:
        lines: what is drawn.
        title: of the chart.
        x_name: name of the x axis.
        y_name: name of the y axis.
        x_text: formats a number at the x axis.
        y_text: formats a number at the y axis.
        log_x: whether the x axis is logarithmic; points at or below 0 are then left out.

    Returns:
        An ``svg`` element, or a paragraph.
    """
    shown = [_thin_out(line, log_x) for line in lines]
    points = [point for line in shown for point in line.points]
    if not points:
        return element("p", f"{title}: nothing to draw yet", class_="empty")
    low, high = _find_x_range([p.x for p in points], log_x)
    bottom, top = _find_y_range([p.y for p in points])
    scale = math.log10 if log_x else float

    def place_x(x: float) -> float:
        share = (scale(x) - scale(low)) / (scale(high) - scale(low))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def place_y(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    x_values = _choose_log_ticks(low, high) if log_x else _choose_whole_ticks(low, high)
    x_ticks = [(place_x(x), x_text(x)) for x in x_values]
    y_ticks = [(place_y(y), y_text(y)) for y in choose_ticks(bottom, top, 8)]
    drawn = [_draw_line(line, place_x, place_y) for line in shown]
    return element(
        "svg",
        element("title", title),
        _draw_axes(x_ticks, y_ticks, x_name=x_name, y_name=y_name),
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def draw_legend(lines: Sequence[Line]) -> Html:
    """Draw the names of the lines beside their colours."""
    entries = [element("span", element("i", class_=f"key {line.style}"), " ", line.name) for line in lines]
    return element("p", *entries, class_="legend")


def choose_ticks(low: float, high: float, most: int) -> list[float]:
    """Choose round numbers in a range, with equal steps between them.

    Args:
        low: where the range begins.
        high: where it ends.
        most: how many there are at most.

    Returns:
        The numbers, in ascending order.

    Examples:
        >>> choose_ticks(0.0, 1.0, 5)
        [0.0, 0.5, 1.0]
    """
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10, 20) if power * m >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _choose_whole_ticks(low: float, high: float) -> list[float]:
    return [tick for tick in choose_ticks(low, high, 6) if tick == int(tick)]  # there is no half of a round


def _choose_log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in parts if low <= m * 10.0**e <= high]
        if len(ticks) >= 3:
            return ticks
    return [low, high]


def _thin_out(line: Line, log_x: bool) -> Line:
    """Return a line with at most ``MOST_POINTS`` points that can be drawn, the last one among them."""
    points = [p for p in line.points if math.isfinite(p.x) and math.isfinite(p.y) and (p.x > 0 or not log_x)]
    every = math.ceil(len(points) / MOST_POINTS) or 1
    thinned = points[::every]
    if points and (len(points) - 1) % every:
        thinned.append(points[-1])
    return Line(name=line.name, style=line.style, points=thinned, marks=line.marks)


def _find_x_range(values: Sequence[float], log_x: bool) -> tuple[float, float]:
    low = min(values)
    high = max(values)
    if log_x:
        return low / 1.3, high * 1.3
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _find_y_range(values: Sequence[float]) -> tuple[float, float]:
    low = min(values)
    high = max(values)
    margin = 0.08 * (high - low) or max(abs(high) * 0.05, 1e-6)
    return low - margin, high + margin


def _draw_axes(
    x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], *, x_name: str, y_name: str
) -> Html:
    base = HEIGHT - BOTTOM
    right = WIDTH - RIGHT
    grid = [element("line", x1=x, y1=TOP, x2=x, y2=base, class_="grid") for x, _ in x_ticks]
    grid += [element("line", x1=LEFT, y1=y, x2=right, y2=y, class_="grid") for y, _ in y_ticks]
    names = [element("text", text, x=x, y=base + 16, text_anchor="middle") for x, text in x_ticks]
    names += [element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end") for y, text in y_ticks]
    names.append(element("text", x_name, x=(LEFT + right) / 2, y=HEIGHT - 8, text_anchor="middle", class_="axis"))
    names.append(element("text", y_name, x=LEFT, y=TOP - 10, text_anchor="middle", class_="axis"))
    frame = element("polyline", points=f"{LEFT},{TOP} {LEFT},{base} {right},{base}", class_="frame")
    return join_html(*grid, frame, *names)


def _draw_line(line: Line, place_x: Callable[[float], float], place_y: Callable[[float], float]) -> Html:
    places = [(place_x(p.x), place_y(p.y), p.label) for p in line.points]
    radius = 5 if line.marks else 3
    dots = [element("circle", element("title", label), cx=x, cy=y, r=radius) for x, y, label in places]
    path = element("polyline", points=" ".join(f"{x},{y}" for x, y, _ in places))
    if line.marks or len(places) < 2:
        return element("g", *dots, class_=line.style)
    return element("g", path, *dots, class_=line.style)
