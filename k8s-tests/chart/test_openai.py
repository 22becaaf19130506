"""OpenAI's API: a container beside Triton, reached at /v1 by the same doors."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import Manifest, Object, RenderError, render

pytestmark = pytest.mark.chart
OFF = {"openai": {"enabled": False}}
DOORS = {
    "ingress": {"enabled": True, "host": "h.example.com"},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
}


def container(manifest: Manifest) -> Object:
    found = manifest.one("Deployment")["spec"]["template"]["spec"]["containers"]
    (api,) = [each for each in found if each["name"] == "openai"]
    return dict(api)


def environment(manifest: Manifest) -> dict[str, Any]:
    return {each["name"]: each for each in container(manifest)["env"]}


def test_it_runs_the_image_and_the_rights_of_the_server() -> None:
    manifest = render()
    api = container(manifest)
    for key in ("image", "imagePullPolicy", "securityContext"):
        assert api[key] == manifest.server[key]
    assert api["args"][:3] == ["openai", "--triton=localhost:8001", "--port=9000"]
    assert api["resources"]["limits"]["memory"]
    assert not any("gpu" in name for name in api["resources"]["limits"])


def test_it_drains_as_long_as_the_server() -> None:
    manifest = render({"shutdown": {"preStopSeconds": 7, "drainSeconds": 42}})
    api = container(manifest)
    assert "--drain-seconds=42" in api["args"]
    assert (
        api["lifecycle"] == manifest.server["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    )


def test_its_probes_ask_only_the_process_so_that_one_fault_has_one_restart() -> None:
    api = container(render())
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert api[probe]["httpGet"] == {"path": "/health/live", "port": "openai"}


def test_ingress_and_route_lead_v1_to_it_and_the_policy_lets_it_in() -> None:
    manifest = render(DOORS)
    paths = manifest.one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    for path, kind in (("/v1", "Prefix"), ("/rerank", "Exact")):
        (way,) = [found for found in paths if found["path"] == path]
        assert way["pathType"] == kind
        assert way["backend"]["service"]["port"] == {"name": "openai"}
    (route,) = [
        r for r in manifest.all("HTTPRoute") if r["metadata"]["name"].endswith("-openai-api")
    ]
    (rule,) = route["spec"]["rules"]
    assert rule["matches"] == [
        {"path": {"type": "PathPrefix", "value": "/v1"}},
        {"path": {"type": "Exact", "value": "/rerank"}},
    ]
    assert rule["timeouts"] == {"request": "0s"}
    (backend,) = rule["backendRefs"]
    service = manifest.one("Service", backend["name"])
    assert {"name": "openai", "port": 9000, "targetPort": "openai"}.items() <= next(
        port for port in service["spec"]["ports"] if port["port"] == backend["port"]
    ).items()
    policy = manifest.one("NetworkPolicy", "rel-triton")
    assert {"port": "openai", "protocol": "TCP"} in policy["spec"]["ingress"][0]["ports"]


def test_it_sends_triton_the_headers_of_the_closed_apis_and_takes_the_key_of_the_clients() -> None:
    key = {"server": {"apiKey": {"existingSecret": "keys", "header": "x-key"}}}
    api = container(render(key))
    assert "--triton-header=triton-admin-key=TRITON_ADMIN_KEY" in api["args"]
    assert "--triton-header=x-key=TRITON_API_KEY" in api["args"]
    found = environment(render(key))
    reference = found["TRITON_API_KEY"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "keys", "key": "api-key"}
    assert found["TRITON_ADMIN_KEY"]["valueFrom"]["secretKeyRef"]["name"] == "rel-triton-admin"
    open_ = render({"server": {"restrictedApis": {"enabled": False}}})
    assert not any("--triton-header" in word for word in container(open_)["args"])


def test_switched_off_nothing_of_it_is_left() -> None:
    manifest = render(OFF | DOORS)
    assert "openai" not in manifest.text
    assert "path: /v1" not in manifest.text
    assert "/rerank" not in manifest.text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"grpc": {"enabled": False}}, r"openai\.enabled needs grpc\.enabled"),
        ({"openai": {"port": 8000}}, r"openai\.port and http\.port are equal"),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RenderError, match=words):
        render(values)
