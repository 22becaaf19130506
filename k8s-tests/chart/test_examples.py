"""The values files for clouds: they render, and what Kubernetes types is valid."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from chart.rendering import CHART, KUBERNETES, program, render
from cluster import binaries, schemas
from tools.place import ROOT

pytestmark = pytest.mark.chart
FILES = sorted((CHART / "examples").glob("*.yaml"))
example = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def test_every_file_is_in_the_page_that_says_what_was_not_tried() -> None:
    page = (ROOT / "docs" / "clouds.md").read_text()
    assert {file.stem for file in FILES} == {"aks", "eks", "gke", "openshift"}
    assert all(f"`{file.name}`" in page for file in FILES)


@example
@pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])
def test_an_example_is_valid_for_kubernetes(file: Path, upgrade: bool) -> None:
    try:
        location = schemas.location()
    except binaries.MissingError as error:
        pytest.skip(str(error))
    words = ["-strict", "-kubernetes-version", KUBERNETES[-1], "-skip", "HealthCheckPolicy"]
    done = subprocess.run(
        [program("kubeconform"), *words, "-schema-location", location],
        input=render(file=file, upgrade=upgrade).text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@example
def test_an_example_lets_somebody_in_and_more_than_one_server_share_the_store(file: Path) -> None:
    manifest = render(file=file)
    assert manifest.all("Ingress") or manifest.all("HTTPRoute") or "LoadBalancer" in manifest.text
    assert manifest.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert render({"replicas": 3}, file=file).one("Deployment")["spec"]["replicas"] == 3


def test_gke_asks_the_service_for_readiness() -> None:
    manifest = render(file=CHART / "examples" / "gke.yaml")
    policy = manifest.one("HealthCheckPolicy")["spec"]
    assert manifest.one("Service", policy["targetRef"]["name"])
    check = policy["default"]["config"]["httpHealthCheck"]
    assert check == {"port": 8000, "requestPath": "/v2/health/ready"}


def test_openshift_resolves_names_on_its_own_port() -> None:
    manifest = render(file=CHART / "examples" / "openshift.yaml")
    for name, wanted in (("rel-triton", {5353}), ("rel-triton-sync", {5353, 443})):
        policy = manifest.one("NetworkPolicy", name)
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        assert ports == wanted
