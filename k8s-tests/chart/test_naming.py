"""Names, labels and selectors: exact, short enough, and never shared by two releases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from chart.rendering import (
    CASE_IDS,
    CASES,
    LOCUST,
    VARIANT_IDS,
    VARIANTS,
    Manifest,
    Object,
    mappings,
    render,
)
from tools.place import ROOT

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize("file", CASES, ids=CASE_IDS)
SELECTOR = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
}
LABELS = SELECTOR | {
    "helm.sh/chart",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
}
COMPONENTS = {"server", "model-sync", "test", "dashboard", "master", "worker", "results"}


def own(manifest: Manifest) -> list[Object]:
    """Return all objects but those that the values file itself wrote."""
    return [o for o in manifest.objects if "helm.sh/chart" in o["metadata"].get("labels", {})]


# Labels by which a sidecar or an operator finds an object; the values choose them.
CHOSEN = {
    "ConfigMap": {"grafana_dashboard", "release"},
    "PodMonitor": {"release"},
    "ServiceMonitor": {"release"},
    "PrometheusRule": {"release", "role"},
}


def selectors(manifest: Manifest) -> list[dict[str, str]]:
    """Return every selector by which an object of the release finds pods of the release."""
    found = []
    for item in own(manifest):
        spec = item.get("spec", {})
        if "helm.sh/hook" in item["metadata"].get("annotations", {}):
            continue  # made anew by each upgrade
        if item["kind"] == "Service":
            found.append(spec["selector"])
        elif item["kind"] == "NetworkPolicy":
            found.append(spec["podSelector"]["matchLabels"])
        elif item["kind"] in ("Deployment", "PodDisruptionBudget", "PodMonitor", "ServiceMonitor"):
            found.append(spec["selector"]["matchLabels"])
    return found


@pytest.mark.parametrize(("chart", "file"), VARIANTS, ids=VARIANT_IDS)
def test_every_object_has_exactly_the_standard_labels(chart: Path, file: Path | None) -> None:
    manifest = render(chart=chart, file=file)
    user = {"team"} if file and file.stem.startswith("everything") else set()
    assert len(own(manifest)) >= 4
    for found in own(manifest):
        labels = found["metadata"]["labels"]
        run = {"triton-load/run"} if chart == LOCUST else set()
        if found["kind"] == "PersistentVolumeClaim":
            run = set()  # it holds the reports of all runs
        wanted = LABELS | user | run
        assert set(labels) - CHOSEN.get(found["kind"], set()) == wanted, found["kind"]
        assert labels["app.kubernetes.io/component"] in COMPONENTS


@variant
def test_selectors_hold_name_instance_and_component_only(file: Path | None) -> None:
    found = selectors(render(file=file))
    assert len(found) >= 5
    assert all(set(selector) == SELECTOR for selector in found)


@variant
def test_every_selector_finds_a_pod_of_the_release(file: Path | None) -> None:
    manifest = render(file=file)
    pods = [pod["metadata"]["labels"] for _, pod in manifest.pods()]
    for selector in selectors(manifest):
        assert any(selector.items() <= labels.items() for labels in pods), selector


@pytest.mark.parametrize(
    ("one", "two"), [("one", "two"), ("r" * 50 + "a", "r" * 50 + "b")], ids=["short", "long"]
)
def test_two_releases_share_no_object_and_no_pod(one: str, two: str) -> None:
    values = {"ingress": {"enabled": True}, "models": {"llama3-8b": {"revision": "main"}}}
    first, second = render(values, release=one), render(values, release=two)
    names = [
        {(o["kind"], o["metadata"]["name"]) for o in manifest.objects}
        for manifest in (first, second)
    ]
    assert names[0] & names[1] == set()
    labels = [pod["metadata"]["labels"] for _, pod in second.pods()]
    for selector in selectors(first):
        assert not any(selector.items() <= found.items() for found in labels), selector


def test_long_release_names_never_become_one() -> None:
    names = {render(release="r" * 50 + end).one("Deployment")["metadata"]["name"] for end in "abc"}
    assert len(names) == 3
    assert max(map(len, names)) <= 45


def test_the_release_name_is_not_repeated_in_names() -> None:
    assert render(release="triton").one("Deployment")["metadata"]["name"] == "triton"
    assert render(release="rel").one("Deployment")["metadata"]["name"] == "rel-triton"


@pytest.mark.parametrize(
    "values", [{}, {"fullnameOverride": "n" * 45}], ids=["release", "override"]
)
def test_no_name_is_longer_than_kubernetes_takes(values: dict[str, Any]) -> None:
    long = {
        **values,
        "models": {"m" * 48: {"engine": "simulated"}},
        "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
    }
    for found in render(long, release="r" * 53).objects:
        assert len(found["metadata"]["name"]) <= 63, found["metadata"]["name"]


def helper(chart: str, name: str) -> str:
    """Return the text of a helper without the chart's name and its lengths of names."""
    files = (ROOT / "charts" / chart / "templates").glob("_*.tpl")
    text = "\n".join(file.read_text() for file in files)
    begin = f'{{{{- define "{chart}.{name}" -}}}}\n'
    body = text.partition(begin)[2].partition("\n{{- end -}}\n\n")[0]
    assert body, f"{chart} has no helper {name}"
    lengths = {"triton": (45, 36), "locust": (30, 21)}[chart]
    for number, found in enumerate((f"$full) {lengths[0]}", f"trunc {lengths[1]}")):
        body = body.replace(found, f"length {number}")
    return body.replace(f'"{chart}.', '"')


