"""One self-contained HTML page for a run: verdict, numbers, plots, errors.

`page.html.j2` and `page.css` beside this file are the page; here are its drawings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from triton_load.report import svg
from triton_load.report.view import PERCENTILES, Distribution, OverTime, View

SHADES = ("a", "b", "c", "d")
BAD = "c"
NOTHING = Markup()
_HERE = Path(__file__).parent
# Key of `View.times`, title, unit, whether a value holds until the next.
_TIMES: Sequence[tuple[str, str, Callable[[float], str], bool]] = (
    ("latency", "Latency over time", svg.milliseconds, False),
    ("ttft", "Time to first token over time", svg.milliseconds, False),
    ("requests", "Requests per second", svg.number, False),
    ("tokens", "Output tokens per second", svg.number, False),
    ("users", "Users and requests in flight", svg.number, True),
    ("replicas", "Server replicas", svg.number, True),
    ("errors", "Errors per second", svg.number, False),
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing with its title and, for several lines, their names."""

    title: str
    drawing: Markup
    legend: Markup = NOTHING


def render(view: View) -> str:
    """Return the whole page."""
    pages = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [each for each in view.distributions if each.count]
    return pages.get_template("page.html.j2").render(
        view=view,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        times=[
            _over_time(view, key, title, unit, step=step)
            for key, title, unit, step in _TIMES
            if key in view.times
        ],
        distributions=[_distribution(view, each) for each in shown],
        distribution_heads=("", "count", "mean", *(f"p{p:g}" for p in PERCENTILES), "max"),
        distribution_rows=[_row(each) for each in shown],
    )


def _over_time(
    view: View, key: str, title: str, unit: Callable[[float], str], *, step: bool
) -> Plot:
    data, limit = view.times[key], None
    series = lines_of(data, step=step)
    if key in view.limits:
        name, value = view.limits[key]
        limit = svg.Mark(name=name, value=value)
    drawing = svg.lines(title=title, seconds=data.seconds, series=series, unit=unit, limit=limit)
    return Plot(title=title, drawing=Markup(drawing), legend=Markup(svg.legend(series)))  # noqa: S704


def lines_of(data: OverTime, *, step: bool = False) -> list[svg.Series]:
    """Return the lines of a plot, each with a colour of its own; failures are always red."""
    return [
        svg.Series(
            name=name,
            values=values,
            shade=BAD if name == "failed" else SHADES[index % len(SHADES)],
            step=step,
        )
        for index, (name, values) in enumerate(data.values.items())
    ]


def _distribution(view: View, data: Distribution) -> Plot:
    marks = [
        svg.Mark(name=f"p{p:g}", value=data.percentiles[p], shade="mark")
        for p in (50.0, 95.0, 99.0)
    ]
    if data.name in view.limits:
        name, value = view.limits[data.name]
        marks.append(svg.Mark(name=name, value=value))
    drawing = svg.distribution(title=data.title, bins=data.bins, marks=marks)
    return Plot(title=data.title, drawing=Markup(drawing))  # noqa: S704


def _row(data: Distribution) -> tuple[str, ...]:
    return (
        data.title,
        f"{data.count:,}",
        svg.milliseconds(data.mean),
        *(svg.milliseconds(data.percentiles[p]) for p in PERCENTILES),
        svg.milliseconds(data.largest),
    )
