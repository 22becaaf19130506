"""Servers follow the load; neither noise nor lost metrics move them."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from faults import servers, traffic
from lib import offered_load
from lib import scaled_release as scaled
from lib.prometheus import in_cluster
from lib.watch import Watcher
from tools import helm, place
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door
from tools.wait import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
]

# Long answers and many of them: a request takes 2 s, a stream 20 s.
PARAMETERS = {
    "ttft_ms": 100,
    "inter_token_ms": 100,
    "slots": 64,
    "max_queue": 256,
    "max_queue_seconds": 0,
    "max_tokens": 200,
}
TARGET = 25
FEW = 4  # clients that one server serves well
CALL_TOKENS = 20
CALL_SECONDS = 2.0
STREAMS = 20
STREAM_TOKENS = 200


@pytest.fixture(autouse=True)
def _monitoring(here: place.Place) -> None:
    try:
        helm.get(here, scaled.MONITORING, "prometheus", "main")
    except helm.CommandFailedError:
        pytest.skip("needs Prometheus: python3 -m cluster up --with monitoring")


@contextlib.contextmanager
def following(here: place.Place, **more: Any) -> Iterator[tuple[Release, Watcher]]:
    """Install a release that follows its load, and watch it; it goes when the block ends."""
    namespace = f"scaling-{uuid.uuid4().hex[:5]}"
    words = {"target": TARGET, "parameters": PARAMETERS} | more
    with scaled.installed(here, namespace, **words) as release:
        name = servers.fullname(release)
        with Watcher(here, namespace, name, release.selector()) as watcher:
            until(lambda: watcher.timeline.value("ready") == words.get("least", 1), seconds=180)
            yield release, watcher


def calls_of(release: Release) -> offered_load.Target:
    """Return the plain call of 2 s."""
    way = door(release.place, release)
    return offered_load.infer(
        way.address, way.port, scaled.MODEL, host=way.host, max_tokens=CALL_TOKENS
    )


def streams_of(release: Release) -> offered_load.Target:
    """Return the stream of 20 s."""
    way = door(release.place, release)
    return offered_load.stream(
        way.address, way.port, scaled.MODEL, host=way.host, max_tokens=STREAM_TOKENS
    )


def test_one_to_four_and_back_under_load_loses_nothing(here: place.Place, row: Row) -> None:
    row.fault = "1 -> 4 -> 1 servers by the HPA, steady load, 20 open streams"
    row.mark = "0 failed of >= 2,000 requests; 0 broken streams"
    with following(here, most=4) as (release, watcher):
        ready = watcher.timeline
        with (
            offered_load.Load([streams_of(release)]) as streams,
            offered_load.Load([calls_of(release)]) as calls,
        ):
            made = traffic.Traffic(plain=calls, streams=streams)
            streams.clients(STREAMS)
            calls.clients(3)
            until(lambda: len(made.calls) >= 20, seconds=60)
            start = time.time()
            calls.clients(4 * TARGET - STREAMS)
            until(lambda: ready.value("ready") == 4, seconds=180)
            grown = time.time() - start
            until(lambda: len(made.calls) >= 1900, seconds=180)
            start = time.time()
            calls.clients(3)
            until(lambda: ready.value("ready") == 1, seconds=240)
            shrunk = time.time() - start
            # What the last server to go had begun ends within its drain; then comes the count.
            made.wait_for(traffic.ENOUGH // 10, since=time.time())
            until(lambda: len(made.calls) >= 2000, seconds=180)
        row.measured = (
            f"{made.summary()}; 4 ready after {grown:.0f} s, 1 again after {shrunk:.0f} s"
        )
        made.lost_nothing(calls=2000, streams=2 * STREAMS)


def test_ten_minutes_of_noise_change_nothing(here: place.Place, row: Row) -> None:
    """Arrivals at random times around 1.4 times the target: 2 servers, and no other number.

    They are there before the autoscaler may choose, so that the first requests are no step.
    """
    row.fault = (
        "10 minutes of noisy steady load, HPA, autoscaling.behavior as in the chart's values.yaml"
    )
    row.mark = "0 flaps: the autoscaler keeps its decision"
    words = {"most": 6, "settle": None, "target": TARGET, "parameters": PARAMETERS}
    with following(here, least=2, **words) as (release, watcher):
        with offered_load.Load([calls_of(release)]) as calls:
            calls.rate(1.4 * TARGET / CALL_SECONDS)
            begun = time.time()
            until(lambda: calls.record.in_flight(time.time()) > TARGET, seconds=60, every=0.2)
            traffic.until_time(begun + 20)
            release.apply(scaled.values(here, f"{release.namespace}.test", **words))
            start = time.time()
            traffic.until_time(start + 600)
            end = time.time()
        decided = [value for at, value in watcher.timeline.steps("desired") if start <= at < end]
        levels = [calls.record.in_flight(start + second) for second in range(600)]
        row.measured = (
            f"{len(decided)} changes; in flight {min(levels)} to {max(levels)} around a mean of "
            f"{calls.record.mean_in_flight(start, end):.1f} (target {TARGET} a server); "
            f"{len(calls.record.failed)} of {len(calls.record.outcomes)} requests failed"
        )
        assert decided == []
        assert max(levels) - min(levels) > 0.2 * TARGET, "that was no noise"
        assert traffic.describe(calls.record.failed) == []


@contextlib.contextmanager
def prometheus_down(here: place.Place) -> Iterator[None]:
    """Scale Prometheus to nothing in the block."""
    kubectl = ("kubectl", "-n", scaled.MONITORING)

    def wanted(count: int) -> None:
        patch = f'{{"spec":{{"replicas":{count}}}}}'
        helm.run(here, *kubectl, "patch", "prometheus", "main", "--type=merge", "-p", patch)

    def pods() -> int:
        words = ("pods", "-l", "app.kubernetes.io/name=prometheus")
        return len(helm.get(here, scaled.MONITORING, *words)["items"])

    wanted(0)
    try:
        until(lambda: pods() == 0, seconds=90)
        yield
    finally:
        wanted(1)
        until(lambda: pods() == 1, seconds=90)


def firing(here: place.Place, namespace: str) -> set[str]:
    """Return the names of a release's alerts that fire."""
    with in_cluster(here) as prometheus:
        found = prometheus.query(f'ALERTS{{alertstate="firing",namespace="{namespace}"}}')
    return {series.labels["alertname"] for series in found}


