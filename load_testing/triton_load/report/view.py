"""What a reader of a report sees, apart from how a run is stored.

The page and the terminal summary are made from these alone; `triton_load.report` fills them from
the record of a run.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PERCENTILES = (50.0, 90.0, 95.0, 99.0)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A merged distribution of times, over the whole run and all workers.

    Attributes:
        title: what is measured, in words.
        name: its short name, as objectives write it.
        bins: lower edge, upper edge (milliseconds) and count, ascending.
        count: how many values there are.
        mean: in milliseconds.
        largest: in milliseconds.
        percentiles: percent -> milliseconds.
    """

    title: str
    name: str
    bins: Sequence[tuple[float, float, float]]
    count: int
    mean: float
    largest: float
    percentiles: dict[float, float]


@dataclass(frozen=True, kw_only=True)
class OverTime:
    """Values for each second of a run; None where nothing was measured.

    Attributes:
        seconds: since the start of the load.
        values: name of the line -> one value for each second.
    """

    seconds: Sequence[float]
    values: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One objective and whether it was met."""

    name: str
    limit: str
    measured: str
    met: bool


@dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """Requests that failed in the same way."""

    name: str
    count: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for the capacity.

    Attributes:
        answer: what was found and what follows from it, a sentence each.
        heads: names of the columns of `rows`.
        rows: a row for each load that was tried, in order.
    """

    answer: Sequence[str]
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything in a report.

    Attributes:
        title: one line: model, client, load.
        verdict: `pass`, `fail` or `invalid`.
        reasons: why it is not `pass`, one sentence each.
        facts: what was run, label -> text.
        figures: the numbers that matter most, label -> text.
        distributions: latency first.
        times: plots over time by key: `latency`, `ttft`, `requests`, `tokens`, `users`, `replicas`,
            `errors`.
        objectives: in the order in which they were written.
        errors: most frequent first.
        generator: how the processes that made the load fared, label -> text.
        search: of which this run is the best step; None for a run of its own.
        limits: an objective to draw, by the name of a distribution or plot: words, milliseconds.
    """

    title: str
    verdict: str
    reasons: Sequence[str]
    facts: dict[str, str]
    figures: dict[str, str]
    distributions: Sequence[Distribution]
    times: dict[str, OverTime]
    objectives: Sequence[Objective] = ()
    errors: Sequence[ErrorClass] = ()
    generator: dict[str, str] = field(default_factory=dict)
    search: Search | None = None
    limits: dict[str, tuple[str, float]] = field(default_factory=dict)


def rebin(
    values: Sequence[tuple[float, float]], *, bars: int = 48
) -> list[tuple[float, float, float]]:
    """Return (value, count) pairs as at most `bars` bins of equal width on a logarithmic axis.

    Args:
        values: ascending values above 0 with their counts.
        bars: the most bins.
    """
    known = [(v, c) for v, c in values if c > 0]
    if not known:
        return []
    low, high = max(known[0][0], 1e-3), max(known[-1][0], 1e-3)
    ratio = max((high / low) ** (1 / bars), 1.02)
    edges = [low / ratio**0.5]
    while edges[-1] <= high:
        edges.append(edges[-1] * ratio)
    counts = [0.0] * (len(edges) - 1)
    for value, count in known:
        counts[min(bisect.bisect_right(edges, max(value, low)) - 1, len(counts) - 1)] += count
    return list(zip(edges[:-1], edges[1:], counts, strict=True))
