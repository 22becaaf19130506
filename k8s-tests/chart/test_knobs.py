"""What users of charts set most: each value arrives in the pods and objects that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chart.rendering import CHART, CHARTS, LOCUST, Manifest, RenderError, render

pytestmark = pytest.mark.chart
each = pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
POD = {
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["proxy.example.com"]}],
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.2"]},
    "schedulerName": "volcano",
}
SIDECAR = {"name": "beside", "image": "beside:1", "restartPolicy": "Always"}
FROM = [{"secretRef": {"name": "mine"}}]
IDS = {"runAsUser", "runAsGroup", "fsGroup", "supplementalGroups"}


def server_pod(manifest: Manifest) -> Any:
    return manifest.one("Deployment")["spec"]["template"]["spec"]


def environment(container: Any) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


@each
def test_every_pod_takes_names_scheduler_and_hosts(chart: Path) -> None:
    pods = list(render(POD, chart=chart).pods())
    assert len(pods) >= 2
    for _, pod in pods:
        assert POD.items() <= pod["spec"].items()


@each
def test_common_annotations_are_on_every_object_and_those_of_an_object_win(chart: Path) -> None:
    mine = {"example.com/team": "ml", "helm.sh/resource-policy": "delete"}
    on = {"metrics": {"rules": {"enabled": True}}, "ingress": {"enabled": True}}
    values = {"commonAnnotations": mine, **(on if chart == CHART else {})}
    for upgrade in (False, True):
        for found in render(values, chart=chart, upgrade=upgrade).objects:
            annotations = found["metadata"]["annotations"]
            assert annotations["example.com/team"] == "ml", found["kind"]
            kept = found["kind"] == "PersistentVolumeClaim"
            assert annotations["helm.sh/resource-policy"] == ("keep" if kept else "delete")


@each
def test_annotations_of_any_text_arrive_as_they_were_written(chart: Path) -> None:
    odd = {
        "a": "yes",
        "b": "1e3",
        "c": "{x: [1]}",
        "d": "two\nlines: #1",
        "e": "'\"%\\",
        "f": "0x1",
    }
    assert any(
        odd.items() <= pod["metadata"].get("annotations", {}).items()
        for _, pod in render({"podAnnotations": odd}, chart=chart).pods()
    )


def test_the_deployment_has_annotations_of_its_own() -> None:
    manifest = render({"deploymentAnnotations": {"reloader.stakater.com/auto": "true"}})
    assert manifest.one("Deployment")["metadata"]["annotations"] == {
        "reloader.stakater.com/auto": "true"
    }
    assert "reloader" not in str(manifest.one("Deployment")["spec"])


def test_containers_come_beside_the_server_and_before_it() -> None:
    before = {"name": "before", "image": "before:1"}
    manifest = render({"extraContainers": [SIDECAR], "extraInitContainers": [before]})
    pod = server_pod(manifest)
    assert [c["name"] for c in pod["containers"]] == ["triton", "openai", "beside"]
    assert [c["name"] for c in pod["initContainers"]] == ["before", "wait-for-models"]
    job = render({"modelSync": {"extraInitContainers": [before]}}).one("Job")
    assert job["spec"]["template"]["spec"]["initContainers"] == [before]
    for found in render({"extraInitContainers": [SIDECAR]}, chart=LOCUST).all("Job"):
        assert found["spec"]["template"]["spec"]["initContainers"] == [SIDECAR]


def test_environment_is_a_map_or_the_list_of_kubernetes() -> None:
    listed = [
        {"name": "HOME", "value": "/x"},
        {"name": "N", "value": 16777216},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
    ]
    mapped = {"HOME": "/x", "N": 16777216, "S": {"valueFrom": listed[2]["valueFrom"]}}
    values = [{"extraEnv": form, "modelSync": {"extraEnv": form}} for form in (listed, mapped)]
    first, second = (render(chosen) for chosen in values)
    assert first.server["env"] == second.server["env"]
    assert first.one("Job")["spec"] == second.one("Job")["spec"]
    found = environment(first.server)
    assert (found["HOME"], found["N"]) == ("/x", "16777216")
    assert found["S"] == listed[2]["valueFrom"]
    jobs = [render({"extraEnv": form}, chart=LOCUST).all("Job") for form in (listed, mapped)]
    assert jobs[0] == jobs[1]


def test_a_proxy_in_a_list_opens_its_port() -> None:
    listed = [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    policy = render({"modelSync": {"extraEnv": listed}}).one("NetworkPolicy", "rel-triton-sync")
    assert {"port": 3128, "protocol": "TCP"} in policy["spec"]["egress"][1]["ports"]


def test_environment_comes_from_secrets_and_config_maps() -> None:
    manifest = render({"extraEnvFrom": FROM, "modelSync": {"extraEnvFrom": FROM}})
    assert manifest.server["envFrom"] == FROM
    (sync,) = manifest.one("Job")["spec"]["template"]["spec"]["containers"]
    assert sync["envFrom"] == FROM
    for found in render({"extraEnvFrom": FROM}, chart=LOCUST).all("Job"):
        (container,) = found["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == FROM


def test_a_gpu_may_be_a_claim_of_dynamic_resource_allocation() -> None:
    claims = [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    resources = {"claims": [{"name": "gpu"}], "requests": {"cpu": 4}, "limits": {"memory": "8Gi"}}
    manifest = render({"gpu": {"count": 0}, "resourceClaims": claims, "resources": resources})
    assert server_pod(manifest)["resourceClaims"] == claims
    assert manifest.server["resources"]["claims"] == [{"name": "gpu"}]


def test_policies_take_further_rules() -> None:
    rule = {"ports": [{"port": 443, "protocol": "TCP"}]}
    values = {"networkPolicy": {"extraIngress": [rule], "extraEgress": [rule]}}
    policy = render(values).one("NetworkPolicy", "rel-triton")["spec"]
    assert policy["ingress"][-1] == rule
    assert policy["egress"][-1] == rule
    closed = {"networkPolicy": {"dns": [], "extraEgress": [rule]}}
    assert render(closed).one("NetworkPolicy", "rel-triton")["spec"]["egress"] == [rule]
    for found in render({"networkPolicy": {"extraEgress": [rule]}}, chart=LOCUST).all(
        "NetworkPolicy"
    ):
        assert rule in found["spec"]["egress"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://collector.x:4318/v1/traces", 4318), ("https://otel.example.com/v1/traces", 443)],
)
def test_traces_go_to_the_collector_and_nowhere_else(endpoint: str, port: int) -> None:
    to = [{"podSelector": {"matchLabels": {"app": "collector"}}}]
    manifest = render({"tracing": {"endpoint": endpoint, "rate": 5, "to": to}})
    args = manifest.server["args"]
    assert f"--trace-config=opentelemetry,url={endpoint}" in args
    assert "--trace-config=rate=5" in args
    egress = manifest.one("NetworkPolicy", "rel-triton")["spec"]["egress"]
    assert egress[-1] == {"to": to, "ports": [{"port": port, "protocol": "TCP"}]}
    assert not [word for word in render().server["args"] if "trace-config" in word]
    with pytest.raises(RenderError, match=r"tracing\.to is empty"):
        render({"tracing": {"endpoint": endpoint}})


def test_a_cluster_with_ipv6_alone_is_served_and_probed_by_it() -> None:
    manifest = render({"server": {"ipFamily": "IPv6"}})
    wanted = {"--http-address=ipv6:[::]", "--metrics-address=ipv6:[::]", "--grpc-address=[::]"}
    assert wanted <= set(manifest.server["args"])
    assert environment(manifest.server)["TRITON_HF_HTTP_HOST"] == "::1"
    openai = server_pod(manifest)["containers"][1]
    assert "--address=::" in openai["args"]
    assert not [word for word in render().server["args"] if "address" in word]
    for target in ("[fd00::1]:8001", "triton-grpc:8001"):
        args = render({"target": {"grpc": target}}, chart=LOCUST).all("Job")[0]
        assert f"--grpc-host={target}" in str(args)


@each
def test_openshift_chooses_the_ids(chart: Path) -> None:
    chosen = {"openshift": {"enabled": True}, "securityContext": {"runAsUser": 7}}
    for _, pod in render(chosen, chart=chart).pods():
        assert not IDS & set(pod["spec"]["securityContext"])
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in pod["spec"]["containers"]:
            assert not IDS & set(container["securityContext"])
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


WORDS = [
    (chart, word, ours)
    for chart in CHARTS
    for word, ours in json.loads((chart / "files" / "words.json").read_text()).items()
]


@pytest.mark.parametrize(
    ("chart", "word", "ours"), WORDS, ids=[f"{chart.name}-{word}" for chart, word, _ in WORDS]
)
def test_a_word_of_another_chart_is_answered_with_ours(chart: Path, word: str, ours: str) -> None:
    values: Any = {"enabled": True}
    for key in reversed(word.split(".")):
        values = {key: values}
    with pytest.raises(RenderError) as caught:
        render(values, chart=chart)
    said = [line for line in str(caught.value).splitlines() if line.startswith(f"- {word} ")]
    assert said == [f"- {word} has another name in this chart: set {ours} instead."]
    defaults = (chart / "values.yaml").read_text()
    for name in ours.split(" and "):
        assert re.search(rf"## @param {re.escape(name)}\b", defaults), name
