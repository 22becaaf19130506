"""charts/locust: who may reach the pods of a run, and what they reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from chart.rendered_runs import container, locust, own_services
from chart.rendering import CHART, LOCUST_CASE_IDS, LOCUST_CASES, mappings, render

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize("file", LOCUST_CASES, ids=LOCUST_CASE_IDS)


def test_workers_let_nobody_in_and_masters_only_their_workers() -> None:
    manifest = locust()
    worker = manifest.one("NetworkPolicy", "rel-locust-run-1-worker")["spec"]
    assert worker["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in worker
    master = manifest.one("NetworkPolicy", "rel-locust-run-1-master")["spec"]
    opened = {port["port"]: rule["from"] for rule in master["ingress"] for port in rule["ports"]}
    assert set(opened) == {"locust", "metrics"}
    (peer,) = opened["locust"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"


def test_an_empty_list_of_peers_closes_and_never_opens() -> None:
    closed = {"target": [], "dns": [], "monitoring": [], "gateway": []}
    manifest = locust({"networkPolicy": closed, "webUI": {"enabled": True}})
    for policy in manifest.all("NetworkPolicy"):
        for rule in policy["spec"].get("ingress") or []:
            assert rule["from"]
        for rule in policy["spec"].get("egress") or []:
            assert rule["to"]


def test_the_page_is_closed_unless_asked_for() -> None:
    assert locust().all("Ingress") == []
    assert [s["metadata"]["name"] for s in own_services(locust())] == ["rel-locust-run-1"]
    manifest = locust({"webUI": {"enabled": True, "ingress": {"enabled": True}}})
    backend = manifest.one("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert manifest.one("Service", backend["service"]["name"])["spec"]["ports"][0]["name"] == "web"


@variant
def test_named_ports_are_ports_of_the_master(file: Path | None) -> None:
    manifest = locust(file=file)
    ports = {port["name"] for port in container(manifest, "master")["ports"]}
    used = {p["targetPort"] for s in own_services(manifest) for p in s["spec"]["ports"]}
    for policy in manifest.all("NetworkPolicy"):
        for _, mapping in mappings(policy["spec"].get("ingress", [])):
            used |= {port["port"] for port in mapping.get("ports", [])}
    for monitor in manifest.all("PodMonitor"):
        used |= {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
    assert used
    assert used <= ports


def test_the_servers_are_counted_by_a_service_that_selects_their_ready_pods() -> None:
    manifest = locust()
    service = manifest.one("Service", "rel-locust-run-1-servers")["spec"]
    assert service["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service
    server = render(chart=CHART, release="triton").one("Deployment")["spec"]["template"]
    assert service["selector"].items() <= server["metadata"]["labels"].items()
    assert "--replicas-host=rel-locust-run-1-servers" in container(manifest, "master")["args"]
    none = locust({"target": {"podLabels": None}})
    assert "replicas" not in none.text
