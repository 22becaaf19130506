"""One self-contained HTML page for a run: verdict, numbers, plots, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from triton_load.report import svg
from triton_load.report.style import STYLE
from triton_load.report.view import PERCENTILES, Distribution, OverTime, View

SHADES = ("a", "b", "c", "d")
BAD = "c"


def render(view: View) -> str:
    """Return the whole page."""
    parts = [
        _head(view),
        _search(view),
        _figures(view),
        _objectives(view),
        _time_plots(view),
        _distributions(view),
        _errors(view),
        _generator(view),
        _facts(view),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(view.title)}: {view.verdict}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _head(view: View) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in view.reasons)
    return (
        f'<header><span class="verdict {view.verdict}">{escape(view.verdict)}</span>'
        f"<h1>{escape(view.title)}</h1></header>\n"
        + (f'<ul class="reasons">{reasons}</ul>\n' if reasons else "")
    )


def _search(view: View) -> str:
    if view.search is None:
        return ""
    answer = "".join(f"<li>{escape(line)}</li>" for line in view.search.answer)
    table = _table(view.search.heads, view.search.rows)
    note = "<p>All below is of the best step, or of the last one where none held twice.</p>"
    return _section("Search for the capacity", f"<ul>{answer}</ul>{table}{note}")


def _figures(view: View) -> str:
    tiles = "".join(
        f"<div><b>{escape(text)}</b><span>{escape(label)}</span></div>"
        for label, text in view.figures.items()
    )
    return f'<section class="figures">{tiles}</section>\n'


def _objectives(view: View) -> str:
    if not view.objectives:
        return ""
    rows = [
        (
            o.name,
            o.limit,
            o.measured,
            '<i class="yes">met</i>' if o.met else '<i class="no">missed</i>',
        )
        for o in view.objectives
    ]
    return _section("Objectives", _table(("objective", "limit", "measured", ""), rows, raw=(3,)))


def _time_plots(view: View) -> str:
    plots = [
        _over_time(view, "latency", "Latency over time", svg.milliseconds),
        _over_time(view, "ttft", "Time to first token over time", svg.milliseconds),
        _over_time(view, "requests", "Requests per second", svg.number),
        _over_time(view, "tokens", "Output tokens per second", svg.number),
        _over_time(view, "users", "Users and requests in flight", svg.number, step=True),
        _over_time(view, "replicas", "Server replicas", svg.number, step=True),
        _over_time(view, "errors", "Errors per second", svg.number),
    ]
    return _section("Over time", f'<div class="plots">{"".join(plots)}</div>')


def _over_time(
    view: View, key: str, title: str, unit: Callable[[float], str], *, step: bool = False
) -> str:
    data = view.times.get(key)
    if data is None:
        return ""
    series = lines_of(data, step=step)
    limit = None
    if key in view.limits:
        name, value = view.limits[key]
        limit = svg.Mark(name=name, value=value)
    drawing = svg.lines(title=title, seconds=data.seconds, series=series, unit=unit, limit=limit)
    return _figure(title, drawing, svg.legend(series))


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


def _distributions(view: View) -> str:
    shown = [d for d in view.distributions if d.count]
    if not shown:
        return ""
    plots = "".join(_distribution(view, d) for d in shown)
    heads = ("", "count", "mean", *(f"p{p:g}" for p in PERCENTILES), "max")
    rows = [
        (
            d.title,
            f"{d.count:,}",
            svg.milliseconds(d.mean),
            *(svg.milliseconds(d.percentiles[p]) for p in PERCENTILES),
            svg.milliseconds(d.largest),
        )
        for d in shown
    ]
    return _section("Distributions", f'<div class="plots">{plots}</div>{_table(heads, rows)}')


def _distribution(view: View, data: Distribution) -> str:
    marks = [
        svg.Mark(name=f"p{p:g}", value=data.percentiles[p], shade="mark")
        for p in (50.0, 95.0, 99.0)
    ]
    if data.name in view.limits:
        name, value = view.limits[data.name]
        marks.append(svg.Mark(name=name, value=value))
    return _figure(data.title, svg.distribution(title=data.title, bins=data.bins, marks=marks), "")


def _errors(view: View) -> str:
    if not view.errors:
        return _section("Errors", "<p>None.</p>")
    rows = [(e.name, f"{e.count:,}", e.example) for e in view.errors]
    return _section("Errors", _table(("class", "requests", "example"), rows))


def _generator(view: View) -> str:
    if not view.generator:
        return ""
    return _section("Generator", _table((), list(view.generator.items())))


def _facts(view: View) -> str:
    rows = list(view.facts.items())
    return _section("What was run", _table((), rows))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n"


def _figure(title: str, drawing: str, legend: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{drawing}</figure>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, raw: Sequence[int] = ()) -> str:
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td>{cell if index in raw else escape(cell)}</td>" for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table>{f"<tr>{head}</tr>" if head else ""}{body}</table></div>'
