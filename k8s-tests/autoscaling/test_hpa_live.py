"""The chart's autoscaler on a real cluster: it reads the signal, and pods follow the load.

Once with an HPA of the chart on prometheus-adapter, once with the HPA that KEDA makes.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from dashboards import panels, promql, standin
from lib import offered_load, scaled_release, small
from lib.prometheus import Prometheus, in_cluster
from tools import helm, install, place, wait
from tools.helm import Release

pytestmark = pytest.mark.cluster
CLIENTS = 3 * scaled_release.TARGET


def skip_without(here: place.Place, kind: str, name: str, *more: str, addon: str) -> None:
    """Skip when the cluster lacks an object that comes with an add-on."""
    try:
        helm.run(here, "kubectl", "get", kind, name, *more)
    except helm.CommandFailedError:
        pytest.skip(f"needs {kind} {name}: python3 -m cluster up --with {addon}")


# KEDA takes ten minutes to build, so it is `make scale` that has it.
@pytest.fixture(scope="module", params=["hpa", pytest.param("keda", marks=pytest.mark.slow)])
def scaled(here: place.Place, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose pods are scraped and whose HPA has its metric."""
    skip_without(here, "service", "prometheus", "-n", scaled_release.MONITORING, addon="monitoring")
    group, addon = {
        "hpa": ("v1beta2.custom.metrics.k8s.io", "monitoring"),
        "keda": ("v1beta1.external.metrics.k8s.io", "keda"),
    }[request.param]
    skip_without(here, "apiservice", group, addon=addon)
    namespace = f"{request.param}-{uuid.uuid4().hex[:5]}"
    with scaled_release.installed(here, namespace, scaler=request.param) as made:
        with in_cluster(here) as prometheus:
            # Until the first scrape KEDA says what keeps the number of pods as it is.
            running = f'triton_hf_requests_running{{namespace="{namespace}"}}'
            wait.until(lambda: bool(prometheus.query(running)), seconds=300)
        yield made


def autoscaler(made: Release) -> dict[str, Any]:
    """Return the HPA of a release."""
    (found,) = helm.get(made.place, made.namespace, "hpa")["items"]
    return dict(found)


def wants(made: Release, pods: int) -> None:
    """Check that the HPA wants so many pods and that so many are ready."""
    status = autoscaler(made)["status"]
    assert status["desiredReplicas"] == pods, status
    (deployment,) = helm.get(made.place, made.namespace, "deployment")["items"]
    assert deployment["status"].get("readyReplicas", 0) == pods, deployment["status"]


@pytest.mark.slow
def test_a_fleet_keeps_its_servers_when_it_gets_an_autoscaler_and_another_one(
    here: place.Place, namespace: str
) -> None:
    """As the chart's README says how, with Helm 4."""
    skip_without(here, "apiservice", "v1beta2.custom.metrics.k8s.io", addon="monitoring")
    skip_without(here, "apiservice", "v1beta1.external.metrics.k8s.io", addon="keda")
    made = Release(place=here, namespace=namespace, name="scaled")

    def chosen(scaler: str) -> dict[str, Any]:
        return scaled_release.values(here, f"{namespace}.test", scaler=scaler, settle=None)

    def kubectl(*words: str) -> str:
        return helm.run(here, "kubectl", "-n", namespace, *words)

    def servers() -> set[str]:
        (deployment,) = helm.get(here, namespace, "deployment")["items"]
        assert deployment["spec"]["replicas"] == 2
        return {pod["metadata"]["name"] for pod in made.pods()}

    none = {**chosen("hpa"), "autoscaling": {"enabled": False}}
    made.apply(none | {"replicas": 3})
    kubectl("scale", "deployment/scaled-triton", "--replicas=2")
    wait.until(lambda: len(servers()) == 2, seconds=60)
    fleet = servers()
    made.apply(chosen("hpa"))
    scaled_release.teach_adapter(made)
    scaled_release.wait_for_metric(made)
    assert servers() == fleet
    made.apply(chosen("keda"))
    scaled_release.wait_for_metric(made)
    assert servers() == fleet
    kubectl("delete", "scaledobject", "scaled-triton")
    wait.until(lambda: not helm.get(here, namespace, "hpa")["items"], seconds=60)
    assert servers() == fleet
    made.apply(chosen("hpa"))
    scaled_release.wait_for_metric(made)
    assert servers() == fleet


def test_kubectl_get_hpa_shows_a_number(scaled: Release) -> None:
    """An autoscaler without its metric shows <unknown>."""

    def shows_none_in_flight() -> None:
        words = ("-n", scaled.namespace, "get", "hpa", "--no-headers")
        assert f" 0/{scaled_release.TARGET} " in helm.run(scaled.place, "kubectl", *words)

    wait.until(shows_none_in_flight, seconds=60)


def test_every_series_of_the_release_carries_its_name(scaled: Release) -> None:
    with in_cluster(scaled.place) as prometheus:
        all_named(prometheus, scaled)


def all_named(prometheus: Prometheus, made: Release) -> None:
    """Check that the series of a release are there, and that none lacks release and pod."""
    ours = f"__name__=~'triton_hf_.+|nv_.+',namespace='{made.namespace}'"
    (every,) = prometheus.query(f"count({{{ours}}})")
    (named,) = prometheus.query(f"count({{{ours},release='{made.name}',pod!=''}})")
    assert every.last > 0
    assert named.last == every.last


