"""Counting a run: outcomes of requests, per second and in all; mergeable over processes.

Flow: clients -> Outcome -> Measurements (one in each process) -> `drain` on a worker -> `merge` on
the master -> Record. Knows nothing of Locust, of HTTP or of objectives.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from triton_load import record
from triton_load.record import Distribution, ErrorClass, Second

# Buckets of the per-second quantiles grow by 1 %: small enough for a plot, and cheap to send.
_GROWTH = math.log(1.01)
_EARLY_SECONDS = 0.01  # a sleep may end a little before its time
_PLOTTED = (50.0, 95.0, 99.0)
DISTRIBUTIONS = (
    record.LATENCY,
    record.TTFT,
    record.INTER_TOKEN,
    record.PROMPT_TOKENS,
    record.OUTPUT_TOKENS,
    record.USER_TOKENS_PER_SECOND,
    record.LAG,
    record.PROBE_LAG,
)


def to_next_sample(now: float) -> float:
    """How many seconds it is to the next middle of a second, so that each second has one sample."""
    rest = math.floor(now + 0.5) + 0.5 - now
    return rest if rest > _EARLY_SECONDS else rest + 1


@dataclasses.dataclass(kw_only=True, slots=True)
class Outcome:
    """One request and its moments, in seconds of `time.perf_counter`.

    Attributes:
        case: Name of the case that was sent.
        scheduled: When it should have started: latencies count from here. None where nothing was
            planned: a user of a closed loop asks when it is ready.
        started: When it did.
        first: When the first token arrived; None without a stream or without a token.
        ended: When the answer was complete or the error known.
        tokens: Arrivals of tokens, in order: moment and how many came with it.
        prompt_tokens: Length of the prompt as the server counted it, or None.
        output_tokens: Length of the answer as the server counted it, or None.
        text_bytes: Size of the answer.
        error: Class and text of what went wrong, or None.
    """

    case: str
    scheduled: float | None = None
    started: float
    first: float | None = None
    ended: float = 0.0
    tokens: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    text_bytes: int = 0
    error: tuple[str, str] | None = None

    @property
    def due(self) -> float:
        """When it should have started."""
        return self.started if self.scheduled is None else self.scheduled

    @property
    def latency(self) -> float:
        """Seconds from when it should have started to its end."""
        return self.ended - self.due

    @property
    def ttft(self) -> float | None:
        """Seconds from when it should have started to the first token."""
        return None if self.first is None else self.first - self.due

    def gaps(self) -> Iterable[tuple[float, int]]:
        """Seconds per token after the first arrival, and for how many tokens.

        An arrival of k tokens after a pause p is k tokens at p / k each.
        """
        for (before, _), (now, count) in zip(self.tokens, self.tokens[1:], strict=False):
            yield (now - before) / count, count

    @property
    def mean_gap(self) -> float | None:
        """Mean seconds per token after the first arrival, or None."""
        count = sum(count for _, count in self.tokens[1:])
        return (self.tokens[-1][0] - self.tokens[0][0]) / count if count else None


@dataclasses.dataclass(slots=True)
class _Cell:
    """Counts of one second, in one process or in all."""

    started: int = 0
    passed: int = 0
    failed: int = 0
    tokens: int = 0
    users: int = 0
    in_flight: int = 0
    latency: Counter[int] = dataclasses.field(default_factory=Counter)
    ttft: Counter[int] = dataclasses.field(default_factory=Counter)


_NUMBERS = ("started", "passed", "failed", "tokens", "users", "in_flight")


class Measurements:
    """All counts of one process, or of all of them."""

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        """Start at zero.

        Args:
            limits: For goodput: longest good latency, time to first token and mean inter-token
                time of one request, in seconds, by the names of the distributions.
        """
        self.limits = dict(limits or {})
        # perf_counter is exact, time.time is shared by all processes: one offset joins them.
        self._offset = time.time() - time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self.distributions = {name: Distribution(name) for name in DISTRIBUTIONS}
        self.cells: dict[int, _Cell] = {}
        self.errors: dict[str, list[Any]] = {}
        self.good = 0
        self.begun = 0
        self.span: list[float] = []

    def start(self, moment: float) -> None:
        """Count a request that starts."""
        self.begun += 1
        self._cell(moment).started += 1

    def finish(self, outcome: Outcome) -> None:
        """Count a request that ended."""
        cell = self._cell(outcome.ended)
        self._widen(outcome)
        if outcome.scheduled is not None:
            self.distributions[record.LAG].add(outcome.started - outcome.scheduled)
        if outcome.error is not None:
            cell.failed += 1
            name, text = outcome.error
            self.errors.setdefault(name, [0, text])[0] += 1
            return
        cell.passed += 1
        self.good += self._is_good(outcome)
        cell.latency[_bucket(outcome.latency)] += 1
        self.distributions[record.LATENCY].add(outcome.latency)
        if outcome.ttft is not None:
            self.distributions[record.TTFT].add(outcome.ttft)
            cell.ttft[_bucket(outcome.ttft)] += 1
        self._count_tokens(outcome)

    def sample(self, *, users: int, in_flight: int, moment: float) -> None:
        """Note how many users there are and how many requests are in flight, once a second."""
        cell = self._cell(moment)
        cell.users, cell.in_flight = users, in_flight

    def probe(self, seconds: float) -> None:
        """Note how late this process was with a pause that it had planned."""
        self.distributions[record.PROBE_LAG].add(seconds)

    def lag(self, percent: float) -> float:
        """How late the generator was, in seconds: with its arrivals or its pauses, the worse."""
        kinds = (record.LAG, record.PROBE_LAG)
        return max(self.distributions[name].quantile(percent) for name in kinds)

    def drain(self) -> dict[str, Any]:
        """Everything since the last call as plain data, for `merge` in another process."""
        data = {
            "distributions": {
                name: found.encode() for name, found in self.distributions.items() if found.count
            },
            "cells": {
                str(second): [
                    *(getattr(cell, name) for name in _NUMBERS),
                    {str(key): count for key, count in cell.latency.items()},
                    {str(key): count for key, count in cell.ttft.items()},
                ]
                for second, cell in self.cells.items()
            },
            "errors": self.errors,
            "good": self.good,
            "begun": self.begun,
            "span": self.span,
        }
        self._reset()
        return data

    def merge(self, data: Mapping[str, Any]) -> None:
        """Add what `drain` returned in another process."""
        for name, encoded in data["distributions"].items():
            self.distributions[name].merge(encoded)
        for second, values in data["cells"].items():
            cell = self.cells.setdefault(int(second), _Cell())
            for name, value in zip(_NUMBERS, values, strict=False):
                setattr(cell, name, getattr(cell, name) + value)
            cell.latency.update({int(key): count for key, count in values[-2].items()})
            cell.ttft.update({int(key): count for key, count in values[-1].items()})
        for name, (count, text) in data["errors"].items():
            self.errors.setdefault(name, [0, text])[0] += count
        self.good += data["good"]
        self.begun += data["begun"]
        if data["span"]:
            low, high = data["span"]
            self.span = [min([low, *self.span]), max([high, *self.span])]

    @property
    def passed(self) -> int:
        """Requests that ended well."""
        return sum(cell.passed for cell in self.cells.values())

    @property
    def failed(self) -> int:
        """Requests that ended with an error."""
        return sum(cell.failed for cell in self.cells.values())

    @property
    def tokens(self) -> int:
        """Output tokens that arrived."""
        return sum(cell.tokens for cell in self.cells.values())

    @property
    def counts_tokens(self) -> bool:
        """Whether the server or a stream told how many tokens there were; 0 is a number, too."""
        return bool(self.tokens or self.distributions[record.OUTPUT_TOKENS].count)

    def totals(self) -> record.Totals:
        """Sums and rates of everything so far."""
        duration = self.span[1] - self.span[0] if self.span else 0.0
        ended = self.passed + self.failed
        per_second = 1.0 / duration if duration > 0 else 0.0
        return record.Totals(
            requests=ended,
            failed=self.failed,
            unfinished=max(0, self.begun - ended),
            duration=duration,
            requests_per_second=self.passed * per_second,
            output_tokens_per_second=self.tokens * per_second if self.counts_tokens else None,
            goodput=self.good * per_second,
        )

    def series(self, *, started: float) -> tuple[Second, ...]:
        """One entry a second from a Unix time on, without gaps."""
        first = math.floor(started)
        known = [second for second in self.cells if second >= first]
        cells = (
            (second, self.cells.get(second, _Cell()))
            for second in range(first, max(known, default=first - 1) + 1)
        )
        return tuple(
            Second(
                at=second - first,
                **{name: getattr(cell, name) for name in _NUMBERS},
                latency=_quantiles(cell.latency),
                ttft=_quantiles(cell.ttft),
            )
            for second, cell in cells
        )

    def error_classes(self) -> tuple[ErrorClass, ...]:
        """What went wrong, the most frequent first."""
        found = [
            ErrorClass(name=name, count=count, example=text)
            for name, (count, text) in self.errors.items()
        ]
        return tuple(sorted(found, key=lambda item: (-item.count, item.name)))

    def _cell(self, moment: float) -> _Cell:
        second = math.floor(moment + self._offset)
        cell = self.cells.get(second)
        if cell is None:
            cell = self.cells[second] = _Cell()
        return cell

    def _widen(self, outcome: Outcome) -> None:
        low, high = outcome.due + self._offset, outcome.ended + self._offset
        if self.span:
            self.span = [min(low, self.span[0]), max(high, self.span[1])]
        else:
            self.span = [low, high]

    def _count_tokens(self, outcome: Outcome) -> None:
        gaps = self.distributions[record.INTER_TOKEN]
        for seconds, count in outcome.gaps():
            gaps.add(seconds, count)
        for moment, count in outcome.tokens:
            self._cell(moment).tokens += count
        if outcome.prompt_tokens is not None:
            self.distributions[record.PROMPT_TOKENS].add(outcome.prompt_tokens)
        if outcome.output_tokens is not None:
            self.distributions[record.OUTPUT_TOKENS].add(outcome.output_tokens)
            if not outcome.tokens:
                self._cell(outcome.ended).tokens += outcome.output_tokens
            if outcome.latency > 0:
                speed = outcome.output_tokens / outcome.latency
                self.distributions[record.USER_TOKENS_PER_SECOND].add(speed)

    def _is_good(self, outcome: Outcome) -> bool:
        measured = {
            record.LATENCY: outcome.latency,
            record.TTFT: outcome.ttft,
            record.INTER_TOKEN: outcome.mean_gap,
        }
        return all(
            value is None or value <= self.limits.get(name, math.inf)
            for name, value in measured.items()
        )


def _bucket(seconds: float) -> int:
    return math.ceil(math.log(max(seconds, 1e-6)) / _GROWTH)


def _quantiles(buckets: Counter[int]) -> dict[str, float]:
    total = buckets.total()
    if not total:
        return {}
    found, seen, wanted = {}, 0, list(_PLOTTED)
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        while wanted and seen >= math.ceil(total * wanted[0] / 100):
            found[f"{wanted.pop(0):g}"] = math.exp(bucket * _GROWTH)
    return found
