"""Values that contradict each other fail the render, all at once, each with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chart.rendering import CHART, LOCUST, RenderError, render

pytestmark = pytest.mark.chart
WIDE = {"accessModes": ["ReadWriteMany"]}

FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"models": {"llama3-8b": None}}, "models is empty"),
    "no repository": ({"models": {"x": {"gated": True}}}, "models.x has no repository"),
    "simulated download": (
        {"models": {"x": {"engine": "simulated", "repository": "a/b"}}},
        "models.x is simulated and downloads nothing",
    ),
    "a parameter of another engine": (
        {"models": {"x": {"repository": "a/b", "parameters": {"ttft_ms": 5}}}},
        "models.x.parameters.ttft_ms is no parameter of the engine auto: remove it.",
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
    "scale to zero": (
        {"modelStore": WIDE, "autoscaling": {"enabled": True, "minReplicas": 0}},
        "without a pod there is no signal that would start one again: set it to 1",
    ),
    "no such alert": (
        {"metrics": {"rules": {"disabled": ["TritonSlow"]}}},
        "metrics.rules.disabled names TritonSlow, and there is no such alert: name one of",
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


SEARCH: dict[str, Any] = {"capacity": {"enabled": True}, "objectives": {"error ratio": 0}}
LOCUST_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "two data files": (
        {"data": {"file": "/a", "inline": "[]"}},
        "data.file and data.inline are set together: keep one",
    ),
    "three schemas": (
        {"schema": {"file": "/a", "inline": "b", "existingConfigMap": "c"}},
        "schema.file and schema.inline and schema.existingConfigMap",
    ),
    "no json": ({"data": {"inline": '{"data": [}'}}, "data.inline is no JSON"),
    "doubled option": (
        {"run": {"options": {"users": 5}}},
        "run.options.users is set by the chart: set run.users instead",
    ),
    "killed too early": (
        {"run": {"durationSeconds": 7200}},
        "jobs.deadlineSeconds (7200) ends the Jobs before the run can end (7680 s",
    ),
    "a page that would be killed": (
        {"webUI": {"enabled": True, "lingerSeconds": 7200}},
        "with waiting, stopping and lingering): raise it",
    ),
    "search without an aim": (
        {"capacity": {"enabled": True}},
        "capacity.enabled searches within the objectives: set objectives",
    ),
    "search with a load": (
        {**SEARCH, "run": {"rate": 2, "shape": "ramp", "options": {"think-time": 1}}},
        "capacity.enabled chooses the load itself: unset run.rate and run.shape and "
        "run.options.think-time",
    ),
    "search for two": (
        {**SEARCH, "capacity": {"enabled": True, "forUsers": 2, "forRate": 2}},
        "capacity.forUsers and capacity.forRate are set together: keep one",
    ),
    "search for nothing": (
        {**SEARCH, "capacity": {"enabled": True, "start": 5, "highest": 4}},
        "capacity.start is above capacity.highest",
    ),
    "half a user": (
        {**SEARCH, "capacity": {"enabled": True, "by": "users", "start": 1.5}},
        "capacity.start must be a whole number of users",
    ),
    "search with a page": (
        {**SEARCH, "webUI": {"enabled": True}},
        "capacity.enabled makes many runs, which have no page: unset webUI.enabled",
    ),
    "no page": ({"webUI": {"ingress": {"enabled": True}}}, "set webUI.enabled"),
    "nothing to scrape": (
        {"metrics": {"enabled": False, "scrape": "podMonitor"}},
        "set metrics.enabled",
    ),
}


ALL = [
    (chart, *found)
    for chart, faults in ((CHART, FAULTS), (LOCUST, LOCUST_FAULTS))
    for found in faults.values()
]


@pytest.mark.parametrize(("chart", "values", "message"), ALL, ids=[*FAULTS, *LOCUST_FAULTS])
def test_a_contradiction_is_one_sentence(chart: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(values, chart=chart)
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


@pytest.mark.parametrize(
    ("chart", "values", "number"),
    [
        (CHART, {"replicas": 2, "httpRoute": {"enabled": True}, "models": {"x": {}}}, 3),
        (
            LOCUST,
            {"data": {"file": "/a", "inline": "{}"}, "webUI": {"ingress": {"enabled": True}}},
            2,
        ),
    ],
    ids=["triton", "locust"],
)
def test_all_contradictions_are_told_at_once(
    chart: Path, values: dict[str, Any], number: int
) -> None:
    with pytest.raises(RenderError) as caught:
        render(values, chart=chart)
    told = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert len(told) == number


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


@pytest.mark.parametrize("text", ["[]", '{"data": []}', ' [{"a": 1}]\n'])
def test_good_inline_data_renders(text: str) -> None:
    assert render({"data": {"inline": text}}, chart=LOCUST).one("ConfigMap")
