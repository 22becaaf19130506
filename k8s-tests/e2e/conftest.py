"""Releases for the tests: the light image and a simulated model unless a test needs more."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from support import dump, helm, install, place
from support.helm import Release

SIMULATED = {"engine": "simulated", "parameters": {"ttft_ms": 20, "inter_token_ms": 2, "slots": 4}}
GATED_TOKEN = "hf_test_token_open_sesame"


def values(
    here: place.Place, host: str, *, models: dict[str, Any] | None = None, light: bool = True
) -> dict[str, Any]:
    """Return the values of a small release on the cluster in use."""
    memory = "512Mi" if light else "3Gi"
    chosen: dict[str, Any] = {
        "image": {
            "registry": here.pull,
            "repository": "triton-hf-light" if light else "triton-hf",
            "tag": place.VERSION,
            "tritonVersion": "2.51.0",
        },
        "gpu": {"count": 0},
        "models": {"llama3-8b": None, **(models or {"simulated": SIMULATED})},
        "modelStore": {"size": "1Gi"},
        "modelSync": {"timeoutSeconds": 180, "resources": small("1Gi")},
        "resources": small(memory),
        "sharedMemory": "64Mi",
        "minReadySeconds": 0,
        "probes": {"startup": {"budgetSeconds": 180, "periodSeconds": 1}},
        "shutdown": {"preStopSeconds": 5, "drainSeconds": 20},
        "ingress": {"enabled": True, "host": host},
    }
    if here.embedded:
        chosen["huggingface"] = {"endpoint": place.EMBEDDED_HUB}
        chosen["modelStore"] |= {"storageClass": "shared", "accessModes": ["ReadWriteMany"]}
        chosen["ingress"]["className"] = "traefik"
    return chosen


def small(memory: str) -> dict[str, Any]:
    """Return resources that fit a crowd of releases on a small machine."""
    return {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": memory}}


@pytest.fixture
def make_release(here: place.Place, namespace: str) -> Callable[..., Release]:
    """Return a function that names a release in the test's namespace (it installs nothing)."""

    def make(name: str = "triton") -> Release:
        return Release(place=here, namespace=namespace, name=name)

    return make


@pytest.fixture(scope="module")
def served(here: place.Place) -> Iterator[Release]:
    """A release with the simulated model behind Ingress and HTTPRoute, for tests that only look."""
    namespace = f"served-{uuid.uuid4().hex[:5]}"
    install.ensure_namespace(here, namespace)
    release = Release(place=here, namespace=namespace, name="served")
    chosen = values(here, f"{namespace}.test")
    if here.embedded:
        chosen["httpRoute"] = {
            "enabled": True,
            "parentRefs": [{"name": "traefik", "namespace": "traefik"}],
            "hostnames": [f"route-{namespace}.test"],
        }
    try:
        release.apply(chosen)
    except AssertionError:
        print(dump.namespace(here, namespace))
        raise
    yield release
    helm.run(here, "kubectl", "delete", "namespace", namespace, "--wait=false")
