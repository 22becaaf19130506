"""charts/locust: two runs never meet, and every selector finds its own pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chart.rendered_runs import container, locust, own_services, pod_labels, selectors
from chart.rendering import CHART, LOCUST_CASE_IDS, LOCUST_CASES, render

pytestmark = pytest.mark.chart
SELECTOR = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "triton-load/run",
}
variant = pytest.mark.parametrize("file", LOCUST_CASES, ids=LOCUST_CASE_IDS)


@variant
def test_every_selector_is_exact_and_finds_a_pod_of_the_run(file: Path | None) -> None:
    manifest = locust(file=file)
    found = selectors(manifest)
    assert found
    for selector in found:
        assert set(selector) == SELECTOR
        assert any(selector.items() <= labels.items() for labels in pod_labels(manifest))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"release": "one"}, {"release": "two"}),
        ({"values": {"run": {"name": "one"}}}, {"values": {"run": {"name": "two"}}}),
        (
            {"release": "the-same-long-beginning-of-a-name-a"},
            {"release": "the-same-long-beginning-of-a-name-b"},
        ),
    ],
    ids=["releases", "runs", "long releases"],
)
def test_two_runs_share_no_job_no_service_and_no_pod(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    first, second = locust(**one), locust(**two)
    kinds = ("Job", "Service", "NetworkPolicy", "ConfigMap")
    names = [
        {(o["kind"], o["metadata"]["name"]) for kind in kinds for o in manifest.all(kind)}
        for manifest in (first, second)
    ]
    assert names[0]
    assert names[0] & names[1] == set()
    for selector in selectors(first):
        assert not any(selector.items() <= labels.items() for labels in pod_labels(second))


def test_workers_call_the_service_of_their_own_run() -> None:
    manifest = locust({"run": {"name": "nightly"}})
    (service,) = own_services(manifest)
    name = service["metadata"]["name"]
    assert name == "rel-locust-nightly-1"
    assert f"--master-host={name}" in container(manifest, "worker")["args"]


def test_no_name_is_longer_than_kubernetes_takes() -> None:
    values = {"run": {"name": "n" * 16}, "webUI": {"enabled": True}}
    for found in locust(values, release="r" * 53).objects:
        # A Job's pods add a dash and five letters.
        room = 57 if found["kind"] == "Job" else 63
        assert len(found["metadata"]["name"]) <= room, found["metadata"]["name"]


def test_servers_of_the_namespace_admit_the_pods() -> None:
    policy = render(chart=CHART).one("NetworkPolicy", "rel-triton")["spec"]["ingress"]
    peers = [peer for rule in policy for peer in rule["from"] if "podSelector" in peer]
    for labels in pod_labels(locust({"nameOverride": "load"})):
        assert any(p["podSelector"]["matchLabels"].items() <= labels.items() for p in peers)
