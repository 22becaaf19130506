"""Releases for the end-to-end tests: the light image and a simulated model unless a test needs more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from support import place
from support.helm import Release

SIMULATED = {"engine": "simulated", "parameters": {"ttft_ms": 20, "inter_token_ms": 5, "slots": 4}}
SMOLLM2 = {
    "repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "parameters": {"device": "cpu", "slots": 4},
}
GATED = {
    "repository": "example/gated-smollm2",
    "parameters": {"device": "cpu", "slots": 4},
}


def values(
    here: place.Place, name: str, *, models: dict[str, Any] | None = None, light: bool = True
) -> dict[str, Any]:
    """Return the values of a small release on the cluster in use."""
    chosen: dict[str, Any] = {
        "image": {
            "registry": here.pull,
            "repository": "triton-hf-light" if light else "triton-hf",
            "tag": place.VERSION,
            "tritonVersion": "2.51.0",
        },
        "replicaCount": 1,
        "models": models or {"simulated": SIMULATED},
        "ingress": {"enabled": True, "className": "traefik", "host": f"{name}.test"},
        "modelStore": {"size": "1Gi"},
        "shutdown": {"preStopSeconds": 5, "drainSeconds": 20},
    }
    if here.embedded:
        chosen["huggingface"] = {"endpoint": place.EMBEDDED_HUB}
        chosen["modelStore"] |= {"storageClass": "shared", "accessModes": ["ReadWriteMany"]}
        chosen["gpu"] = {"count": 0}
    return chosen


@pytest.fixture
def make_release(here: place.Place, namespace: str) -> Callable[..., Release]:
    """Return a function that names a release in the test's namespace (it installs nothing)."""

    def make(name: str = "triton") -> Release:
        return Release(place=here, namespace=namespace, name=name)

    return make