@pytest.mark.parametrize(
    "kind", ["annotations", pytest.param("serviceMonitor", marks=pytest.mark.slow)]
)
def test_every_series_carries_the_name_of_its_release_however_it_is_scraped(
    here: place.Place, namespace: str, kind: str
) -> None:
    skip_without(here, "service", "prometheus", "-n", scaled_release.MONITORING, addon="monitoring")
    made = Release(place=here, namespace=namespace, name="named")
    scrape = {"metrics": {"scrape": {"kind": kind, "intervalSeconds": 2}}}
    made.apply(small.values(here, f"{namespace}.test") | scrape)

    with in_cluster(here) as prometheus:
        wait.until(lambda: all_named(prometheus, made), seconds=300)


def test_pods_follow_the_load_up_and_down_and_no_request_fails(scaled: Release) -> None:
    """Requests in flight, divided by the target, are the pods; rounded up, as the HPA does."""
    door = install.door(scaled.place, scaled)
    target = offered_load.infer(door.address, door.port, scaled_release.MODEL, host=door.host)
    wait.until(lambda: wants(scaled, 1), seconds=120)

    with offered_load.Load([target]) as driver:
        driver.clients(CLIENTS)
        wait.until(lambda: wants(scaled, math.ceil(CLIENTS / scaled_release.TARGET)), seconds=180)
    wait.until(lambda: wants(scaled, 1), seconds=180)

    assert len(driver.record.outcomes) > CLIENTS
    assert [outcome.fault for outcome in driver.record.failed] == []


def is_number(prometheus: Prometheus, expression: str) -> bool:
    """Return whether an expression has a value; that of a quantile of nothing is none."""
    return any(not math.isnan(series.last) for series in prometheus.query(expression))


def has_data(prometheus: Prometheus, made: Release) -> None:
    """Check that no query of a panel is empty."""
    empty = []
    chosen = {"namespace": made.namespace, "release": made.name}
    for dashboard in panels.load_all():
        values = panels.choose(dashboard, prometheus, chosen, interval="30s")
        for panel in dashboard.panels:
            for query in panel.queries:
                expression = panels.fill(query.expression, values)
                if not is_number(prometheus, expression):
                    empty.append(f"{dashboard.name}, {panel.title}: {expression}")
    assert empty == []


@pytest.mark.slow  # the serving tests ask the same of a Triton outside the cluster
def test_every_query_of_every_panel_has_data(scaled: Release) -> None:
    """What needs a GPU is asked of a pod that stands in for one.

    Its monitor is in use once kubelet and reloader have passed it on: up to three minutes.
    """
    standin.serve(scaled)
    door = install.door(scaled.place, scaled)
    target = offered_load.infer(door.address, door.port, scaled_release.MODEL, host=door.host)
    with offered_load.Load([target]) as driver, in_cluster(scaled.place) as prometheus:
        driver.clients(scaled_release.TARGET - 1)
        wait.until(lambda: has_data(prometheus, scaled), seconds=300, every=3)

    assert [outcome.fault for outcome in driver.record.failed] == []


def rules_of(prometheus: Prometheus, made: Release) -> list[dict[str, Any]]:
    """Return the rules of a release once Prometheus has evaluated all of them.

    Raises:
        AssertionError: not yet, or one of them cannot be evaluated.
    """
    found = [rule for rule in prometheus.rules() if made.namespace in rule["query"]]
    assert len(found) >= 17
    assert [rule["name"] for rule in found if rule["health"] != "ok"] == []
    return found


@pytest.mark.slow  # it breaks the release and waits for two reloads
def test_every_rule_and_every_metric_of_a_rule_has_data(scaled: Release) -> None:
    """A rule over a metric that nobody makes would never fire, and nobody would know.

    A download that failed makes the metric of failed Jobs; the release stays as broken as that.
    """
    standin.serve(scaled)
    broken: dict[str, int | str] = {**scaled_release.PARAMETERS, "slots": "many"}
    scaler = scaled.namespace.split("-")[0]
    host = f"{scaled.namespace}.test"
    values = scaled_release.values(scaled.place, host, scaler=scaler, parameters=broken)
    with pytest.raises(helm.CommandFailedError):
        scaled.apply(values)

    with in_cluster(scaled.place) as prometheus:
        rules = wait.until(lambda: rules_of(prometheus, scaled), seconds=300, every=3)
        wait.until(lambda: rules_have_data(prometheus, scaled, rules), seconds=300, every=3)


def rules_have_data(prometheus: Prometheus, made: Release, rules: list[dict[str, Any]]) -> None:
    """Check that what the rules record is there, and everything that they read."""
    asked = {
        f"{rule['name']}{{namespace={json.dumps(made.namespace)}}}"
        for rule in rules
        if rule["type"] == "recording"
    }
    assert asked
    for rule in rules:
        for name, labels in promql.selectors(rule["query"]):
            inside = ",".join(f"{label}=~{json.dumps(value)}" for label, value in labels.items())
            asked.add(f"{name}{{{inside}}}")
    assert [text for text in sorted(asked) if not is_number(prometheus, text)] == []
