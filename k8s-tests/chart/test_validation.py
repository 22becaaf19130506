"""Values that contradict each other fail the render, all at once, each with one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import RenderError, render

pytestmark = pytest.mark.chart
WIDE = {"accessModes": ["ReadWriteMany"]}

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"models": {"llama3-8b": None}}, "models is empty"),
    "no repository": ({"models": {"x": {"gated": True}}}, "models.x has no repository"),
    "simulated download": (
        {"models": {"x": {"engine": "simulated", "repository": "a/b"}}},
        "models.x is simulated and downloads nothing",
    ),
    "same name": (
        {"models": {"x.1": {"engine": "simulated"}, "x-1": {"engine": "simulated"}}},
        "models.x-1 and models.x.1 need the same object name",
    ),
    "two replicas on one node": ({"replicas": 2}, "more than one server pod may run (2)"),
    "autoscaled on one node": (
        {"autoscaling": {"enabled": True}},
        "more than one server pod may run (4)",
    ),
    "surge on one node": ({"strategy": {"maxSurge": 1}}, "and the surge of a rollout"),
    "nothing writes": (
        {"modelStore": {"accessModes": ["ReadOnlyMany"]}},
        "model-sync must write",
    ),
    "stuck rollout": (
        {"strategy": {"maxSurge": 0, "maxUnavailable": "0%"}},
        "no pod could ever be replaced",
    ),
    "min above max": (
        {"modelStore": WIDE, "autoscaling": {"enabled": True, "minReplicas": 9}},
        "autoscaling.minReplicas (9) is larger than autoscaling.maxReplicas (4): swap them.",
    ),
    "target zero": (
        {"autoscaling": {"target": 0}},
        "autoscaling.target is 0: set it above 0, to the signal that a pod should have.",
    ),
    "target below zero": (
        {"autoscaling": {"target": -1}},
        "autoscaling.target is -1: set it above 0, to the signal that a pod should have.",
    ),
    "unknown signal": (
        {"autoscaling": {"signal": "gpu"}},
        "autoscaling.signal is gpu: set it to inflight, pending, queueTime or custom.",
    ),
    "both scalers": (
        {"autoscaling": {"scaler": "both"}},
        "autoscaling.scaler is both: set it to keda or hpa; both would fight over one Deployment.",
    ),
    "gRPC connections outlive their pod": (
        {
            "image": {"tritonVersion": "2.57.0"},
            "server": {"grpcMaxConnectionAgeSeconds": 14},
        },
        "grpcMaxConnectionAgeSeconds (14) and the tenth that gRPC adds are not below",
    ),
    "two tokens": (
        {"huggingface": {"token": {"existingSecret": "a", "value": "b"}}},
        "are both set: keep one",
    ),
    "no gateway": ({"httpRoute": {"enabled": True}}, "set httpRoute.parentRefs"),
    "ranges without a load balancer": (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "service.loadBalancerSourceRanges is set and no Service is a LoadBalancer",
    ),
    "a class without a load balancer": (
        {"service": {"type": "NodePort", "loadBalancerClass": "x"}},
        "service.loadBalancerClass is set and no Service is a LoadBalancer",
    ),
    "a policy without outside traffic": (
        {"service": {"externalTrafficPolicy": "Local"}},
        "service.externalTrafficPolicy is set and every Service is a ClusterIP",
    ),
    "nobody at the door": (
        {"ingress": {"enabled": True}, "networkPolicy": {"gateway": []}},
        "networkPolicy.gateway is empty",
    ),
    "closed health": (
        {"server": {"restrictedApis": {"categories": ["health"]}}},
        "holds health",
    ),
    "inference closed twice": (
        {
            "server": {
                "restrictedApis": {"categories": ["inference"]},
                "apiKey": {"existingSecret": "keys"},
            }
        },
        "server.apiKey closes already: remove it there",
    ),
}


@pytest.mark.parametrize(("values", "message"), FAULTS.values(), ids=FAULTS)
def test_a_contradiction_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(values)
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert message in line
    assert line.endswith(".")


@pytest.mark.parametrize(
    "name",
    ["target zero", "target below zero", "unknown signal", "both scalers", "min above max"],
)
def test_a_wrong_value_of_the_autoscaler_is_exactly_this_sentence(name: str) -> None:
    values, sentence = FAULTS[name]
    switched_on = {**values["autoscaling"], "enabled": True}
    with pytest.raises(RenderError) as caught:
        render({"modelStore": WIDE, "autoscaling": switched_on})
    said = [line for line in str(caught.value).splitlines() if "autoscaling" in line]
    assert said == [f"- {sentence}"]


def test_all_contradictions_are_told_at_once() -> None:
    values = {"replicas": 2, "httpRoute": {"enabled": True}, "models": {"x": {}}}
    with pytest.raises(RenderError) as caught:
        render(values)
    assert len([line for line in str(caught.value).splitlines() if line.startswith("- ")]) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": 2, "modelStore": WIDE},
        {"replicas": 2, "modelStore": {"allPodsOnOneNode": True}},
        {"replicas": 2, "modelStore": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}},
        {"strategy": {"type": "Recreate", "maxSurge": 1}},
        {"modelStore": {"accessModes": ["ReadOnlyMany"]}, "modelSync": {"enabled": False}},
        {"image": {"tritonVersion": "2.58.0"}, "server": {"grpcMaxConnectionAgeSeconds": 14}},
        {"image": {"tritonVersion": "2.57.0"}, "server": {"grpcMaxConnectionAgeSeconds": 13}},
        {"ingress": {"enabled": True}, "networkPolicy": {"enabled": False, "gateway": []}},
    ],
    ids=str,
)
def test_what_only_looks_like_a_contradiction_renders(values: dict[str, Any]) -> None:
    assert render(values).one("Deployment")
