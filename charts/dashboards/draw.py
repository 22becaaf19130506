"""Draw the chart's dashboards from a live Prometheus into PNG files, without a Grafana.

Usage: python -m dashboards.draw --prometheus URL --out DIR [--minutes N] [--set release=NAME ...]
       (without --prometheus the one of the cluster in use)
Writes one PNG for each dashboard and prints its path.
Exit codes: 0 drawn, 1 Prometheus cannot be asked, 3 some query has no data (they are named).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import dates, pyplot, ticker

from dashboards.panels import Dashboard, NoValuesError, Panel, choose, fill, legend, load_all
from lib.prometheus import Prometheus, PrometheusError, in_cluster
from tools import place

POINTS = 240  # values a line has at most; a panel of that width shows no more
LINE = 0.42  # inches that one unit of a panel's height takes
WIDTH = 18.0  # inches
LEGEND_LINES = 8
UNITS = {
    "reqps": "req/s",
    "s": "s",
    "µs": "µs",
    "watt": "W",
    "joule": "J",
    "celsius": "°C",
    "bytes": "B",
    "rotmhz": "MHz",
    "none": "",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel: name, times and values."""

    name: str
    times: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """From when to when, in Unix seconds, and the pause between two values."""

    start: float
    end: float
    step: float


def unit(panel: Panel) -> str:
    """Return the unit as it stands beside a number."""
    if panel.unit.startswith("suffix:"):
        return panel.unit.removeprefix("suffix:").strip()
    return UNITS.get(panel.unit, panel.unit)


def number(value: float, panel: Panel) -> str:
    """Return a number with its unit, three digits."""
    if math.isnan(value):
        return "-"
    if panel.unit == "percentunit":
        return f"{value * 100:.3g} %"
    if panel.unit == "bytes":
        return f"{value / 2**30:.3g} GiB"
    return (
        f"{value:,.3g} {unit(panel)}".strip()
        if abs(value) < 1000
        else f"{value:,.0f} {unit(panel)}"
    )


def lines(
    panel: Panel, prometheus: Prometheus, values: Mapping[str, str], span: Span
) -> tuple[list[Line], list[str]]:
    """Return the lines of a panel, and the queries that gave none."""
    found: list[Line] = []
    empty: list[str] = []
    for query in panel.queries:
        expression = fill(query.expression, values)
        answer = prometheus.query_range(expression, start=span.start, end=span.end, step=span.step)
        if not any(not math.isnan(value) for series in answer for value in series.values):
            empty.append(expression)
        found += [
            Line(name=legend(query, series), times=series.times, values=series.values)
            for series in answer
        ]
    return found, empty


def draw(
    dashboard: Dashboard, prometheus: Prometheus, chosen: Mapping[str, str], span: Span
) -> tuple[Any, list[str]]:
    """Return the figure of a dashboard, and one sentence for each query without data."""
    interval = f"{max(math.ceil(span.step), 4 * _scrape_seconds(prometheus))}s"
    try:
        values = choose(dashboard, prometheus, chosen, interval=interval)
    except NoValuesError as error:
        return None, [f"{dashboard.name}: {error}"]
    height = max(panel.y + panel.height for panel in dashboard.panels)
    figure = pyplot.figure(figsize=(WIDTH, height * LINE + 0.6), dpi=80)
    shown = ", ".join(
        f"{v.name}: {'all' if values[v.name] == v.all_value else values[v.name]}"
        for v in dashboard.variables
    )
    figure.suptitle(f"{dashboard.title}    {shown}", x=0.01, ha="left", fontsize=13)
    total = height + 0.6 / LINE
    for title, y in dashboard.rows:
        place_y = 1 - (y + 0.8 + 0.6 / LINE) / total
        figure.text(0.01, place_y, title, fontsize=11, weight="bold", color="0.35")
    missing: list[str] = []
    for panel in dashboard.panels:
        found, empty = lines(panel, prometheus, values, span)
        missing += [f"{dashboard.name} / {panel.title}: {expression}" for expression in empty]
        box = (
            panel.x / 24 * 0.99 + 0.05,
            1 - (panel.y + panel.height + 0.6 / LINE) / total,
            panel.width / 24 * 0.99 - 0.06,
            panel.height / total,
        )
        (_number if panel.kind == "stat" else _graph)(figure, box, panel, found, span)
    return figure, missing


def _scrape_seconds(prometheus: Prometheus) -> int:
    """Return the longest scrape interval of the targets; Grafana has it from its data source."""
    found = [target.get("scrapeInterval", "15s") for target in prometheus.targets()]
    seconds = [_seconds(text) for text in found] or [15.0]
    return math.ceil(max(seconds))


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    for name in ("ms", "s", "m", "h"):
        if text.endswith(name) and text.removesuffix(name).replace(".", "").isdigit():
            return float(text.removesuffix(name)) * units[name]
    return 15.0


def _number(
    figure: Any, box: tuple[float, ...], panel: Panel, found: Sequence[Line], span: Span
) -> None:
    left, bottom, width, height = box
    axes = figure.add_axes((left - 0.02, bottom, width + 0.03, height * 0.85))
    axes.set_axis_off()
    last = next(
        (value for line in found for value in reversed(line.values) if not math.isnan(value)),
        math.nan,
    )
    text = "no data" if math.isnan(last) else number(last, panel)
    axes.text(0.5, 0.55, text, ha="center", va="center", fontsize=20, transform=axes.transAxes)
    axes.text(0.5, 0.95, panel.title, ha="center", va="top", fontsize=10, transform=axes.transAxes)
    spark = figure.add_axes((left - 0.01, bottom, width + 0.01, height * 0.25))
    spark.set_axis_off()
    for line in found:
        spark.plot(_times(line), line.values, linewidth=1, color="tab:blue")
    spark.set_xlim(_day(span.start), _day(span.end))


