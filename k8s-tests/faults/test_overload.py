"""More work than the servers can do: what fits is done, the rest is refused at once."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults import servers, traffic
from lib.offered_load import Load, infer
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.timeout(900),
]

Install = Callable[..., dict[str, Any]]
SLOTS = 4
# Half a second a request of 17 tokens: 16 a second is all that two servers can do.
PARAMETERS = {"ttft_ms": 100, "inter_token_ms": 25, "slots": SLOTS, "max_queue": SLOTS}
# A share of the cores that is the servers' own; else the refusals wait for the tests' processes.
RESOURCES = {"requests": {"cpu": "500m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
TIMES = 5
CONTROL = 10.0  # requests a second
LONG = 300
QUICK = 0.05  # seconds in which a refusal should come
# On cores that the host takes, a hop of an overloaded server waits longer than one of an idle one.
HOPS = 3
_MEMORY = """
import glob
total = 0
for file in glob.glob("/proc/[0-9]*/statm"):
    try:
        pages = open(file).read().split()
    except OSError:
        continue
    total += (int(pages[1]) - int(pages[2])) * 4096
print(total)
"""


def memory(release: Release) -> int:
    """Return the resident bytes of all servers, without what their processes share."""
    return sum(
        int(servers.inside(release, pod["metadata"]["name"], _MEMORY)) for pod in release.pods()
    )


@pytest.mark.parametrize(
    ("peak_seconds", "seconds", "tokens"),
    # Longer answers, so fewer requests, leave cores to a machine that has two for all parts.
    [(10, 25, 17), pytest.param(60, LONG, 65, marks=pytest.mark.slow)],
)
def test_five_times_the_peak_leaves_the_peak_and_refuses_the_rest_at_once(
    release: Release, install: Install, row: Row, peak_seconds: int, seconds: int, tokens: int
) -> None:
    """Generator, proxy and the machine are in the times; a control says how much.

    It is the errors of an idle release beside the hit one, whose way through generator, proxy,
    Triton and the model's process is the same. In the short form, beside all else that `make test`
    runs, only the median is judged.
    """
    row.fault = f"overload {TIMES}x for {seconds} s"
    row.mark = "goodput >= 95 % of peak, " + (
        ">= 99 % of the refusals in < 50 ms where an idle server's errors are as quick, "
        if seconds >= LONG
        else f"median refusal < 50 ms or < {HOPS} times an idle server's errors, "
    )
    row.mark += "memory bounded"
    model = {"engine": "simulated", "parameters": PARAMETERS}
    more = {"models": {"llama3-8b": None, servers.MODEL: model}, "resources": RESOURCES}
    install(**more)
    idle = dataclasses.replace(release, name="idle")
    idle.apply(servers.values(idle.place, f"idle-{idle.namespace}", **more))
    quiet = door(idle.place, idle)
    bad = infer(quiet.address, quiet.port, servers.MODEL, host=quiet.host, max_tokens=0)
    entrance = door(release.place, release)
    target = infer(
        entrance.address, entrance.port, servers.MODEL, host=entrance.host, max_tokens=tokens
    )
    with Load([target]) as load:
        start = time.time()
        load.clients(2 * SLOTS + 2)
        traffic.until_time(start + peak_seconds)
        load.clients(0)
    peak = sum(not each.fault for each in load.record.outcomes) / peak_seconds
    before = memory(release)
    with Load([target]) as load, Load([bad]) as control:
        start = time.time()
        load.rate(TIMES * peak)
        control.rate(CONTROL)
        traffic.until_time(start + seconds / 5)
        early = memory(release)
        traffic.until_time(start + seconds)
        late = memory(release)
    sent = load.record.outcomes
    refused = [each for each in sent if "status 503" in each.fault]
    goodput = (len(sent) - len(traffic.failed(sent))) / seconds
    times = sorted(each.seconds for each in refused)
    asked = [each.seconds for each in control.record.outcomes if "status 400" in each.fault]
    quick, possible = within(times), within(asked)
    row.measured = (
        f"goodput {goodput:.1f}/s of {peak:.1f}/s ({100 * goodput / peak:.0f} %); "
        f"{len(refused)} of {len(sent)} refused, median {1000 * statistics.median(times):.0f} ms, "
        f"{100 * quick:.2f} % under {1000 * QUICK:.0f} ms, p99 {percentile(times, 0.99)}; errors "
        f"of an idle server: median {1000 * statistics.median(asked):.0f} ms, "
        f"{100 * possible:.2f} % under {1000 * QUICK:.0f} ms, "
        f"p99 {percentile(sorted(asked), 0.99)}; the generator was late by "
        f"{percentile(sorted(load.record.late), 0.99)} in p99; "
        f"resident memory {before >> 20} -> {early >> 20} -> {late >> 20} MiB"
    )
    assert len(sent) > 0.9 * TIMES * peak * seconds
    assert len(refused) == len(traffic.failed(sent)), traffic.describe(
        [each for each in traffic.failed(sent) if each not in refused]
    )
    assert goodput >= 0.95 * peak
    assert statistics.median(times) < max(QUICK, HOPS * statistics.median(asked))
    assert seconds < LONG or quick >= 0.99 * possible
    assert late < early + (32 << 20)


def within(times: list[float]) -> float:
    """Return the part of the times that is quick."""
    assert len(times) > 100
    return sum(each < QUICK for each in times) / len(times)


def percentile(ordered: list[float], share: float) -> str:
    return f"{1000 * ordered[int(share * len(ordered))]:.0f} ms"
