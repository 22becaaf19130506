"""The metrics of a model, counted in this process; `backend.publisher` copies them to Triton."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence

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

    `late` families appear with their first value; a 0 before it would say something wrong. Not
    every engine has the `optional` ones.
    """

    name: str
    kind: str
    help: str
    label: str | None = None
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    late: bool = False
    optional: bool = False


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
        name="triton_hf_cpu_level",
        kind="gauge",
        help="CPU instructions, as the CPU shows and in use: 1 AVX512, 2 VNNI, 3 BF16, 4 AMX",
        label="of",
        values=("shown", "used"),
        late=True,
        optional=True,  # only the native kernels have levels
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
        help="Requests that ended early: the client left, or another row of the request failed",
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

# What the tasks have that answer with one forward pass.
_BATCHED = frozenset(
    {
        "triton_hf_requests_running",
        "triton_hf_requests_waiting",
        "triton_hf_slots",
        "triton_hf_engine_start_time_seconds",
        "triton_hf_prompt_tokens_total",
        "triton_hf_requests_finished_total",
        "triton_hf_requests_cancelled_total",
        "triton_hf_requests_rejected_total",
        "triton_hf_requests_failed_total",
        "triton_hf_queue_seconds",
        "triton_hf_request_duration_seconds",
        "triton_hf_prompt_tokens",
    }
)
POOLING_FAMILIES = (
    *(family for family in FAMILIES if family.name in _BATCHED),
    Family(
        name="triton_hf_batch_rows",
        kind="histogram",
        help="Texts of one forward pass (embed, rank, classify)",
        buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0),
    ),
    Family(
        name="triton_hf_batch_tokens",
        kind="histogram",
        help="Tokens of one forward pass, padding included (embed, rank, classify)",
        buckets=(*_TOKENS, 20000.0),
    ),
)

# The names that routers for models read (vLLM's own), and the gauge of ours that each repeats.
ROUTER_GAUGES = {
    "vllm:num_requests_running": "triton_hf_requests_running",
    "vllm:num_requests_waiting": "triton_hf_requests_waiting",
    "vllm:kv_cache_usage_perc": "triton_hf_kv_cache_usage_ratio",
}

Key = tuple[str, str | None]


class Metrics:
    """Counts of one model in this process; safe from any thread."""

    def __init__(self, families: Sequence[Family] = FAMILIES) -> None:
        """Start at zero; what is no metric of these families is not counted."""
        self.families = tuple(families)
        self._names = frozenset(family.name for family in families)
        self._lock = threading.Lock()
        self._gauges: dict[Key, float] = {}
        self._counts: dict[Key, float] = {}
        self._observations: list[tuple[str, float]] = []

    def ready(self, *, slots: int) -> None:
        """The engine can answer."""
        self._set("triton_hf_slots", slots)
        self._set("triton_hf_engine_start_time_seconds", time.time())

    def cpu_levels(self, *, shown: int, used: int) -> None:
        """The native kernels compute with this level, and the CPU shows that one."""
        self._set("triton_hf_cpu_level", shown, "shown")
        self._set("triton_hf_cpu_level", used, "used")

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

    def first_token(self, seconds: float, *, tokens: int = 1) -> None:
        """A request got its first tokens after this time."""
        self._count("triton_hf_generation_tokens_total", tokens)
        self._observe("triton_hf_time_to_first_token_seconds", seconds)

    def next_token(self, seconds: float, *, tokens: int = 1) -> None:
        """A request got more tokens, this time after those before; each counts its share."""
        self._count("triton_hf_generation_tokens_total", tokens)
        for _ in range(tokens):
            self._observe("triton_hf_inter_token_seconds", seconds / tokens)

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

    def batch(self, *, rows: int, tokens: int) -> None:
        """A forward pass begins with so many texts, and so many tokens with the padding."""
        self._observe("triton_hf_batch_rows", rows)
        self._observe("triton_hf_batch_tokens", tokens)

    def failed(self) -> None:
        """An accepted request failed."""
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

    def _set(self, name: str, value: float, label: str | None = None) -> None:
        if name not in self._names:
            return
        with self._lock:
            self._gauges[name, label] = float(value)

    def _count(self, name: str, amount: float, label: str | None = None) -> None:
        if name not in self._names:
            return
        with self._lock:
            self._counts[name, label] = self._counts.get((name, label), 0.0) + amount

    def _observe(self, name: str, value: float) -> None:
        if name not in self._names:
            return
        with self._lock:
            self._observations.append((name, float(value)))
