"""Read the chart's dashboards as Grafana would, and ask Prometheus what their panels show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.prometheus import Prometheus, Series
from tools.place import ROOT

FOLDER = ROOT / "charts" / "triton" / "files" / "dashboards"
BUILT_IN = ("__rate_interval", "__interval", "__range")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)")
_REFERENCE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<bare>\w+))")


class NoValuesError(LookupError):
    """A variable of a dashboard has no value in this Prometheus."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression of a panel, with variables, and the legend of its series."""

    expression: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A panel: what it asks and where it stands (in 24ths of the width)."""

    dashboard: str
    title: str
    description: str
    kind: str
    unit: str
    x: int
    y: int
    width: int
    height: int
    stacked: bool
    top: float | None
    queries: tuple[Query, ...]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A variable whose values Prometheus knows.

    Attributes:
        all_value: what stands for all values; None where only one may be chosen.
    """

    name: str
    selector: str
    label: str
    regex: str
    all_value: str | None


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One JSON file of the chart."""

    name: str
    title: str
    variables: tuple[Variable, ...]
    rows: tuple[tuple[str, int], ...]
    panels: tuple[Panel, ...]


def load_all(folder: Path = FOLDER) -> list[Dashboard]:
    """Return all dashboards of a folder, by name."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def load(path: Path) -> Dashboard:
    """Return one dashboard."""
    data = json.loads(path.read_text(encoding="utf-8"))
    panels = [item for item in data["panels"] if item["type"] != "row"]
    rows = [item for item in data["panels"] if item["type"] == "row"]
    listed = data["templating"]["list"]
    return Dashboard(
        name=path.stem,
        title=data["title"],
        variables=tuple(_variable(item) for item in listed if item["type"] == "query"),
        rows=tuple((item["title"], item["gridPos"]["y"]) for item in rows),
        panels=tuple(_panel(path.stem, item) for item in panels),
    )


def _variable(item: Mapping[str, Any]) -> Variable:
    query = item["query"]
    text = query["query"] if isinstance(query, dict) else str(query)
    match = _LABEL_VALUES.fullmatch(text)
    if match is None:
        raise ValueError(f"variable {item['name']}: only label_values(selector, label) is known")
    return Variable(
        name=str(item["name"]),
        selector=match["selector"],
        label=match["label"],
        regex=str(item.get("regex") or "").strip("/"),
        all_value=str(item["allValue"]) if item.get("includeAll") else None,
    )


def _panel(name: str, item: Mapping[str, Any]) -> Panel:
    place = item["gridPos"]
    config = item.get("fieldConfig", {})
    defaults = config.get("defaults", {})
    stacking = defaults.get("custom", {}).get("stacking", {})
    targets = item.get("targets", [])
    return Panel(
        dashboard=name,
        title=str(item.get("title", "")),
        description=str(item.get("description", "")),
        kind=str(item["type"]),
        unit=str(defaults.get("unit", "")),
        x=place["x"],
        y=place["y"],
        width=place["w"],
        height=place["h"],
        stacked=stacking.get("mode") == "normal",
        top=defaults.get("max"),
        queries=tuple(
            Query(expression=target["expr"], legend=target.get("legendFormat", ""))
            for target in targets
        ),
    )


def references(text: str) -> set[str]:
    """Return the names of the variables that a text refers to."""
    return {match["braced"] or match["bare"] for match in _REFERENCE.finditer(text)}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables replaced.

    Raises:
        KeyError: a variable has no value.
    """
    return _REFERENCE.sub(lambda match: values[match["braced"] or match["bare"]], text)


def choose(
    dashboard: Dashboard, prometheus: Prometheus, chosen: Mapping[str, str], *, interval: str
) -> dict[str, str]:
    """Return a value for every variable: as chosen, else all, else the first that exists.

    Args:
        dashboard: whose variables.
        prometheus: where their values come from.
        chosen: values by name.
        interval: what stands for `$__rate_interval`, such as `1m`.

    Raises:
        NoValuesError: a variable has none, so no panel that uses it can have data.
    """
    values = {**dict.fromkeys(BUILT_IN, interval), **chosen}
    for variable in dashboard.variables:
        if variable.name in values:
            continue
        selector = fill(variable.selector, values)
        found = prometheus.label_values(variable.label, selector)
        if variable.regex:
            matches = [re.search(variable.regex, value) for value in found]
            found = sorted({match[match.lastindex or 0] for match in matches if match})
        if not found:
            raise NoValuesError(f"no series matches {selector}, so ${variable.name} has no value")
        values[variable.name] = variable.all_value or found[0]
    return values


def legend(query: Query, series: Series) -> str:
    """Return the name of a series, as the query's legend says."""
    text = re.sub(r"\{\{ *(\w+) *\}\}", lambda m: series.labels.get(m[1], ""), query.legend)
    return text.strip() or "value"


def queries(dashboards: list[Dashboard]) -> Iterator[tuple[Panel, Query]]:
    """Yield every query of every panel."""
    for dashboard in dashboards:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield panel, query
