"""Who may reach a server, and which keys it wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chart.rendering import CASE_IDS, CASES, CHART, Manifest, Object, RenderError, mappings, render

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize("file", CASES, ids=CASE_IDS)
EVERYTHING = CHART / "ci" / "everything-values.yaml"


def test_the_value_of_the_closed_apis_header_is_not_in_the_pod() -> None:
    manifest = render()
    name = manifest.one("Secret", "rel-triton-admin")["metadata"]["name"]
    env = {entry["name"]: entry for entry in manifest.server["env"]}
    ref = env["TRITON_ADMIN_KEY"]["valueFrom"]["secretKeyRef"]
    assert ref == {"name": name, "key": "header-value"}
    closed = "shared-memory,model-repository,model-config,statistics,trace,logging"
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        assert f"{flag}={closed}:triton-admin-key=$(TRITON_ADMIN_KEY)" in manifest.server["args"]


def test_an_api_key_closes_inference_and_is_in_no_pod() -> None:
    manifest = render({"server": {"apiKey": {"existingSecret": "keys", "header": "x-key"}}})
    expected = {"secretKeyRef": {"name": "keys", "key": "api-key"}}
    test = manifest.one("Pod")["spec"]["containers"][0]
    for container, variable in ((manifest.server, "TRITON_API_KEY"), (test, "API_KEY")):
        env = {entry["name"]: entry for entry in container["env"]}
        assert env[variable]["valueFrom"] == expected
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        assert f"{flag}=inference:x-key=$(TRITON_API_KEY)" in manifest.server["args"]


def test_without_an_api_key_inference_is_open() -> None:
    assert not [word for word in render().server["args"] if "inference" in word]


def test_closed_apis_can_be_opened() -> None:
    manifest = render({"server": {"restrictedApis": {"enabled": False}}})
    assert manifest.all("Secret") == []
    assert "TRITON_ADMIN_KEY" not in manifest.text


def paths(manifest: Manifest) -> set[str]:
    (rule,) = manifest.one("Ingress")["spec"]["rules"]
    found = rule["http"]["paths"]
    api = [path for path in found if path["path"] in ("/v1", "/rerank")]
    assert {path["backend"]["service"]["port"]["name"] for path in api} <= {"openai"}
    found = [path for path in found if path not in api]
    assert {path["pathType"] for path in found} == {"Exact"}
    return {path["path"] for path in found}


MODELS = {"llama3-8b": None, "a": {"engine": "simulated"}, "b.1": {"engine": "simulated"}}
GATEWAY = {"enabled": True, "parentRefs": [{"name": "gateway"}]}


def test_the_ingress_lets_in_what_a_client_needs_and_nothing_else() -> None:
    calls = ("", "/ready", "/infer", "/generate", "/generate_stream")
    wanted = {
        f"/v2/models/{model}{version}{call}"
        for model in ("a", "a_stream", "b.1", "b.1_stream")
        for version in ("", "/versions/1")
        for call in calls
    }
    manifest = render({"models": MODELS, "ingress": {"enabled": True}})
    assert paths(manifest) == wanted | {"/v2/health/ready"}


def test_routes_let_in_the_same_as_the_ingress() -> None:
    values = {"models": MODELS, "ingress": {"enabled": True}, "httpRoute": GATEWAY}
    manifest = render(values)
    routed = set()
    for route in manifest.all("HTTPRoute"):
        if route["metadata"]["name"].endswith("-openai-api"):
            continue
        for rule in route["spec"]["rules"]:
            assert 1 <= len(rule["matches"]) <= 8
            assert {match["path"]["type"] for match in rule["matches"]} == {"Exact"}
            routed |= {match["path"]["value"] for match in rule["matches"]}
    assert routed == paths(manifest) - {"/v2/health/ready"}


def test_without_infer_no_client_chooses_a_shape() -> None:
    values = {"models": MODELS, "ingress": {"enabled": True}, "httpRoute": GATEWAY}
    manifest = render(values | {"publicCalls": ["generate", "generate_stream"]})
    assert not [path for path in paths(manifest) if path.endswith("/infer")]
    assert "/v2/models/a_stream/versions/1/generate_stream" in paths(manifest)
    assert "/infer" not in str(manifest.all("HTTPRoute"))


def test_a_route_takes_the_coding_off_a_compressed_body() -> None:
    for route in render({"models": MODELS, "httpRoute": GATEWAY}).all("HTTPRoute"):
        for rule in route["spec"]["rules"]:
            (taken,) = rule["filters"]
            assert taken["requestHeaderModifier"] == {"remove": ["Content-Encoding"]}
    plain = render({"models": MODELS, "httpRoute": GATEWAY | {"filters": []}})
    assert "filters" not in plain.text


def test_no_gateway_cuts_an_answer_that_the_server_still_makes() -> None:
    """Envoy Gateway ends an answer after 15 s unless the route says more."""
    for route in render({"models": MODELS, "httpRoute": GATEWAY}).all("HTTPRoute"):
        assert {rule["timeouts"]["request"] for rule in route["spec"]["rules"]} == {"0s"}
    left = render({"models": MODELS, "httpRoute": GATEWAY | {"timeouts": {"request": None}}})
    assert "timeouts" not in left.text


@pytest.mark.parametrize(
    ("timeout", "wait", "good"),
    [
        ("50s", None, False),
        ("51s", None, True),
        ("1m", 60, False),
        ("2m", 60, True),
        ("900ms", 0.5, True),
        ("1h", 0, False),
        ("0s", 0, True),
    ],
)
def test_a_route_waits_longer_than_the_queue(timeout: str, wait: float | None, good: bool) -> None:
    parameters = {} if wait is None else {"max_queue_seconds": wait}
    models = {"llama3-8b": None, "s": {"engine": "simulated", "parameters": parameters}}
    values = {"models": models, "httpRoute": GATEWAY | {"timeouts": {"request": timeout}}}
    if good:
        assert render(values).all("HTTPRoute")
        return
    with pytest.raises(RenderError, match=r"is not longer than the max_queue_seconds of models\.s"):
        render(values)


def test_the_ingress_is_of_the_class_and_host_of_the_values() -> None:
    values = {"enabled": True, "className": "any", "host": "h.example.com", "tlsSecret": "cert"}
    spec = render({"ingress": values}).one("Ingress")["spec"]
    assert spec["ingressClassName"] == "any"
    assert spec["rules"][0]["host"] == "h.example.com"
    assert spec["tls"] == [{"secretName": "cert", "hosts": ["h.example.com"]}]


def test_nothing_listens_outside_the_cluster_by_default() -> None:
    manifest = render()
    assert manifest.all("Ingress") == manifest.all("HTTPRoute") == []
    assert {s["spec"]["type"] for s in manifest.all("Service")} == {"ClusterIP"}


@variant
def test_every_pod_but_the_test_is_under_a_policy(file: Path | None) -> None:
    manifest = render(file=file)
    chosen = [p["spec"]["podSelector"]["matchLabels"] for p in manifest.all("NetworkPolicy")]
    for owner, template in manifest.pods():
        covered = any(c.items() <= template["metadata"]["labels"].items() for c in chosen)
        assert covered or owner["kind"] == "Pod"
    for policy in manifest.all("NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for _, mapping in mappings(policy["spec"]):
            assert mapping.get("to") != []
            assert mapping.get("from") != []


def egress_ports(policy: Object) -> set[Any]:
    return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_servers_reach_dns_only_and_the_job_the_hub_as_well() -> None:
    manifest = render({"huggingface": {"endpoint": "http://hub.local:8080"}})
    assert egress_ports(manifest.one("NetworkPolicy", "rel-triton")) == {53}
    job = manifest.one("NetworkPolicy", "rel-triton-sync")
    assert egress_ports(job) == {53, 443, 8080}
    assert "ingress" not in job["spec"]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("http://hub", 80), ("https://hub/a", 443), ("https://hub:1/b", 1), ("http://[fd00::1]:9", 9)],
)
def test_the_port_of_the_endpoint_is_open(endpoint: str, port: int) -> None:
    values = {"huggingface": {"endpoint": endpoint}, "networkPolicy": {"hub": {"ports": []}}}
    policy = render(values).one("NetworkPolicy", "rel-triton-sync")
    assert egress_ports(policy) == {53, port}


@pytest.mark.parametrize(
    ("name", "proxy"),
    [
        ("HTTPS_PROXY", "proxy.example.com:3128"),
        ("http_proxy", "http://user:pa%ss@proxy.example.com:3128/"),
        ("ALL_PROXY", "socks5://[fd00::1]:3128"),
    ],
)
def test_the_port_of_a_proxy_is_open(name: str, proxy: str) -> None:
    values = {"modelSync": {"extraEnv": {name: proxy, "NO_PROXY": "a:1"}}}
    policy = render(values).one("NetworkPolicy", "rel-triton-sync")
    assert egress_ports(policy) == {53, 443, 3128}


def test_an_upgrade_opens_what_its_download_needs_before_it() -> None:
    manifest = render({"huggingface": {"endpoint": "http://hub.local:8080"}}, upgrade=True)
    early = manifest.one("NetworkPolicy", "rel-triton-sync-upgrade")
    assert early["spec"] == manifest.one("NetworkPolicy", "rel-triton-sync")["spec"]
    annotations = early["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    assert int(annotations["helm.sh/hook-weight"]) < 0
    assert len(render().all("NetworkPolicy")) == 2


def test_metrics_are_open_to_monitoring_only() -> None:
    policy = render().one("NetworkPolicy", "rel-triton")["spec"]
    rules = [
        rule for rule in policy["ingress"] if "metrics" in {port["port"] for port in rule["ports"]}
    ]
    (rule,) = rules
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_no_peer_of_the_defaults_is_everybody() -> None:
    rules = render().one("NetworkPolicy", "rel-triton")["spec"]["ingress"]
    for _, mapping in mappings(rules):
        assert mapping.get("namespaceSelector") != {}
        assert mapping.get("podSelector") != {}


def test_an_empty_list_of_peers_closes_and_never_opens() -> None:
    closed = {"gateway": [], "monitoring": [], "loadTest": [], "dns": [], "hub": {"to": []}}
    manifest = render({"networkPolicy": closed})
    for policy in manifest.all("NetworkPolicy"):
        for rule in policy["spec"].get("ingress") or []:
            assert rule["from"]
        assert not policy["spec"].get("egress")


def test_policies_can_be_left_to_somebody_else() -> None:
    assert render({"networkPolicy": {"enabled": False}}).all("NetworkPolicy") == []