# KEDA goes on with its last decision, and the HPA that it made has a metric.
TOLD = {
    "hpa": {"TritonMetricsAbsent", "TritonAutoscalerBlind"},
    "keda": {"TritonMetricsAbsent"},
}


def watched(here: place.Place) -> bool:
    """Return whether the alert fires whose silence a dead man's switch takes for a fault."""
    with in_cluster(here) as prometheus:
        return bool(prometheus.query('ALERTS{alertname="TritonWatchdog",alertstate="firing"}'))


@pytest.mark.parametrize("scaler", sorted(TOLD))
def test_lost_metrics_do_not_scale_in_and_found_ones_do(
    here: place.Place, row: Row, scaler: str
) -> None:
    """First Prometheus is gone, then it is there and cannot see the servers, which it tells."""
    if scaler == "keda":
        skip_without_keda(here)
    row.fault = (
        f"Prometheus down for 5 minutes, then its PodMonitor gone; little load left, {scaler}"
    )
    row.mark = (
        "0 failed of >= 400 while it is down; no scale-in, no restart; the watchdog is silent "
        "meanwhile; alerts fire once Prometheus runs; scale-in once metrics are back"
    )
    with following(here, scaler=scaler) as (release, watcher):
        timeline = watcher.timeline

        def kept() -> bool:
            if timeline.value("desired") != 2:
                pytest.fail(f"the autoscaler went to {timeline.value('desired')} without metrics")
            return True

        with offered_load.Load([calls_of(release)]) as calls:
            calls.clients(2 * TARGET)
            until(lambda: timeline.value("desired") == 2, seconds=180)
            servers.wait_settled(release, 2)
            until(lambda: watched(here), seconds=60)
            with prometheus_down(here):
                down = time.time()
                end = down + 300
                calls.clients(FEW)
                until(lambda: kept() and time.time() > end, seconds=330, every=3)
                meanwhile = traffic.begun(calls.record.outcomes, down, end)
                with pytest.raises(TimeoutError):
                    watched(here)
                words = ("-n", release.namespace, "delete", "podmonitor", "--all")
                helm.run(here, "kubectl", *words)
            start = time.time()
            expected = TOLD[scaler]
            until(
                lambda: kept() and expected <= firing(here, release.namespace),
                seconds=600,
                every=10,
            )
            told = time.time() - start
            assert watched(here)
            pods = servers.wait_settled(release, 2)
            assert {servers.restarts(release, p["metadata"]["name"]) for p in pods} == {0}
        again = {"target": TARGET, "parameters": PARAMETERS, "scaler": scaler}
        release.apply(scaled.values(here, f"{release.namespace}.test", **again))
        until(lambda: timeline.value("desired") == 1, seconds=240)
    row.measured = (
        f"2 servers kept; {' and '.join(sorted(expected))} fired {told:.0f} s after Prometheus "
        f"came back; {len(calls.record.failed)} of {len(calls.record.outcomes)} requests failed, "
        f"{len(meanwhile)} of them sent while Prometheus was down"
    )
    assert len(meanwhile) >= traffic.ENOUGH
    assert traffic.describe(calls.record.failed) == []


def skip_without_keda(here: place.Place) -> None:
    """Skip where nothing serves external metrics."""
    try:
        helm.run(here, "kubectl", "get", "apiservice", "v1beta1.external.metrics.k8s.io")
    except helm.CommandFailedError:
        pytest.skip("needs KEDA: python3 -m cluster up --with keda")
