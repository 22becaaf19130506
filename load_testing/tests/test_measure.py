"""How late a generator was is judged by what it had planned, and by nothing else."""

from __future__ import annotations

import math
import random

import pytest

from triton_load import record
from triton_load.measure import Measurements, Outcome, to_next_sample


def counted(*, probes: float, scheduled: float | None) -> Measurements:
    """10 pauses that end late, and 1,000 requests that start at 5 s, merged from a worker."""
    worker, master = Measurements(), Measurements()
    for _ in range(1000):
        worker.start(5.0)
        worker.finish(Outcome(case="x", scheduled=scheduled, started=5.0, ended=5.5))
    for _ in range(10):
        worker.probe(probes)
    master.merge(worker.drain())
    return master


@pytest.mark.parametrize(
    ("probes", "scheduled", "lag"),
    [
        (0.2, None, 0.2),  # requests that nobody planned are not on time: they say nothing
        (0.2, 5.0, 0.2),
        (0.001, 4.7, 0.3),
        (0.001, 4.999, 0.001),
    ],
)
def test_the_lag_is_the_worse_of_pauses_and_arrivals(
    probes: float, scheduled: float | None, lag: float
) -> None:
    found = counted(probes=probes, scheduled=scheduled)
    assert found.lag(95) == pytest.approx(lag, rel=0.01)
    assert found.distributions[record.PROBE_LAG].count == 10
    assert found.distributions[record.LAG].count == (0 if scheduled is None else 1000)


def test_latencies_of_a_closed_loop_count_from_the_start() -> None:
    found = counted(probes=0.0, scheduled=None)
    assert found.distributions[record.LATENCY].maximum == pytest.approx(0.5, rel=1e-3)
    assert found.totals().duration == pytest.approx(0.5)


def test_every_second_has_a_sample_even_when_taking_one_is_slow() -> None:
    luck, now, sampled = random.Random(3), 100.5, []
    for _ in range(300):
        sampled.append(math.floor(now))
        now += luck.uniform(0, 0.9)
        # Woken early, on time or late.
        now += to_next_sample(now) + luck.choice([-1e-4, 0.0, 0.02])
    assert sorted(set(sampled)) == list(range(sampled[0], sampled[-1] + 1))
    assert len(sampled) == len(set(sampled))
