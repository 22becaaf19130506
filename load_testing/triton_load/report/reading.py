"""From the record of a run to what its reader sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from triton_load import record as records
from triton_load.record import Record, Second
from triton_load.report.svg import clock, milliseconds, number
from triton_load.report.view import (
    PERCENTILES,
    Distribution,
    ErrorClass,
    Objective,
    OverTime,
    Search,
    View,
    rebin,
)

TIMES = {
    records.LATENCY: ("Latency", "latency"),
    records.TTFT: ("Time to first token", "ttft"),
    records.INTER_TOKEN: ("Inter-token time", "inter-token time"),
    records.LAG: ("Lag of arrivals", "lag"),
    records.PROBE_LAG: ("Lag of pauses", "lag"),
}
QUANTILES = ("50", "95", "99")


def view_of(record: Record) -> View:
    """Return what the page and the summary show of a run."""
    return View(
        title=title_of(record),
        verdict=record.verdict.result,
        reasons=record.verdict.reasons,
        facts=facts_of(record),
        figures=figures_of(record),
        distributions=[
            distribution_of(record.distributions[name], *words)
            for name, words in TIMES.items()
            if name in record.distributions and record.distributions[name].count
        ],
        times=times_of(record.series),
        objectives=[objective_of(found) for found in record.objectives],
        errors=[ErrorClass(name=e.name, count=e.count, example=e.example) for e in record.errors],
        generator=generator_of(record),
        search=search_of(record.notes),
        limits=limits_of(record),
    )


def title_of(record: Record) -> str:
    """Return one line: model, kind of requests, load, length."""
    config = record.config
    words = [str(config.get("model", record.name)), str(config.get("client", ""))]
    if config.get("rate"):
        words.append(f"{number(float(config['rate']))} requests/s {config.get('arrival', '')}")
    elif config.get("users"):
        words.append(f"{config['users']} users")
    if config.get("shape", "constant") != "constant":
        peak = f" to {number(float(config['peak']))}" if config.get("peak") else ""
        words.append(f"{config['shape']}{peak}")
    words.append(clock(len(record.series)))
    title = ", ".join(word.strip() for word in words if word)
    return f"capacity: {title}" if "steps" in record.notes else title


def facts_of(record: Record) -> dict[str, str]:
    """Return what was asked for, as text."""
    start = datetime.fromtimestamp(record.started, tz=UTC)
    facts = {"run": record.name, "started": f"{start:%Y-%m-%d %H:%M:%S} UTC"}
    for name, value in record.config.items():
        if value not in (None, "", False, [], {}):
            facts[name.replace("_", " ")] = text_of(value)
    return facts


def search_of(notes: Mapping[str, Any]) -> Search | None:
    """Return the search whose evidence is in the notes of a record; None when there was none."""
    if "steps" not in notes:
        return None
    heads = (notes["unit"], "result", "answered/s", "in flight", "latency p95", "TTFT p95", "why")
    rows = [
        (
            number(step["load"]),
            step["result"],
            number(step["requests_per_second"]),
            number(step["in_flight"]),
            seconds_of(step["p95_latency_seconds"]),
            seconds_of(step["p95_ttft_seconds"]),
            "; ".join(step["reasons"]),
        )
        for step in notes["steps"]
    ]
    return Search(answer=(notes["capacity"], *notes["follows"]), heads=heads, rows=rows)


def seconds_of(value: float | None) -> str:
    """Return a number of seconds as text; a dash when nothing was measured."""
    return "-" if value is None else milliseconds(1000 * value)


def text_of(value: Any) -> str:
    """Return a value of the configuration on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {text_of(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(text_of(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def figures_of(record: Record) -> dict[str, str]:
    """Return the numbers that matter most."""
    totals = record.totals
    ratio = totals.failed / totals.requests if totals.requests else 0.0
    figures = {
        "requests": f"{totals.requests:,}",
        "failed": f"{totals.failed:,}",
        "error ratio": f"{100 * ratio:.3g} %",
        "requests per second": number(totals.requests_per_second),
        "goodput per second": number(totals.goodput),
    }
    if totals.output_tokens_per_second:
        figures["output tokens per second"] = number(totals.output_tokens_per_second)
    for name, label in (
        (records.USER_TOKENS_PER_SECOND, "tokens/s of a user"),
        (records.PROMPT_TOKENS, "prompt tokens"),
        (records.OUTPUT_TOKENS, "output tokens"),
    ):
        found = record.distributions.get(name)
        if found is not None and found.count:
            figures[f"{label} (p50)"] = number(found.quantile(50))
    if totals.unfinished:
        figures["cut at the end"] = f"{totals.unfinished:,}"
    return figures


def distribution_of(found: records.Distribution, title: str, name: str) -> Distribution:
    """Return a distribution of seconds in milliseconds, in few enough bins to draw."""
    return Distribution(
        title=title,
        name=name,
        bins=rebin([(1000 * value, count) for value, count in found.buckets()]),
        count=found.count,
        mean=1000 * found.mean,
        largest=1000 * found.maximum,
        percentiles={p: 1000 * found.quantile(p) for p in PERCENTILES},
    )


def times_of(series: tuple[Second, ...]) -> dict[str, OverTime]:
    """Return the plots over time; those without any data are left out."""
    found: dict[str, dict[str, list[float | None]]] = {
        "latency": quantiles_of(series, lambda second: second.latency),
        "ttft": quantiles_of(series, lambda second: second.ttft),
        "requests": {
            "answered": [float(s.passed) for s in series],
            "offered": [s.offered for s in series],
        },
        "tokens": {"tokens": [float(s.tokens) for s in series]},
        "users": {
            "users": [float(s.users) for s in series],
            "in flight": [float(s.in_flight) for s in series],
        },
        "replicas": {"ready": [None if s.replicas is None else float(s.replicas) for s in series]},
        "errors": {"failed": [float(s.failed) for s in series]},
    }
    seconds = [float(second.at) for second in series]
    plots = {}
    for key, lines in found.items():
        kept = {name: values for name, values in lines.items() if any(values)}
        if kept:
            plots[key] = OverTime(seconds=seconds, values=kept)
    return plots


def quantiles_of(
    series: tuple[Second, ...], part: Callable[[Second], Mapping[str, float]]
) -> dict[str, list[float | None]]:
    """Return p50, p95 and p99 of each second in milliseconds; None where nothing ended."""
    lines: dict[str, list[float | None]] = {f"p{q}": [] for q in QUANTILES}
    for second in series:
        for quantile in QUANTILES:
            value = part(second).get(quantile)
            lines[f"p{quantile}"].append(None if value is None else 1000 * value)
    return lines


def objective_of(found: records.Objective) -> Objective:
    """Return an objective with its measured value as text."""
    measured = "nothing" if found.measured is None else written(found, found.measured)
    return Objective(name=found.name, limit=found.bound, measured=measured, met=found.met)


def is_time(objective: records.Objective) -> bool:
    """Whether an objective bounds a time: a percentile, a mean or a maximum of one."""
    words = objective.name.lower()
    return any(name in words for _, name in TIMES.values()) or "latency" in words


def written(objective: records.Objective, value: float) -> str:
    """Return a measured value in the unit of its objective."""
    if is_time(objective):
        return milliseconds(1000 * value)
    if "ratio" in objective.name.lower():
        return f"{value:.4g}"
    return number(value)


def limits_of(record: Record) -> dict[str, tuple[str, float]]:
    """Return the objective to draw into each plot of a time: the first one that bounds it."""
    limits: dict[str, tuple[str, float]] = {}
    for objective in record.objectives:
        if is_time(objective):
            for _, name in TIMES.values():
                if name in objective.name.lower():
                    text = f"{objective.name} {objective.bound}"
                    limits.setdefault(name, (text, 1000 * objective.limit))
    return limits


def generator_of(record: Record) -> dict[str, str]:
    """Return how the processes that made the load fared."""
    workers = record.workers
    found = {
        "workers": f"{workers.seen} of {workers.expected}",
        "lost": str(workers.lost),
        "highest CPU use of one": f"{workers.cpu_percent:.0f} % of a core",
    }
    if workers.master_cpu_percent:
        found["highest CPU use of the master"] = f"{workers.master_cpu_percent:.0f} % of a core"
    return found | {"lag (p95)": milliseconds(1000 * workers.lag_seconds)}
