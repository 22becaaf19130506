"""The metrics of a model: counted here at memory speed, copied to Triton twice a second.

A call into Triton crosses a process border, so the engine's thread only touches the counts in this
process and a thread of the publisher carries them over. Counters and gauges take one call for all
that happened since the last time. Histograms of Triton 2.51 take one value a call and nothing in
bulk: a token costs 13 to 17 us of this process (5,000 `observe` in a loop inside a model, 2 cores),
so 1,000 tokens/s take 1.6 % of a core, and as much in Triton.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from typing import Any

from triton_hf.runtime import log_fault

PUBLISH_SECONDS = 0.25
FINISH_REASONS = ("stop", "length")
REJECT_REASONS = ("invalid", "queue_full", "queue_deadline")

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STEP = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
_DURATION = (
    *(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 60.0),
    *(120.0, 300.0, 600.0),
)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One metric name: kind is `counter`, `gauge` or `histogram`.

    `late` families appear with their first value; a 0 before it would say something wrong.
    """

    name: str
    kind: str
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    late: bool = False


FAMILIES = (
    Family(name="triton_hf_requests_running", kind="gauge", help="Requests that hold a slot"),
    Family(name="triton_hf_requests_waiting", kind="gauge", help="Requests that wait for a slot"),
    Family(name="triton_hf_slots", kind="gauge", help="Slots of the engine"),
    Family(
        name="triton_hf_kv_cache_usage_ratio",
        kind="gauge",
        help="Share of the key and value cache in use, 0 to 1",
    ),
    Family(
        name="triton_hf_engine_start_time_seconds",
        kind="gauge",
        help="Unix time at which the engine was ready",
        late=True,  # from 0 to a time would count as a restart
    ),
    Family(
        name="triton_hf_prompt_tokens_total",
        kind="counter",
        help="Prompt tokens of accepted requests",
    ),
    Family(name="triton_hf_generation_tokens_total", kind="counter", help="Tokens generated"),
    Family(
        name="triton_hf_requests_finished_total",
        kind="counter",
        help="Requests answered to the end, by finish reason",
        label="reason",
        values=FINISH_REASONS,
    ),
    Family(
        name="triton_hf_requests_cancelled_total",
        kind="counter",
        help="Requests whose client went away",
    ),
    Family(
        name="triton_hf_requests_rejected_total",
        kind="counter",
        help="Requests refused before they got a slot, by reason",
        label="reason",
        values=REJECT_REASONS,
    ),
    Family(
        name="triton_hf_requests_failed_total",
        kind="counter",
        help="Accepted requests that the engine could not answer",
    ),
    Family(
        name="triton_hf_queue_seconds",
        kind="histogram",
        help="From submission to a slot, in seconds",
        buckets=_LATENCY,
    ),
    Family(
        name="triton_hf_time_to_first_token_seconds",
        kind="histogram",
        help="From submission to the first token, in seconds",
        buckets=_LATENCY,
    ),
    Family(
        name="triton_hf_inter_token_seconds",
        kind="histogram",
        help="Between two tokens of one answer, in seconds",
        buckets=_STEP,
    ),
    Family(
        name="triton_hf_request_duration_seconds",
        kind="histogram",
        help="From submission to the last token, in seconds",
        buckets=_DURATION,
    ),
    Family(
        name="triton_hf_prompt_tokens",
        kind="histogram",
        help="Prompt tokens per finished request",
        buckets=_TOKENS,
    ),
    Family(
        name="triton_hf_generation_tokens",
        kind="histogram",
        help="Generated tokens per finished request",
        buckets=_TOKENS,
    ),
)

Key = tuple[str, str | None]


