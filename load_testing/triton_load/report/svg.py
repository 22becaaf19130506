"""Plots as SVG text: lines over time, and distributions on a logarithmic axis.

Written by hand, so that the image needs no plotting library and the page needs no network. Colours
are classes that the page's style sheet defines (`a`, `b`, ... and `limit`), so that light and dark
screens share one drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 620, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 30
Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: word in the legend.
        values: one for each point in time; None leaves a gap.
        shade: class of its colour.
        step: whether the value holds until the next point.
    """

    name: str
    values: Sequence[float | None]
    shade: str
    step: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical or horizontal line with a word: an objective or a percentile."""

    name: str
    value: float
    shade: str = "limit"


def nice_ticks(low: float, high: float, *, most: int = 5, whole: bool = False) -> list[float]:
    """Return about `most` round numbers that cover `low` to `high`, on request whole ones."""
    if high <= low:
        high = low + 1.0
    rough = max((high - low) / most, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    count = math.ceil(high / step - 1e-9)
    return [round(step * n, 12) for n in range(first, count + 1)]


def time_ticks(seconds: float) -> list[float]:
    """Return round points in time from 0 to `seconds`."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if seconds / s <= 8), 86400)
    return [float(step * n) for n in range(int(seconds // step) + 1)]


def clock(seconds: float) -> str:
    """Return a point in time of a run: `45 s`, `2:30` (minutes), `1:02:30` (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: float) -> str:
    """Return a number with three significant digits and no exponent up to billions."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= limit:
                return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def milliseconds(value: float) -> str:
    """Return milliseconds as text with three significant digits, in the unit that people use."""
    if 0 < value < 1:
        return f"{1000 * value:.3g} µs"
    if value >= 60_000:
        return f"{value / 60_000:.3g} min"
    if value >= 1000:
        return f"{value / 1000:.3g} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.3g} ms"


def lines(
    *,
    title: str,
    seconds: Sequence[float],
    series: Sequence[Series],
    unit: Format = number,
    limit: Mark | None = None,
) -> str:
    """Return a plot of values over the seconds of a run.

    Args:
        title: what a screen reader says.
        seconds: points in time since the start of the run.
        series: lines with one value for each point.
        unit: how a value is written at the axis.
        limit: an objective, drawn across.
    """
    known = [v for line in series for v in line.values if v is not None]
    if not known or not seconds:
        return empty(title)
    top = max(known)
    if limit is not None and limit.value <= 4 * top:
        top = max(top, limit.value * 1.05)
    ticks = nice_ticks(0, top or 1, whole=all(line.step for line in series))
    end = max(seconds[-1], 1.0)

    def x(second: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * second / end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / ticks[-1]

    parts = [_rule(y(t), unit(t)) for t in ticks]
    parts += [_foot(x(t), clock(t)) for t in time_ticks(end)]
    parts += [_path(line, seconds, x, y) for line in series]
    if limit is not None and limit.value <= ticks[-1]:
        height = y(limit.value)
        parts.append(
            f'<path class="{limit.shade}" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="{limit.shade}" x="{WIDTH - RIGHT}" y="{height - 5:.1f}" '
            f'text-anchor="end">{escape(limit.name)}</text>'
        )
    return _frame(title, parts)


def distribution(
    *,
    title: str,
    bins: Sequence[tuple[float, float, float]],
    marks: Sequence[Mark] = (),
    unit: Format = milliseconds,
) -> str:
    """Return a histogram on a logarithmic axis.

    Args:
        title: what a screen reader says.
        bins: lower edge, upper edge and count of each bar, in ascending order.
        marks: vertical lines, for percentiles and objectives.
        unit: how a value is written at the axis.
    """
    filled = [b for b in bins if b[2] > 0]
    if not filled:
        return empty(title)
    low, high = filled[0][0], filled[-1][1]
    shown = [m for m in marks if low / 3 <= m.value <= high * 3]
    low = min([low, *(m.value for m in shown)]) * 0.9
    high = max([high, *(m.value for m in shown)]) * 1.1
    span = math.log10(high / low)
    total, most = sum(b[2] for b in filled), max(b[2] for b in filled)
    ticks = nice_ticks(0, 100 * most / total)

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log10(value / low) / span

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - 18 - BOTTOM) * share / ticks[-1]

    parts = [_rule(y(t), f"{t:g} %") for t in ticks]
    parts += [_foot(x(t), unit(t)) for t in log_ticks(low, high)]
    for start, end, count in filled:
        share = 100 * count / total
        left, width = x(start) + 0.5, max(x(end) - x(start) - 1, 0.8)
        parts.append(
            f'<rect class="a" x="{left:.1f}" y="{y(share):.1f}" width="{width:.1f}" '
            f'height="{y(0) - y(share):.1f}"><title>{unit(start)} to {unit(end)}: '
            f"{count:.0f} ({share:.1f} %)</title></rect>"
        )
    parts += _marks(shown, x)
    return _frame(title, parts)


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high` that are evenly spread on a logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
        if len(found) <= 9:
            break
    if len(found) >= 3:
        return found
    return [t for t in nice_ticks(low, high, most=6) if low <= t <= high and t > 0]


def empty(title: str) -> str:
    """Return the place of a plot that has no data."""
    place = f'x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle"'
    return _frame(title, [f'<text class="foot" {place}>no data</text>'])


def legend(series: Sequence[Series]) -> str:
    """Return the names of lines with their colours; nothing for a single line."""
    if len(series) < 2:
        return ""
    items = (f'<span class="{s.shade}">{escape(s.name)}</span>' for s in series)
    return f'<p class="legend">{"".join(items)}</p>'


def _frame(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _rule(height: float, text: str) -> str:
    return (
        f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="foot" x="{LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _foot(place: float, text: str) -> str:
    half = 3.5 * len(text)
    centre = min(place, WIDTH - half)  # the last word must not be cut
    return (
        f'<path class="grid" d="M{place:.1f} {HEIGHT - BOTTOM}v4"/>'
        f'<text class="foot" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 18}" '
        f'text-anchor="middle">{text}</text>'
    )


def _path(
    line: Series,
    seconds: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> str:
    words: list[str] = []
    alone: list[str] = []
    pen_down = False
    values = list(line.values)
    for index, (second, value) in enumerate(zip(seconds, values, strict=True)):
        if value is None:
            pen_down = False
            continue
        left, height = x(second), y(value)
        if not pen_down:
            words.append(f"M{left:.1f} {height:.1f}")
            following = values[index + 1] if index + 1 < len(values) else None
            if following is None:  # a single point between two gaps would not show
                alone.append(f'<circle class="{line.shade}" cx="{left:.1f}" cy="{height:.1f}"/>')
        elif line.step:
            words.append(f"H{left:.1f}V{height:.1f}")
        else:
            words.append(f"L{left:.1f} {height:.1f}")
        pen_down = True
    return f'<path class="line {line.shade}" d="{"".join(words)}"/>{"".join(alone)}'


def _marks(marks: Sequence[Mark], x: Callable[[float], float]) -> list[str]:
    """Return vertical lines; a word that would touch its neighbour's moves to a second row."""
    parts: list[str] = []
    ends = [-math.inf, -math.inf]
    for mark in sorted(marks, key=lambda m: m.value):
        place = x(mark.value)
        half = 3.4 * len(mark.name)
        centre = min(max(place, LEFT + half), WIDTH - RIGHT - half)
        row = 0 if centre - half > ends[0] + 4 else 1
        ends[row] = centre + half
        parts.append(
            f'<path class="{mark.shade}" d="M{place:.1f} {TOP + 18}V{HEIGHT - BOTTOM}"/>'
            f'<text class="{mark.shade}" x="{centre:.1f}" y="{TOP + 1 + 13 * row}" '
            f'text-anchor="middle">{escape(mark.name)}</text>'
        )
    return parts
