"""What an operator does on a working day: clients must not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from faults import channel, servers, traffic
from lib import client
from tools import helm
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door, grpc_address
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.faults, pytest.mark.timeout(420)]

Install = Callable[..., dict[str, Any]]
HELD = 20
_HOLD = """
import http.client, sys, time
held = []
for _ in range(int(sys.argv[2])):
    connection = http.client.HTTPConnection(sys.argv[1], 8000, timeout=10)
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().read() == b""
    held.append(connection)
print("held", len(held), flush=True)
time.sleep(3600)
"""


def replaced(release: Release, old: set[str]) -> None:
    """Wait until other pods than the old ones serve, and the old ones are gone."""

    def check() -> None:
        assert not old & {p["metadata"]["name"] for p in servers.settled(release, len(old))}

    until(check, seconds=240)


def names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.pods()}


@pytest.mark.slow  # `make test` has it with connections that are kept, below
def test_a_rolling_update_loses_no_request_and_breaks_no_stream(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "rolling update, 2 replicas, steady load, 4 open streams"
    row.mark = "0 failed of >= 400; 0 broken streams"
    chosen, old = install(), names(release)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        release.apply({**chosen, "podAnnotations": {"round": "2"}})
        replaced(release, old)
        load.wait_for(traffic.ENOUGH)
    row.measured = load.summary()
    load.lost_nothing()


def test_a_rolling_update_with_idle_keep_alive_connections_and_kept_channels_loses_nothing(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = f"the same with {HELD} idle keep-alive connections to the pods, and with gRPC"
    row.mark = "0 failed of >= 400, also by gRPC on a kept channel; 0 broken streams"
    here = release.place
    chosen = install(**(servers.grpc_by_node_port() if here.embedded else {}))
    old = names(release)
    hold_connections(release)
    with contextlib.ExitStack() as stack:
        load = stack.enter_context(traffic.running(door(here, release), servers.MODEL))
        by_grpc = load
        if here.embedded:
            address = grpc_address(release)
            by_grpc = stack.enter_context(channel.running(address, servers.MODEL))
        start = time.monotonic()
        release.apply({**chosen, "podAnnotations": {"round": "2"}})
        replaced(release, old)
        took = time.monotonic() - start
        load.wait_for(traffic.ENOUGH)
        by_grpc.wait_for(traffic.ENOUGH)
    row.measured = f"{load.summary()}; gRPC: {by_grpc.summary()}; the rollout took {took:.0f} s"
    load.lost_nothing()
    by_grpc.lost_nothing()


def hold_connections(release: Release) -> None:
    """Start a pod that keeps connections to the servers open and sends nothing on them."""
    words = (servers.fullname(release), str(HELD))
    pod = client.manifest(release.place, "holder", _HOLD, *words, labels=client.LOAD_TEST)
    client.start(release.place, release.namespace, pod, says=f"held {HELD}")


@pytest.mark.slow  # `make test` has it by the autoscaler
def test_scale_in_loses_no_request_and_breaks_no_stream(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "scale 3 -> 1"
    row.mark = "0 failed of >= 400; 0 broken streams"
    install(replicas=3)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        name = servers.fullname(release)
        words = ("scale", f"deployment/{name}", "--replicas=1")
        helm.run(release.place, "kubectl", "-n", release.namespace, *words)
        servers.wait_settled(release, 1)
        load.wait_for(traffic.ENOUGH)
    row.measured = load.summary()
    load.lost_nothing()


@pytest.mark.slow
def test_a_deleted_pod_loses_no_request_and_breaks_no_stream(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "pod delete"
    row.mark = "0 failed of >= 400; 0 broken streams"
    install()
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        victim = min(names(release))
        words = ("delete", "pod", victim, "--wait=false")
        helm.run(release.place, "kubectl", "-n", release.namespace, *words)
        until(lambda: victim not in names(release), seconds=30)
        servers.wait_settled(release, 2)
        load.wait_for(traffic.ENOUGH)
    row.measured = load.summary()
    load.lost_nothing()


def test_a_drained_node_loses_nothing_and_the_second_pod_waits_for_the_first_ones_successor(
    release: Release, install: Install, embedded: None, row: Row
) -> None:
    row.fault = "node drain with a PodDisruptionBudget, both pods on the node"
    row.mark = "0 failed of >= 400; the second pod is evicted after the first successor is ready"
    first, second = servers.WORKERS
    selector = f"--pod-selector={release.selector()}"
    try:
        helm.run(release.place, "kubectl", "cordon", second)
        install()
        helm.run(release.place, "kubectl", "uncordon", second)
        assert {pod["spec"]["nodeName"] for pod in release.pods()} == {first}
        with traffic.running(door(release.place, release), servers.MODEL) as load:
            more = ("--ignore-daemonsets", "--delete-emptydir-data", "--timeout=180s")
            helm.run(release.place, "kubectl", "drain", first, selector, *more)
            pods = servers.wait_settled(release, 2)
            load.wait_for(traffic.ENOUGH)
    finally:
        for node in servers.WORKERS:
            helm.run(release.place, "kubectl", "uncordon", node)
    row.measured = load.summary()
    assert {pod["spec"]["nodeName"] for pod in pods} == {second}
    early, late = sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    assert late["metadata"]["creationTimestamp"] >= ready_since(early)
    load.lost_nothing()


def ready_since(pod: dict[str, Any]) -> str:
    conditions = {each["type"]: each for each in pod["status"]["conditions"]}
    return str(conditions["Ready"]["lastTransitionTime"])
