"""What every test on a cluster needs: the cluster, namespaces of its own, a dump on failure."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from lib import dump
from tools import helm, install, place
from tools.ask import Door
from tools.helm import Release


def reason_to_skip() -> str:
    """Return why tests that need a cluster cannot run here, or the empty string."""
    if place.foreign_kubeconfig() is not None:
        return ""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "needs KUBECONFIG, or root on Linux for the embedded cluster"
    if not place.embedded_kubeconfig().is_file():
        return "needs a cluster: run make up, or set KUBECONFIG"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with the reason what this machine cannot do."""
    no_cluster = reason_to_skip()
    no_root = "" if os.geteuid() == 0 else "needs root on Linux"
    for item in items:
        if no_cluster and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason=no_cluster))
        if no_root and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=no_root))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep each phase's report on the item, so that fixtures know whether the test failed."""
    report = yield
    setattr(item, f"report_{report.when}", report)
    return report


@pytest.fixture(scope="session")
def here() -> place.Place:
    """The cluster in use."""
    return place.current()


@pytest.fixture
def namespace(here: place.Place, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own that enforces Pod Security `restricted`."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{words}-{uuid.uuid4().hex[:5]}"
    install.ensure_namespace(here, name)
    yield name
    report = getattr(request.node, "report_call", None)
    if report is None or report.failed:
        request.node.add_report_section("call", "cluster", dump.namespace(here, name))
        print(dump.namespace(here, name))
    helm.run(here, "kubectl", "delete", "namespace", name, "--wait=false")


@pytest.fixture
def door(here: place.Place):
    """Return a function from a release to the door of its Ingress."""

    def find(release: Release) -> Door:
        return install.door(here, release)

    return find
