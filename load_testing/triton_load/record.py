"""What is kept of a run: one JSON document, from which every report is written.

`run.schema.json` beside this file is its published JSON Schema. Durations are seconds, moments are
seconds since the start of the run (`started` is Unix time), unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram

from triton_load.errors import LoadTestError

RECORD_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("run.schema.json")
QUANTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
# Names of the distributions. Those that end in _seconds hold microseconds in their histograms.
LATENCY = "latency_seconds"
TTFT = "ttft_seconds"
INTER_TOKEN = "inter_token_seconds"  # noqa: S105
PROMPT_TOKENS = "prompt_tokens"
OUTPUT_TOKENS = "output_tokens"
USER_TOKENS_PER_SECOND = "user_tokens_per_second"
LAG = "schedule_lag_seconds"  # of arrivals that were planned, in an open loop
PROBE_LAG = "probe_lag_seconds"  # of pauses of 50 ms, in every generator
_LOWEST, _HIGHEST, _DIGITS = 1, 3_600_000_000, 3
_MICRO = 1e6


class Distribution:
    """Values in an HdrHistogram of 3 digits, which merges over processes without loss.

    Durations are kept in microseconds, up to one hour; everything else in thousandths.
    """

    def __init__(self, name: str, histogram: HdrHistogram | None = None) -> None:
        """Start empty, or from a histogram."""
        self.name = name
        self.histogram = histogram or HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)
        self._scale = _MICRO if name.endswith("_seconds") else 1000.0

    def add(self, value: float, count: int = 1) -> None:
        """Add a value (seconds, or a plain number), `count` times."""
        kept = min(_HIGHEST, max(_LOWEST, round(value * self._scale)))
        self.histogram.record_value(kept, count)

    def merge(self, encoded: str | bytes) -> None:
        """Add what `encode` wrote in another process."""
        self.histogram.decode_and_add(encoded)

    def encode(self) -> str:
        """HdrHistogram's own compressed form, base64."""
        return str(self.histogram.encode().decode("ascii"))

    @property
    def count(self) -> int:
        """How many values there are."""
        return int(self.histogram.get_total_count())

    def quantile(self, percent: float) -> float:
        """The value that `percent` of all values do not exceed; 0 when there are none."""
        # The histogram rounds the rank to the nearest, which leaves out the highest of few values.
        rank = math.ceil(self.count * percent / 100 - 1e-9)
        exact = 100 * rank / self.count if self.count else percent
        return float(self.histogram.get_value_at_percentile(exact)) / self._scale

    @property
    def mean(self) -> float:
        """The mean; 0 when there are no values."""
        return float(self.histogram.get_mean_value()) / self._scale if self.count else 0.0

    @property
    def maximum(self) -> float:
        """The largest value; 0 when there are none."""
        return float(self.histogram.get_max_value()) / self._scale if self.count else 0.0

    def buckets(self) -> list[tuple[float, int]]:
        """Every occupied bucket: its upper end and how many values it holds."""
        found = self.histogram.get_recorded_iterator()
        return [
            (item.value_iterated_to / self._scale, int(item.count_at_value_iterated_to))
            for item in found
            if item.count_at_value_iterated_to
        ]

    def to_json(self) -> dict[str, Any]:
        """Summary for people and the histogram for programs."""
        return {
            "count": self.count,
            "mean": self.mean,
            "max": self.maximum,
            "quantiles": {f"{percent:g}": self.quantile(percent) for percent in QUANTILES},
            "histogram": self.encode(),
        }

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Distribution:
        """Read what `to_json` wrote."""
        return cls(name, HdrHistogram.decode(value["histogram"].encode("ascii")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Second:
    """One second of a run.

    Attributes:
        at: Seconds since the start; the second is [at, at + 1).
        users: Users, or generators of an open loop, at its end.
        offered: Requests per second that should have started; 0 in a closed loop.
        started: Requests that started.
        passed: Requests that ended well.
        failed: Requests that ended with an error.
        in_flight: Requests in flight at its end.
        tokens: Output tokens that arrived.
        latency: Quantiles of requests that ended: keys "50", "95", "99"; seconds; may be empty.
        ttft: The same of times to first token.
        replicas: Ready replicas of the server, when somebody counted them.
    """

    at: int
    users: int = 0
    offered: float = 0.0
    started: int = 0
    passed: int = 0
    failed: int = 0
    in_flight: int = 0
    tokens: int = 0
    latency: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ttft: Mapping[str, float] = dataclasses.field(default_factory=dict)
    replicas: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ErrorClass:
    """Requests that failed in one way: its name, how many, and the text of the first."""

    name: str
    count: int
    example: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that made the load.

    Attributes:
        expected: How many there should be; a local run is one.
        seen: How many took part.
        lost: How many went away during the run.
        cpu_percent: Highest CPU use of one of them, in two samples in a row, percent of a core.
        master_cpu_percent: The same of the master; 0 in a local run.
        lag_seconds: 95th percentile of how late the generator was, with arrivals or with pauses
            that it had planned, whichever is worse.
    """

    expected: int
    seen: int
    lost: int
    cpu_percent: float
    master_cpu_percent: float = 0.0
    lag_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One objective and what was measured.

    Attributes:
        name: As the user wrote it: "p95 ttft".
        bound: As the user wrote it: "<= 500 ms".
        limit: The bound in seconds, a ratio or a plain number.
        measured: In the same unit; None when nothing was measured.
        met: Whether it holds.
    """

    name: str
    bound: str
    limit: float
    measured: float | None
    met: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """`pass`, `fail` or `invalid`, why, and the exit code that says so."""

    result: str
    reasons: tuple[str, ...]
    exit_code: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums and rates over the whole run.

    Attributes:
        requests: Requests that ended.
        failed: Of these, with an error.
        unfinished: Requests that were cut when the run ended; they are in no other number.
        duration: Seconds from the start of the first request to the end of the last.
        requests_per_second: Good requests over the duration.
        output_tokens_per_second: Tokens over the duration; None when nobody counted any.
        goodput: Requests per second that met every duration objective.
    """

    requests: int
    failed: int
    unfinished: int
    duration: float
    requests_per_second: float
    output_tokens_per_second: float | None
    goodput: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run.

    Attributes:
        name: Name of the run.
        started: Unix time.
        config: What was asked for: host, model, client, users, rate, arrival, shape and so on.
        totals: Sums and rates.
        distributions: By name; see the constants of this module.
        series: One entry a second, without gaps.
        errors: By count, the most frequent first.
        workers: Who made the load.
        objectives: With their measured values.
        verdict: What it comes to.
        notes: Evidence of commands that ran several tests: steps of a search, for example.
    """

    name: str
    started: float
    config: Mapping[str, Any]
    totals: Totals
    distributions: Mapping[str, Distribution]
    series: tuple[Second, ...]
    errors: tuple[ErrorClass, ...]
    workers: Workers
    objectives: tuple[Objective, ...]
    verdict: Verdict
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document that `run.schema.json` describes."""
        plain = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "distributions"
        }
        document: dict[str, Any] = {"version": RECORD_VERSION}
        document |= {name: _plain(value) for name, value in plain.items()}
        document["distributions"] = {
            name: found.to_json() for name, found in sorted(self.distributions.items())
        }
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Record:
        """Read what `to_json` wrote.

        Raises:
            LoadTestError: It is of another version or not such a document.
        """
        if document.get("version") != RECORD_VERSION:
            raise LoadTestError(
                f"this is version {document.get('version')} of a run's record; "
                f"this program reads version {RECORD_VERSION}"
            )
        try:
            return cls(
                name=document["name"],
                started=document["started"],
                config=document["config"],
                totals=Totals(**document["totals"]),
                distributions={
                    name: Distribution.from_json(name, value)
                    for name, value in document["distributions"].items()
                },
                series=tuple(Second(**value) for value in document["series"]),
                errors=tuple(ErrorClass(**value) for value in document["errors"]),
                workers=Workers(**document["workers"]),
                objectives=tuple(Objective(**value) for value in document["objectives"]),
                verdict=Verdict(
                    **{**document["verdict"], "reasons": tuple(document["verdict"]["reasons"])}
                ),
                notes=document["notes"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise LoadTestError(f"this is not the record of a run: {error}") from error


def read(path: Path) -> Record:
    """Read the record of a run from a file, or from `run.json` in a folder.

    Raises:
        LoadTestError: There is none, or it cannot be read.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadTestError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise LoadTestError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise LoadTestError(f"{file} is not the record of a run")
    return Record.from_json(document)


def write(record: Record, folder: Path) -> Path:
    """Write `run.json` into a folder, whole or not at all, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "run.json"
    partial = folder / ".run.json.partial"
    partial.write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    partial.rename(target)
    return target


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
