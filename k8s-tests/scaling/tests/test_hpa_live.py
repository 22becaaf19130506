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
from scaling import load, metrics, panels, promql, release

from support import helm, install, place, wait
from support.helm import Release
from support.prometheus import Prometheus, in_cluster

pytestmark = pytest.mark.cluster
CLIENTS = 3 * release.TARGET


def skip_without(here: place.Place, kind: str, name: str, *more: str, addon: str) -> None:
    """Skip when the cluster lacks an object that comes with an add-on."""
    try:
        helm.run(here, "kubectl", "get", kind, name, *more)
    except helm.CommandFailedError:
        pytest.skip(f"needs {kind} {name}: python3 -m cluster up --with {addon}")


@pytest.fixture(scope="module", params=["hpa", "keda"])
def scaled(here: place.Place, request: pytest.FixtureRequest) -> Iterator[Release]:
    """A release whose pods are scraped and whose HPA has its metric."""
    skip_without(here, "service", "prometheus", "-n", release.MONITORING, addon="monitoring")
    group, addon = {
        "hpa": ("v1beta2.custom.metrics.k8s.io", "monitoring"),
        "keda": ("v1beta1.external.metrics.k8s.io", "keda"),
    }[request.param]
    skip_without(here, "apiservice", group, addon=addon)
    namespace = f"{request.param}-{uuid.uuid4().hex[:5]}"
    with release.installed(here, namespace, scaler=request.param) as made:
        with in_cluster(here) as prometheus:
            # Until the first scrape KEDA says what keeps the number of pods as it is.
            running = f'triton_hf_requests_running{{namespace="{namespace}"}}'
            wait.until(lambda: bool(prometheus.query(running)), seconds=120)
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


def test_kubectl_get_hpa_shows_a_number(scaled: Release) -> None:
    """An autoscaler without its metric shows <unknown>."""

    def shows_none_in_flight() -> None:
        words = ("-n", scaled.namespace, "get", "hpa", "--no-headers")
        assert f" 0/{release.TARGET} " in helm.run(scaled.place, "kubectl", *words)

    wait.until(shows_none_in_flight, seconds=60)


def test_every_series_of_the_release_carries_its_name(scaled: Release) -> None:
    with in_cluster(scaled.place) as prometheus:
        ours = f'namespace="{scaled.namespace}"'
        every = prometheus.query(f"count({{__name__=~'triton_hf_.+|nv_.+',{ours}}})")
        named = prometheus.query(
            f"count({{__name__=~'triton_hf_.+|nv_.+',{ours},release='{scaled.name}'}})"
        )

    assert every[0].last > 0
    assert named[0].last == every[0].last


def test_pods_follow_the_load_up_and_down_and_no_request_fails(scaled: Release) -> None:
    """Requests in flight, divided by the target, are the pods; rounded up, as the HPA does."""
    door = install.door(scaled.place, scaled)
    target = load.infer(door.address, door.port, release.MODEL, host=door.host)
    wait.until(lambda: wants(scaled, 1), seconds=120)

    with load.Load([target]) as driver:
        driver.clients(CLIENTS)
        wait.until(lambda: wants(scaled, math.ceil(CLIENTS / release.TARGET)), seconds=180)
    wait.until(lambda: wants(scaled, 1), seconds=180)

    assert len(driver.record.outcomes) > CLIENTS
    assert [outcome.fault for outcome in driver.record.failed] == []


def has_data(prometheus: Prometheus, made: Release) -> None:
    """Check that no query of a panel is empty, but for those that need a GPU."""
    empty = []
    chosen = {"namespace": made.namespace, "release": made.name}
    for dashboard in panels.load_all():
        values = panels.choose(dashboard, prometheus, chosen, interval="30s")
        for panel in dashboard.panels:
            for query in panel.queries:
                expression = panels.fill(query.expression, values)
                if metrics.needs_gpu(promql.metrics(expression)):
                    continue
                if not prometheus.query(expression):
                    empty.append(f"{dashboard.name}, {panel.title}: {expression}")
    assert empty == []


def test_every_query_of_every_panel_has_data(scaled: Release) -> None:
    """After the load of the test before: rates and quantiles need requests."""
    with in_cluster(scaled.place) as prometheus:
        wait.until(lambda: has_data(prometheus, scaled), seconds=60, every=3)


# Metrics of alerts that are silent here, and why.
SILENT = {
    "kube_job_failed": "is there only after a model-sync failed",
    "kubelet_volume_stats_available_bytes": "kubelets report only volumes of CSI drivers",
    "kubelet_volume_stats_capacity_bytes": "kubelets report only volumes of CSI drivers",
}


def test_every_metric_of_every_rule_has_data(scaled: Release) -> None:
    """A rule over a metric that nobody makes would never fire, and nobody would know."""
    with in_cluster(scaled.place) as prometheus:

        def loaded() -> list[dict[str, Any]]:
            found = [r for r in prometheus.rules() if scaled.namespace in r["query"]]
            assert len(found) >= 18
            assert [r["name"] for r in found if r["health"] == "err"] == []
            return found

        asked = {
            (name, tuple(sorted(labels.items())))
            for rule in wait.until(loaded, seconds=90, every=3)
            for name, labels in promql.selectors(rule["query"])
        }
        empty = []
        for name, labels in sorted(asked):
            inside = ",".join(f"{label}=~{json.dumps(value)}" for label, value in labels)
            if name not in SILENT and not prometheus.query(f"count({name}{{{inside}}})"):
                empty.append(f"{name}{{{inside}}}")
    assert empty == []