def _graph(
    figure: Any, box: tuple[float, ...], panel: Panel, found: Sequence[Line], span: Span
) -> None:
    left, bottom, width, height = box
    shown = min(len(found), LEGEND_LINES)
    under = (0.12 + 0.055 * shown) * height
    axes = figure.add_axes((left, bottom + under, width, height * 0.88 - under))
    axes.set_title(panel.title, fontsize=10, loc="left")
    if not found:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
    if panel.stacked and found:
        _stack(axes, panel, found, span)
    else:
        # Zeros lie on the axis: they are drawn whole and over it, or nobody would see them.
        style = {"linewidth": 1.3, "clip_on": False, "zorder": 3}
        for line, label in zip(found, _labels(found, panel), strict=True):
            axes.plot(_times(line), line.values, label=label, **style)
    axes.set_xlim(_day(span.start), _day(span.end))
    axes.margins(y=0.08)
    all_zero = not any(value > 0 for line in found for value in line.values)
    axes.set_ylim(bottom=0, top=panel.top or (1 if all_zero else None))
    axes.grid(color="0.92")
    axes.tick_params(labelsize=8)
    pattern = "%H:%M" if span.end - span.start >= 600 else "%H:%M:%S"
    ticks = dates.AutoDateLocator(minticks=2, maxticks=max(3, round(14 * width)))  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(ticks)
    axes.xaxis.set_major_formatter(dates.DateFormatter(pattern))  # type: ignore[no-untyped-call]
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value, panel)))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if found:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(
            handles[:shown],
            labels[:shown],
            loc="upper left",
            bbox_to_anchor=(0, -0.1 * height / (height * 0.88 - under)),
            fontsize=7.5,
            frameon=False,
            borderaxespad=0,
        )


def _stack(axes: Any, panel: Panel, found: Sequence[Line], span: Span) -> None:
    count = round((span.end - span.start) / span.step) + 1
    grid = [span.start + index * span.step for index in range(count)]
    rows = []
    for line in found:
        known = {
            round((time - span.start) / span.step): value
            for time, value in zip(line.times, line.values, strict=True)
        }
        rows.append([0.0 if math.isnan(v := known.get(i, 0.0)) else v for i in range(count)])
    axes.stackplot(
        [_day(time) for time in grid],
        rows,
        labels=_labels(found, panel),
        alpha=0.6,
    )


def _labels(found: Sequence[Line], panel: Panel) -> list[str]:
    """Return the legend; what all pods' names begin with says nothing and takes the room."""
    names = [line.name for line in found]
    common = os.path.commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 - no paths
    skip = common.rfind("-") + 1
    names = [f"…{name[skip:]}" if skip else name for name in names]
    return [_label(name, line, panel) for name, line in zip(names, found, strict=True)]


def _label(name: str, line: Line, panel: Panel) -> str:
    real = [value for value in line.values if not math.isnan(value)]
    if not real:
        return f"{name}  (no data)"
    return f"{name}  (last {number(real[-1], panel)}, highest {number(max(real), panel)})"


def _day(seconds: float) -> float:
    return seconds / 86400.0


def _times(line: Line) -> list[float]:
    return [_day(time) for time in line.times]


def draw_all(
    prometheus: Prometheus,
    out: Path,
    *,
    minutes: float,
    chosen: Mapping[str, str],
    end: float | None = None,
) -> tuple[list[Path], list[str]]:
    """Draw every dashboard into `out`; return the files, and the queries without data."""
    out.mkdir(parents=True, exist_ok=True)
    end = time.time() if end is None else end
    start = end - minutes * 60
    span = Span(start=start, end=end, step=max(1.0, (end - start) / POINTS))
    files: list[Path] = []
    missing: list[str] = []
    for dashboard in load_all():
        figure, empty = draw(dashboard, prometheus, chosen, span)
        missing += empty
        if figure is not None:
            files.append(out / f"{dashboard.name}.png")
            figure.savefig(files[-1])
            pyplot.close(figure)
    return files, missing


def main() -> int:
    """Draw, print the files; return the exit code."""
    parser = argparse.ArgumentParser(prog="dashboards.draw", description=__doc__.split("\n")[0])
    parser.add_argument("--prometheus", help="address, such as http://127.0.0.1:9090")
    parser.add_argument("--out", type=Path, required=True, help="folder of the PNG files")
    parser.add_argument("--minutes", type=float, default=15.0, help="how far back (15)")
    parser.add_argument("--end", type=float, help="Unix time of the end (now)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="value of a variable"
    )
    options = parser.parse_args()
    chosen = dict(item.split("=", 1) for item in options.set)
    try:
        with contextlib.ExitStack() as stack:
            if options.prometheus:
                prometheus = Prometheus(url=options.prometheus.rstrip("/"))
            else:
                prometheus = stack.enter_context(in_cluster(place.current()))
            files, missing = draw_all(
                prometheus, options.out, minutes=options.minutes, chosen=chosen, end=options.end
            )
    except (PrometheusError, TimeoutError) as error:
        print(f"draw: {error}", file=sys.stderr)
        return 1
    for path in files:
        print(path)
    for sentence in missing:
        print(f"draw: no data: {sentence}", file=sys.stderr)
    return 3 if missing else 0


if __name__ == "__main__":
    raise SystemExit(main())
