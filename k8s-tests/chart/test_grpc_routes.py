"""gRPC from outside: a GRPCRoute or an Ingress lets in inference and readiness alone."""

from __future__ import annotations

from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from chart.rendering import Manifest, RenderError, render

pytestmark = pytest.mark.chart
GATEWAY = {"parentRefs": [{"name": "gateway"}]}
ADMIN = ("RepositoryModelLoad", "SystemSharedMemoryRegister", "TraceSetting", "ModelConfig")


def outside() -> Manifest:
    return render(
        {
            "grpcRoute": {"enabled": True, "hostnames": ["grpc.example.com"]},
            "httpRoute": GATEWAY,
            "ingress": {
                "host": "a.example.com",
                "extraHosts": ["b.example.com"],
                "tlsSecret": "one",
                "extraTls": [{"secretName": "two", "hosts": ["b.example.com"]}],
                "grpc": {"enabled": True, "annotations": {"speak": "GRPC"}},
            },
        }
    )


def methods(manifest: Manifest, kind: str) -> set[str]:
    if kind == "GRPCRoute":
        (rule,) = manifest.one(kind)["spec"]["rules"]
        assert len(rule["matches"]) <= 8
        found = [match["method"] for match in rule["matches"]]
        assert {each["service"] for each in found} == {"inference.GRPCInferenceService"}
        return {each["method"] for each in found}
    rule = manifest.one(kind)["spec"]["rules"][0]
    prefix = "/inference.GRPCInferenceService/"
    assert {path["pathType"] for path in rule["http"]["paths"]} == {"Exact"}
    return {path["path"].removeprefix(prefix) for path in rule["http"]["paths"]}


@pytest.mark.parametrize("kind", ["GRPCRoute", "Ingress"])
def test_inference_comes_in_and_no_admin_call_does(kind: str) -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    known = {method.name for method in service.methods}
    let_in = methods(outside(), kind)
    assert {"ModelInfer", "ModelStreamInfer", "ModelReady"} <= let_in <= known
    assert not let_in & set(ADMIN)
    assert set(ADMIN) <= known


def test_both_lead_to_the_grpc_service() -> None:
    manifest = outside()
    ports = {
        p["name"]: p["port"] for p in manifest.one("Service", "rel-triton-grpc")["spec"]["ports"]
    }
    (backend,) = manifest.one("GRPCRoute")["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": "rel-triton-grpc", "port": ports["grpc"]}
    path = manifest.one("Ingress")["spec"]["rules"][0]["http"]["paths"][0]
    assert path["backend"]["service"] == {"name": "rel-triton-grpc", "port": {"name": "grpc"}}


def test_every_host_has_the_same_paths_and_its_own_certificate() -> None:
    spec = outside().one("Ingress")["spec"]
    assert [rule["host"] for rule in spec["rules"]] == ["a.example.com", "b.example.com"]
    assert spec["rules"][0]["http"] == spec["rules"][1]["http"]
    assert spec["tls"] == [
        {"secretName": "one", "hosts": ["a.example.com"]},
        {"secretName": "two", "hosts": ["b.example.com"]},
    ]
    http = render({"ingress": {"enabled": True, "host": "a.b", "extraHosts": ["c.d"]}})
    assert [rule["host"] for rule in http.one("Ingress")["spec"]["rules"]] == ["a.b", "c.d"]


def test_the_route_takes_the_gateways_and_names_of_the_http_routes() -> None:
    values = {"grpcRoute": {"enabled": True}, "httpRoute": {**GATEWAY, "hostnames": ["x.y"]}}
    spec = render(values).one("GRPCRoute")["spec"]
    assert spec["parentRefs"] == GATEWAY["parentRefs"]
    assert spec["hostnames"] == ["x.y"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"grpcRoute": {"enabled": True}}, "set grpcRoute.parentRefs"),
        (
            {"grpcRoute": {"enabled": True, **GATEWAY}, "publicCalls": ["generate"]},
            "publicCalls has no infer",
        ),
        (
            {"ingress": {"grpc": {"enabled": True}}, "grpc": {"enabled": False}},
            "ingress.grpc.enabled leads to no Service",
        ),
        ({"ingress": {"enabled": True, "extraHosts": ["a.b"]}}, "ingress.extraHosts come on top"),
    ],
    ids=["no gateway", "no infer", "no service", "no host"],
)
def test_what_leads_nowhere_is_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RenderError, match=said):
        render(values)


def test_services_carry_what_the_network_wants() -> None:
    manifest = render(
        {"service": {"trafficDistribution": "PreferSameZone", "ipFamilyPolicy": "PreferDualStack"}}
    )
    for name in ("rel-triton", "rel-triton-grpc"):
        spec = manifest.one("Service", name)["spec"]
        assert spec["trafficDistribution"] == "PreferSameZone"
        assert spec["ipFamilyPolicy"] == "PreferDualStack"
