"""Releases for the tests: the light image and a simulated model unless a test needs more."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from lib import dump
from lib.small import values
from tools import helm, install, place
from tools.helm import Release

GATED_TOKEN = "hf_test_token_open_sesame"


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
