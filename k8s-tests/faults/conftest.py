"""Two servers behind the ingress in a namespace of the test's own, and a row of the results."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from faults import servers
from tools import fault_table, place
from tools.helm import Release


@pytest.fixture
def release(here: place.Place, namespace: str) -> Release:
    """A name for the release; nothing is installed."""
    return Release(place=here, namespace=namespace, name="triton")


@pytest.fixture
def install(release: Release) -> Callable[..., dict[str, Any]]:
    """Return a function that installs the release and waits until it is settled.

    It takes top-level values that replace those of `servers.values`; it returns the values.
    """

    def make(**more: Any) -> dict[str, Any]:
        chosen = servers.values(release.place, release.namespace, **more)
        release.apply(chosen)
        servers.wait_settled(release, int(chosen["replicas"]))
        return chosen

    return make


@pytest.fixture
def embedded(here: place.Place) -> None:
    """Skip where nodes and processes are not ours to break."""
    if not here.embedded:
        pytest.skip("breaks a node of the embedded cluster; KUBECONFIG names another one")


@pytest.fixture(scope="session")
def versions(here: place.Place) -> fault_table.Versions:
    """The versions of what is hit."""
    return fault_table.Versions(here)


@pytest.fixture
def row(
    request: pytest.FixtureRequest, versions: fault_table.Versions
) -> Iterator[fault_table.Row]:
    """The test's row of the table; saved with its outcome when the test has ended."""
    file, _, name = request.node.location
    made = fault_table.Row(name=re.sub(r"[^\w.-]+", "-", name), order=file)
    start = time.monotonic()
    yield made
    report = getattr(request.node, "report_call", None)
    made.passed = report is not None and report.passed
    made.seconds = time.monotonic() - start
    made.versions = versions.text()
    made.day = time.strftime("%Y-%m-%d", time.gmtime())
    if report is not None and not report.skipped:
        made.save()