@pytest.mark.parametrize(
    "name", ["fullname", "image", "versionLabel", "serviceAccountName", "scalar", "env"]
)
def test_helpers_that_both_charts_need_are_the_same(name: str) -> None:
    assert helper("triton", name) == helper("locust", name)


@pytest.mark.parametrize("chart", ["triton", "locust"])
@pytest.mark.parametrize(
    ("tag", "label"),
    [
        ("0.1.0@sha256:" + "7" * 64, "0.1.0"),
        ("feature-a-long-branch-name-of-somebody-with-much-to-say-00-9f8-7d6c5b4a", None),
        ("_x.", "x"),
    ],
    ids=["digest", "long", "signs"],
)
def test_a_tag_of_any_kind_makes_a_valid_label(chart: str, tag: str, label: str | None) -> None:
    manifest = render({"image": {"tag": tag}}, chart=ROOT / "charts" / chart)
    assert f":{tag}" in manifest.text
    for found in own(manifest):
        version = found["metadata"]["labels"]["app.kubernetes.io/version"]
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", version)
        assert version == label or (label is None and tag.startswith(version))


@variant
def test_an_upgrade_changes_no_selector(file: Path | None) -> None:
    before = render(file=file)
    changed = {"image": {"tag": "9.9.9"}, "commonLabels": {"a": "b"}, "podLabels": {"c": "d"}}
    after = render(changed, file=file, upgrade=True)
    assert selectors(before) == selectors(after)


def test_a_new_chart_version_alone_restarts_no_pod() -> None:
    template = render().one("Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert not {"helm.sh/chart", "app.kubernetes.io/version"} & set(labels)


def test_user_labels_reach_objects_and_pods() -> None:
    manifest = render({"commonLabels": {"team": "ml"}, "podLabels": {"cost": "x"}})
    assert all(o["metadata"]["labels"]["team"] == "ml" for o in own(manifest))
    pod = manifest.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert {"team": "ml", "cost": "x"}.items() <= pod.items()


@variant
def test_references_between_objects_lead_somewhere(file: Path | None) -> None:
    """Every name that an object takes from the values is one that the release has or was given."""
    manifest = render(file=file)
    services = {o["metadata"]["name"] for o in manifest.all("Service")}
    ports = {
        port["name"]
        for container in manifest.one("Deployment")["spec"]["template"]["spec"]["containers"]
        for port in container["ports"]
    }
    for service in manifest.all("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for ingress in manifest.all("Ingress"):
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            assert path["backend"]["service"]["name"] in services
    for route in manifest.all("HTTPRoute"):
        assert route["spec"]["rules"][0]["backendRefs"][0]["name"] in services
    for policy in manifest.all("NetworkPolicy"):
        named = [
            port["port"]
            for _, mapping in mappings(policy["spec"].get("ingress", []))
            for port in mapping.get("ports", [])
        ]
        assert set(named) <= ports
