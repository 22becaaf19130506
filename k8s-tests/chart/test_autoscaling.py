"""Autoscaling: one value sets the signal for KEDA and the HPA, and nothing fights the scaler."""

from __future__ import annotations

import re

import promql_parser
import pytest

from chart.rendering import Object, RenderError, render
from chart.signals import BY_NAMESPACE, adapter_rule, keda_query, scaled
from dashboards import known_metrics, promql

pytestmark = pytest.mark.chart
SIGNALS = ("inflight", "pending", "queueTime", "custom")


@pytest.mark.parametrize("scaler", ["keda", "hpa"])
def test_a_scaler_owns_the_number_of_pods(scaler: str) -> None:
    assert "replicas" not in scaled(scaler).one("Deployment")["spec"]
    assert render().one("Deployment")["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    ("scaler", "kind", "other"),
    [
        ("keda", "ScaledObject", "HorizontalPodAutoscaler"),
        ("hpa", "HorizontalPodAutoscaler", "ScaledObject"),
    ],
)
def test_exactly_one_scaler_is_rendered(scaler: str, kind: str, other: str) -> None:
    manifest = scaled(scaler)
    assert len(manifest.all(kind)) == 1
    assert manifest.all(other) == []
    target = manifest.one(kind)["spec"]["scaleTargetRef"]
    assert target["name"] == manifest.one("Deployment")["metadata"]["name"]


def test_keda_may_take_over_the_hpa_of_the_chart() -> None:
    """Its webhook refuses a second HPA of a Deployment, and takes over one of the same name."""
    hpa = scaled("hpa").one("HorizontalPodAutoscaler")
    found = scaled("keda").one("ScaledObject")
    key = "scaledobject.keda.sh/transfer-hpa-ownership"
    assert found["metadata"]["annotations"] == {key: "true"}
    own = found["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["name"]
    assert own == hpa["metadata"]["name"]


@pytest.mark.parametrize(("scaler", "kind"), [("hpa", "ConfigMap"), ("keda", "ScaledObject")])
def test_a_query_may_have_several_lines(scaler: str, kind: str) -> None:
    query = "sum by (<<.GroupBy>>)\n  (a{<<.LabelMatchers>>})\n"
    found = scaled(scaler, signal="custom", custom={"series": "a", "query": query})
    assert any("  (a{" in str(each) for each in found.all(kind))


def test_nothing_scales_by_default() -> None:
    kinds = {found["kind"] for found in render().objects}
    assert not kinds & {"ScaledObject", "HorizontalPodAutoscaler", "ConfigMap"}


@pytest.mark.parametrize("signal", SIGNALS)
def test_keda_and_the_adapter_ask_the_same_question_of_each_pod(signal: str) -> None:
    """What KEDA asks besides is only which pods there are."""
    rule = adapter_rule(scaled("hpa", signal=signal))
    matchers = 'namespace="models",pod=~"rel-triton-[0-9a-z]+-[0-9a-z]{5}"'
    filled = (
        rule["metricsQuery"]
        .replace("<<.GroupBy>>", "namespace,pod")
        .replace("<<.LabelMatchers>>", matchers)
        .replace(BY_NAMESPACE, matchers)
    )
    query = keda_query(scaled("keda", signal=signal))
    assert query.startswith(f"sum(({filled})) + clamp(")
    assert set(re.findall(r"(\w+)\{", query.replace(filled, ""))) == {"up"}


@pytest.mark.parametrize("signal", [name for name in SIGNALS if name != "custom"])
def test_the_adapters_query_does_not_grow_with_the_pods(signal: str) -> None:
    """<<.LabelMatchers>> holds the name of every pod."""
    query = adapter_rule(scaled("hpa", signal=signal))["metricsQuery"]
    assert "LabelMatchers" not in query
    assert query.count("{") == query.count(BY_NAMESPACE)


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_query_is_promql_grouped_by_pod(signal: str) -> None:
    query = keda_query(scaled("keda", signal=signal))
    promql_parser.parse(query)
    assert set(re.findall(r"by \(([^)]*)\)", query)) == {"namespace,pod"}


@pytest.mark.parametrize("signal", [name for name in SIGNALS if name != "custom"])
def test_a_signal_reads_metrics_that_a_server_makes(signal: str) -> None:
    """An autoscaler over a metric that nobody makes installs, and never scales."""
    known = known_metrics.engine() | known_metrics.TRITON | {"up"}
    assert promql.metrics(keda_query(scaled("keda", signal=signal))) - known == set()
    series = adapter_rule(scaled("hpa", signal=signal))["seriesQuery"]
    assert promql.metrics(series) - known == set()


@pytest.mark.parametrize("signal", SIGNALS)
def test_the_hpa_asks_for_the_metric_that_the_rule_makes(signal: str) -> None:
    manifest = scaled("hpa", signal=signal)
    (metric,) = manifest.one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter_rule(manifest)["name"]["as"]
    series = adapter_rule(manifest)["seriesQuery"]
    assert series.endswith('{namespace!="",pod!=""}')


def test_only_pods_of_this_release_count() -> None:
    pattern = re.search(r'pod=~"([^"]+)"', keda_query(scaled("keda")))
    assert pattern is not None
    assert re.fullmatch(pattern[1], "rel-triton-5b6454d5f7-dq9z5")
    assert not re.fullmatch(pattern[1], "rel-triton-two-5b6454d5f7-dq9z5")
    assert not re.fullmatch(pattern[1], "my-rel-triton-5b6454d5f7-dq9z5")


@pytest.mark.parametrize(
    ("target", "quantity", "threshold"), [(24, "24000m", "24"), (0.5, "500m", "0.5")]
)
def test_one_target_serves_both(target: float, quantity: str, threshold: str) -> None:
    (metric,) = scaled("hpa", target=target).one("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": quantity}
    (trigger,) = scaled("keda", target=target).one("ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["threshold"] == threshold
    assert trigger["metricType"] == "AverageValue"


def test_limits_and_behavior_are_the_same_in_both() -> None:
    limits = {"minReplicas": 2, "maxReplicas": 9}
    hpa = scaled("hpa", **limits).one("HorizontalPodAutoscaler")["spec"]
    keda = scaled("keda", **limits).one("ScaledObject")["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (2, 9)
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (2, 9)
    behavior = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == hpa["behavior"]
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= 300


def test_lost_metrics_never_scale_in() -> None:
    spec = scaled("keda").one("ScaledObject")["spec"]
    assert spec["triggers"][0]["metadata"]["ignoreNullValues"] == "false"
    assert spec["fallback"]["behavior"] == "currentReplicas"


def test_only_requests_of_the_chosen_models_count() -> None:
    query = keda_query(scaled("keda", models="llama3-8b|x"))
    assert query.count('model=~"llama3-8b|x"') == query.count("triton_hf_requests_")


def test_the_window_of_rates_is_a_value() -> None:
    assert "[300s]" in keda_query(scaled("keda", signal="queueTime", windowSeconds=300))


def test_a_budget_exists_when_the_scaler_may_add_pods() -> None:
    assert scaled("keda").one("PodDisruptionBudget")


@pytest.mark.parametrize(
    "autoscaling",
    [
        {"target": "24"},
        {"minReplicas": 0},
        {"signal": "custom", "custom": {"query": None}},
        {"signal": "custom", "custom": {"query": "my_queue", "series": "my_queue"}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(autoscaling: Object) -> None:
    with pytest.raises(RenderError, match="autoscaling"):
        scaled(**{"scaler": "keda", **autoscaling})
