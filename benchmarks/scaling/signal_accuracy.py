"""How true the autoscaler's signal is: what Prometheus scraped against what was in flight.

Usage: python -m benchmarks.scaling.signal_accuracy --out FILE
Runs a real Triton with simulated models and a real Prometheus on this machine, asks it what the
chart lets KEDA ask, and writes as JSON: the accuracy at several rates, the linearity against
offered concurrency, and how soon requests of a minute are seen. No cluster is needed.
Exit codes: 0 written, 2 no Prometheus or no helm on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling import lab, query
from benchmarks.scaling.lab import Lab, running_lab
from lib import offered_load
from lib.prometheus import Prometheus, binary
from tools import wait

# Between two values of a range: shorter than the pause between scrapes, so that none is missed.
RANGE_STEP = 0.25
TARGET = 24.0
# The engine's counts reach /metrics four times a second: on average they are half of that old.
AGE = 0.125


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load: requests a second over all models, and how long a request takes."""

    models: int
    rate: float
    request_seconds: float
    warm_seconds: float
    measured_seconds: float


CASES = (
    Case(models=1, rate=0.1, request_seconds=40.0, warm_seconds=45.0, measured_seconds=60.0),
    Case(models=2, rate=1.0, request_seconds=8.0, warm_seconds=10.0, measured_seconds=30.0),
    Case(models=3, rate=10.0, request_seconds=2.0, warm_seconds=4.0, measured_seconds=25.0),
    Case(models=5, rate=100.0, request_seconds=1.0, warm_seconds=3.0, measured_seconds=20.0),
)
LEVELS = (0, 2, 4, 8, 12, 16, 20, 24, 28, 32)
LEVEL_SLOTS = 8
LONG_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One case, measured."""

    models: int
    rate: float
    true_in_flight: float
    signal: float
    requests: int
    failed: int

    @property
    def error(self) -> float:
        """Relative error of the signal."""
        return abs(self.signal - self.true_in_flight) / self.true_in_flight


@dataclass(frozen=True, kw_only=True)
class Linearity:
    """Offered concurrency, the signal at each, and how linear it is."""

    offered: tuple[int, ...]
    signal: tuple[float, ...]
    r_squared: float
    slope: float
    failed: int


@dataclass(frozen=True, kw_only=True)
class Reaction:
    """How soon the signal shows requests that all still run."""

    requests: int
    request_seconds: float
    seconds: float
    answered: int


def question(models: Sequence[str]) -> str:
    """Return what the chart lets KEDA ask about these models of the lab.

    Raises:
        RenderError: helm cannot render the chart.
    """
    return query.of_keda(lab.NAMESPACE, lab.RELEASE, models="|".join(models), target=TARGET)


def scraped(
    prometheus: Prometheus, models: Sequence[str], *, start: float, end: float
) -> list[tuple[float, float]]:
    """Return (time of the scrape, signal) for every scrape between two times."""
    asked = {"start": start, "end": end, "step": RANGE_STEP}
    one = f'triton_hf_requests_running{{pod="{lab.POD}",model="{models[0]}"}}'
    (times,) = prometheus.query_range(f"timestamp({one})", **asked)
    (signal,) = prometheus.query_range(question(models), **asked)
    values = dict(zip(signal.times, signal.values, strict=True))
    found = {
        scrape: values[at]
        for at, scrape in zip(times.times, times.values, strict=True)
        if at in values and scrape >= start
    }
    return sorted(found.items())


def targets(pair: Lab, models: Sequence[str], **parameters: Any) -> list[offered_load.Target]:
    """Return one plain call for each model."""
    port = pair.server.ports.http
    return [offered_load.infer("127.0.0.1", port, name, **parameters) for name in models]


def measure(pair: Lab, case: Case) -> Accuracy:
    """Return signal and truth, both at the moments of the scrapes."""
    models = names(case)
    with offered_load.Load(targets(pair, models, max_tokens=1)) as driver:
        driver.rate(case.rate)
        time.sleep(case.warm_seconds)
        start = time.time()
        time.sleep(case.measured_seconds)
        end = time.time()
        driver.rate(0.0)
        pairs = scraped(pair.prometheus, models, start=start, end=end)
        truth = [driver.record.in_flight(at - AGE) for at, _ in pairs]
    return Accuracy(
        models=case.models,
        rate=case.rate,
        true_in_flight=statistics.fmean(truth),
        signal=statistics.fmean(value for _, value in pairs),
        requests=len(driver.record.outcomes),
        failed=len(driver.record.failed),
    )


def names(case: Case) -> list[str]:
    """Return the models of a case: each case has its own, so that no rest of one is in another."""
    return [f"m{case.models}-{index}" for index in range(case.models)]


def measure_linearity(pair: Lab, model: str, *, seconds: float = 6.0) -> Linearity:
    """Step the offered concurrency from 0 to four times the slots; read the signal at each."""
    signal: list[float] = []
    with offered_load.Load(targets(pair, [model], max_tokens=1)) as driver:
        for level in LEVELS:
            driver.clients(level)
            time.sleep(seconds)
            end = time.time()
            last = scraped(pair.prometheus, [model], start=end - seconds * 2 / 3, end=end)
            signal.append(statistics.fmean(value for _, value in last))
    slope, _ = statistics.linear_regression(LEVELS, signal)
    return Linearity(
        offered=LEVELS,
        signal=tuple(signal),
        r_squared=statistics.correlation(LEVELS, signal) ** 2,
        slope=slope,
        failed=len(driver.record.failed),
    )


def measure_reaction(pair: Lab, model: str, *, requests: int = 10) -> Reaction:
    """Return how long it takes until the signal shows requests that were sent at once.

    Raises:
        TimeoutError: it does not show them.
    """
    asked = question([model])
    with offered_load.Load(targets(pair, [model], max_tokens=1), timeout=90) as driver:
        start = time.monotonic()
        driver.clients(requests)

        def shown() -> bool:
            return pair.prometheus.query(asked)[0].last == requests

        wait.until(shown, seconds=LONG_SECONDS, every=0.1)
        seconds = time.monotonic() - start
        answered = len(driver.record.outcomes)
        driver.hang_up()
    return Reaction(
        requests=requests,
        request_seconds=LONG_SECONDS,
        seconds=round(seconds, 2),
        answered=answered,
    )


def simulated(cases: Sequence[Case]) -> dict[str, dict[str, object]]:
    """Return the parameters of all models that the cases, the levels and the long request need."""
    quick = {"slots": 48, "max_queue": 256, "max_queue_seconds": 0}
    made: dict[str, dict[str, object]] = {
        name: {**quick, "ttft_ms": int(case.request_seconds * 1000)}
        for case in cases
        for name in names(case)
    }
    # No part of the second between two scrapes: or each scrape could meet the moment in which all
    # slots change hands.
    made["levels"] = {**quick, "slots": LEVEL_SLOTS, "ttft_ms": 430}
    made["long"] = {**quick, "slots": 4, "ttft_ms": int(LONG_SECONDS * 1000)}
    return made


def main() -> int:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling.signal_accuracy", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args()
    program = binary()
    if program is None:
        print(
            "signal: no Prometheus here; run: python3 -m cluster.binaries prometheus",
            file=sys.stderr,
        )
        return 2
    try:
        question(["any"])
    except query.RenderError as error:
        print(f"signal: {error}", file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as folder,
        running_lab(program, Path(folder), simulated(CASES)) as pair,
    ):
        accuracy = []
        for case in CASES:
            accuracy.append(measure(pair, case))
            print(f"signal: {accuracy[-1]} error {accuracy[-1].error:.2%}", file=sys.stderr)
        linearity = measure_linearity(pair, "levels")
        print(f"signal: {linearity}", file=sys.stderr)
        reaction = measure_reaction(pair, "long")
        print(f"signal: {reaction}", file=sys.stderr)
    report = {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "accuracy": [{**asdict(item), "error": item.error} for item in accuracy],
        "linearity": asdict(linearity),
        "reaction": asdict(reaction),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