class Metrics:
    """Counts of one model in this process; safe from any thread."""

    def __init__(self) -> None:
        """Start at zero."""
        self._lock = threading.Lock()
        self._gauges: dict[Key, float] = {}
        self._counts: dict[Key, float] = {}
        self._observations: list[tuple[str, float]] = []

    def ready(self, *, slots: int) -> None:
        """The engine can answer."""
        self._set("triton_hf_slots", slots)
        self._set("triton_hf_engine_start_time_seconds", time.time())

    def queue(self, *, running: int, waiting: int, kv_usage: float) -> None:
        """The queue changed."""
        self._set("triton_hf_requests_running", running)
        self._set("triton_hf_requests_waiting", waiting)
        self._set("triton_hf_kv_cache_usage_ratio", kv_usage)

    def prompt(self, tokens: int) -> None:
        """Prompts of this many tokens were accepted."""
        self._count("triton_hf_prompt_tokens_total", tokens)

    def admitted(self, seconds: float) -> None:
        """A request got a slot after waiting this long."""
        self._observe("triton_hf_queue_seconds", seconds)

    def first_token(self, seconds: float) -> None:
        """A request got its first token after this time."""
        self._count("triton_hf_generation_tokens_total", 1)
        self._observe("triton_hf_time_to_first_token_seconds", seconds)

    def next_token(self, seconds: float) -> None:
        """A request got another token, this time after the one before."""
        self._count("triton_hf_generation_tokens_total", 1)
        self._observe("triton_hf_inter_token_seconds", seconds)

    def finished(
        self, reason: str, *, duration: float, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """A request ended; `cancelled` counts apart and leaves the histograms alone."""
        if reason == "cancelled":
            self._count("triton_hf_requests_cancelled_total", 1)
            return
        self._count("triton_hf_requests_finished_total", 1, reason)
        self._observe("triton_hf_request_duration_seconds", duration)
        self._observe("triton_hf_prompt_tokens", prompt_tokens)
        self._observe("triton_hf_generation_tokens", completion_tokens)

    def failed(self, *, completion_tokens: int) -> None:
        """An accepted request failed after this many tokens."""
        del completion_tokens  # they were counted one by one
        self._count("triton_hf_requests_failed_total", 1)

    def rejected(self, reason: str, requests: int = 1) -> None:
        """Requests were refused, for one of `REJECT_REASONS`."""
        self._count("triton_hf_requests_rejected_total", requests, reason)

    def drain(self) -> tuple[dict[Key, float], dict[Key, float], list[tuple[str, float]]]:
        """Return gauges, counts since the last call and observations since the last call."""
        with self._lock:
            gauges, self._gauges = self._gauges, {}
            counts, self._counts = self._counts, {}
            observations, self._observations = self._observations, []
        return gauges, counts, observations

    def put_back(self, gauges: Mapping[Key, float], counts: Mapping[Key, float]) -> None:
        """Take back what could not be carried over; a gauge that has moved since stays."""
        with self._lock:
            self._gauges = {**gauges, **self._gauges}
            for key, amount in counts.items():
                self._counts[key] = self._counts.get(key, 0.0) + amount

    def _set(self, name: str, value: float) -> None:
        with self._lock:
            self._gauges[name, None] = float(value)

    def _count(self, name: str, amount: float, label: str | None = None) -> None:
        with self._lock:
            self._counts[name, label] = self._counts.get((name, label), 0.0) + amount

    def _observe(self, name: str, value: float) -> None:
        with self._lock:
            self._observations.append((name, float(value)))


class TritonPublisher:
    """Copies the counts to Triton's own /metrics."""

    def __init__(self, *, metrics: Metrics, model: str, backend: Any) -> None:
        """Register the families, so that their series exist from the start with value 0.

        Args:
            metrics: What to copy.
            model: Value of the label `model`.
            backend: The module `triton_python_backend_utils`.
        """
        self._metrics = metrics
        self._families: list[Any] = []  # a metric dies with its family, so keep them
        self._series: dict[Key, Any] = {}
        self._model = model
        self._backend = backend
        self._stopping = threading.Event()
        for family in FAMILIES:
            if not family.late:
                self._register(family)
        self._thread = threading.Thread(target=self._loop, name="metrics", daemon=True)

    def start(self) -> None:
        """Copy from now on, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Copy once more and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _register(self, family: Family) -> None:
        kinds = self._backend.MetricFamily
        kind = getattr(kinds, family.kind.upper())
        made = kinds(name=family.name, description=family.help, kind=kind)
        self._families.append(made)
        for value in family.values or (None,):
            labels: Mapping[str, str] = {"model": self._model}
            if family.label is not None and value is not None:
                labels = {**labels, family.label: value}
            extra = {"buckets": list(family.buckets)} if family.buckets else {}
            self._series[family.name, value] = made.Metric(labels=labels, **extra)

    def _loop(self) -> None:
        last = False
        while not last:
            last = self._stopping.wait(PUBLISH_SECONDS)
            try:
                self._copy()
            except Exception as error:  # a thread that ends would freeze the scaling signal
                log_fault(error)

    def _copy(self) -> None:
        """Carry over what is new.

        What Triton does not take is written to the log; gauges and counts wait for the next time,
        an observation is lost.
        """
        gauges, counts, observations = self._metrics.drain()
        faults = _Faults()
        for key in list(gauges):
            with faults:
                self._series_of(key).set(gauges[key])
                del gauges[key]
        for key in list(counts):
            with faults:
                self._series[key].increment(counts[key])
                del counts[key]
        for name, value in observations:
            with faults:
                self._series[name, None].observe(value)
        self._metrics.put_back(gauges, counts)
        faults.report()

    def _series_of(self, key: Key) -> Any:
        if key not in self._series:
            self._register(next(family for family in FAMILIES if family.name == key[0]))
        return self._series[key]


class _Faults:
    """Remembers what went wrong in some blocks, so that each block stands for itself."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, Exception):
            self._first = self._first or error
            return True
        return False

    def report(self) -> None:
        if self._first is not None:
            log_fault(self._first)
