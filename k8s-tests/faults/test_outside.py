"""What the servers lean on goes away: a kubelet, a network, the API, Prometheus, the Hub."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster import plan
from cluster.node import Node
from faults import servers, traffic
from faults.hub_outage import hub_down
from tools import helm, place
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door
from tools.wait import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("embedded"),
]

Install = Callable[..., dict[str, Any]]
# The embedded cluster's node grace (20 s), its look every 5 s, and the endpoints' controller.
GRACE_SECONDS = 45
HEARD_SECONDS = 3.0


@contextlib.contextmanager
def kubelet_held(node: Node) -> Iterator[None]:
    """Keep a node's kubelet stopped in the block."""
    node.hold_kubelet()
    try:
        yield
    finally:
        node.release_kubelet()


@contextlib.contextmanager
def network_cut(node: Node) -> Iterator[None]:
    """Unplug a node in the block."""
    words = ["ip", "-n", plan.FABRIC, "link", "set", f"{plan.PREFIX}-n{node.plan.number}"]
    subprocess.run([*words, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run([*words, "up"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "name", "lossless"),
    [
        pytest.param(kubelet_held, "kubelet of a node stopped", True, id="kubelet stopped"),
        pytest.param(network_cut, "network of a node cut", False, id="network cut"),
    ],
)
def test_a_node_that_falls_silent_leaves_the_endpoints_and_the_peer_serves(
    release: Release,
    install: Install,
    row: Row,
    broken: Callable[[Node], contextlib.AbstractContextManager[None]],
    name: str,
    lossless: bool,
) -> None:
    row.fault = name
    row.mark = f"out of the endpoints <= {GRACE_SECONDS} s; " + (
        "0 failed of >= 400" if lossless else "then 0 failed of >= 400"
    )
    install(**servers.on_two_nodes())
    assert len({each["spec"]["nodeName"] for each in release.pods()}) == 2
    victim = min(pod["metadata"]["name"] for pod in release.pods())
    node = servers.node_of(release, victim)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        start = time.time()
        with broken(node):
            until(lambda: victim not in servers.in_rotation(release), seconds=GRACE_SECONDS)
            took = time.time() - start
            heard = start + took + HEARD_SECONDS
            load.wait_for(traffic.ENOUGH, since=heard)
        servers.wait_settled(release, 2)
    counted = load.calls if lossless else traffic.begun(load.calls, heard)
    row.measured = (
        f"out of the endpoints after {took:.0f} s; {len(traffic.failed(counted))} of "
        f"{len(counted)} calls failed{'' if lossless else ' after that'}, "
        f"{len(traffic.failed(load.calls))} of {len(load.calls)} in all"
    )
    assert traffic.describe(traffic.failed(counted)) == []


@contextlib.contextmanager
def api_down(here: place.Place) -> Iterator[None]:
    """Take the API server away in the block, and wait until it answers again."""
    folder = plan.SYSTEM.folder / "etc-kubernetes"
    manifest, held = folder / "manifests" / "kube-apiserver.yaml", folder / "kube-apiserver.held"

    def answers() -> bool:
        words = ("get", "--raw", "/readyz", "--request-timeout=2s")
        with contextlib.suppress(helm.CommandFailedError):
            return helm.run(here, "kubectl", *words, timeout=10) == "ok"
        return False

    manifest.rename(held)
    try:
        until(lambda: not answers(), seconds=60)
        yield
    finally:
        held.rename(manifest)
        until(answers, seconds=120)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [15, 60])
def test_the_data_path_does_not_need_the_api_server(
    release: Release, install: Install, row: Row, seconds: int
) -> None:
    enough = traffic.ENOUGH * seconds // 60
    row.fault = f"API server down for {seconds} s"
    row.mark = f"0 failed of >= {enough} sent in that time; 0 broken streams; no restart"
    install()
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        with api_down(release.place):
            down = time.time()
            load.wait_until(down + seconds)
            meanwhile = traffic.begun(load.calls, down, down + seconds)
        pods = servers.wait_settled(release, 2)
    row.measured = f"{load.summary()}, {len(meanwhile)} calls while it was down"
    assert len(meanwhile) >= enough
    assert {servers.restarts(release, pod["metadata"]["name"]) for pod in pods} == {0}
    load.lost_nothing(calls=enough)


SMOLLM2 = {
    "repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "parameters": {"device": "cpu", "slots": 2},
}


@pytest.mark.slow
def test_servers_run_and_start_without_the_hub_and_an_upgrade_says_that_it_is_gone(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "Hub down: a pod is deleted, then an upgrade adds a model"
    row.mark = "0 failed of >= 400; the pod's successor answers; no restart; the upgrade says why"
    models = {"llama3-8b": None, servers.MODEL: servers.SIMULATED, "smol": SMOLLM2}
    chosen = install(light=False, models=models)
    chosen["modelSync"] |= {"backoffLimit": 0}
    entrance = door(release.place, release)
    with hub_down(), traffic.running(entrance, servers.MODEL) as load:
        victim = min(pod["metadata"]["name"] for pod in release.pods())
        words = ("delete", "pod", victim)
        helm.run(release.place, "kubectl", "-n", release.namespace, *words)
        pods = {p["metadata"]["name"] for p in servers.wait_settled(release, 2, seconds=240)}
        for name in pods:
            assert "text_output" in servers.ask_inside(release, name, "smol", "hello")
        with pytest.raises(helm.CommandFailedError):
            release.apply({**chosen, "models": {**models, "more": SMOLLM2}})
        said = servers.sync_words(release)
        load.wait_for(traffic.ENOUGH)
        assert servers.in_rotation(release) == pods
    row.measured = f"{load.summary()}; the upgrade said: {said}"
    assert {servers.restarts(release, name) for name in pods} == {0}
    assert len(said.splitlines()) == 1, said
    assert plan.HUB_HOST in said, said
    load.lost_nothing()
