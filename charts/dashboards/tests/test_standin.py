"""What stands in for GPUs and volumes is taken by a real Prometheus for the real thing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dashboards import known_metrics, panels, promql, standin
from lib.prometheus import Prometheus, binary, free_port, running
from tools import wait

NAMESPACE, RELEASE, CLAIM = "models", "rel", "rel-triton-models"
PODS = ["rel-triton-5b6454d5f7-aaaaa", "rel-triton-5b6454d5f7-aaaab"]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the page as the cluster's does."""
    program = binary()
    if program is None:
        pytest.skip("needs Prometheus: python3 -m cluster.binaries prometheus")
    port = free_port()
    page = "\n".join(standin.lines(NAMESPACE, RELEASE, PODS, CLAIM))
    environment = {**os.environ, "PAGE": page, "PORT": str(port)}
    job = {
        "job_name": "stand-in",
        "honor_labels": True,
        "static_configs": [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"namespace": "x", "pod": "y"}}
        ],
    }
    served = subprocess.Popen([sys.executable, "-c", standin.SERVE], env=environment)
    try:
        with running(program, tmp_path_factory.mktemp("prometheus"), scrape=[job]) as prometheus:
            wait.until(
                lambda: bool(prometheus.query("rate(nv_energy_consumption[10s])")), seconds=30
            )
            yield prometheus
    finally:
        served.terminate()
        served.wait(10)


def test_every_metric_that_the_cluster_lacks_is_there_with_the_labels_of_the_release(
    scraped: Prometheus,
) -> None:
    for name in known_metrics.TRITON_GPU | known_metrics.DCGM:
        found = scraped.query(f'{name}{{namespace="{NAMESPACE}",release="{RELEASE}"}}')
        assert sorted(series.labels["pod"] for series in found) == PODS, name
    for name, value in standin.VOLUME.items():
        selector = f'{name}{{namespace="{NAMESPACE}",persistentvolumeclaim="{CLAIM}"}}'
        assert [series.last for series in scraped.query(selector)] == [value]


def test_a_gpu_takes_in_as_much_energy_as_its_power_says(scraped: Prometheus) -> None:
    (power,) = {series.last for series in scraped.query("nv_gpu_power_usage")}
    for series in scraped.query("irate(nv_energy_consumption[10s])"):
        assert series.last == pytest.approx(power, rel=0.1)


def test_the_panels_of_gpus_have_data_from_it(scraped: Prometheus) -> None:
    values = dict.fromkeys(panels.BUILT_IN, "10s") | {"namespace": NAMESPACE, "release": RELEASE}
    values["deployment"] = PODS[0].rpartition("-")[0]
    asked = 0
    for _, query in panels.queries([d for d in panels.load_all() if d.name == "gpu"]):
        expression = panels.fill(query.expression, values)
        if promql.metrics(expression) <= known_metrics.TRITON_GPU | known_metrics.DCGM:
            assert scraped.query(expression), expression
            asked += 1
    assert asked >= 10
