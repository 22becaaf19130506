"""A small server to load, and releases of charts/locust beside it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib import dump, small
from tools import helm, install, load_test, place, pushed_images
from tools.helm import Release
from tools.steps import Board

MODEL = "simulated"
SPEC = {"engine": "simulated", "parameters": {"ttft_ms": 20, "inter_token_ms": 2, "slots": 8}}


@pytest.fixture(scope="module")
def served(here: place.Place) -> Iterator[Release]:
    """A simulated model in a namespace of the module's own."""
    namespace = f"load-tests-{uuid.uuid4().hex[:5]}"
    install.ensure_namespace(here, namespace)
    load_test.ensure_image(here, Board())
    release = Release(place=here, namespace=namespace, name="triton")
    chosen = small.values(here, f"{namespace}.test", models={MODEL: SPEC})
    chosen["ingress"] = {"enabled": False}
    chosen["image"]["pullPolicy"] = "Always"  # a node may hold an older build of the same tag
    try:
        release.apply(chosen)
    except AssertionError:
        print(dump.namespace(here, namespace))
        raise
    yield release
    helm.run(here, "kubectl", "delete", "namespace", namespace, "--wait=false")


Start = Callable[..., Release]


def settings(here: place.Place, **changes: Any) -> dict[str, Any]:
    """Return the values of a run of some seconds, with whole sections replaced or extended."""
    chosen: dict[str, Any] = {
        "image": pushed_images.values(here, load_test.IMAGE),
        "target": {"model": MODEL},
        "run": {
            "client": "stream",
            "users": 2,
            "spawnRate": 10,
            "durationSeconds": 8,
            "stopSeconds": 5,
            # A busy test machine must not make a generator call itself late.
            "options": {"max-tokens": 5, "think-time": 0.05, "max-lag": 60_000},
        },
        "master": {"resources": small.resources("512Mi")},
        "workers": {"count": 2, "resources": small.resources("512Mi")},
        "results": {"size": "64Mi", "keep": False},
    }
    for name, section in changes.items():
        known = chosen.get(name)
        chosen[name] = {**known, **section} if isinstance(known, dict) else section
    return chosen


@pytest.fixture
def start(served: Release, request: pytest.FixtureRequest) -> Iterator[Start]:
    """Return a function that starts a run of a release; all are removed after the test."""
    made: dict[str, Release] = {}

    def begin(name: str = "", **changes: Any) -> Release:
        name = name or f"t{uuid.uuid4().hex[:5]}"
        release = made.setdefault(
            name,
            Release(
                place=served.place, namespace=served.namespace, name=name, chart=load_test.CHART
            ),
        )
        release.apply(settings(served.place, **changes), wait=False)
        return release

    yield begin
    report = getattr(request.node, "report_call", None)
    if report is None or report.failed:
        print(dump.namespace(served.place, served.namespace))
    for release in made.values():
        release.uninstall()


def ended(release: Release, *, seconds: float = 120) -> load_test.Ended:
    """Wait for the end of a run."""
    return load_test.wait(release, Board(), seconds=seconds)


def report_of(release: Release, folder: str, into: Path) -> dict[str, Any]:
    """Fetch a run's report; return its record."""
    where = load_test.fetch(release, folder=folder, into=into)
    record: dict[str, Any] = json.loads((where / "run.json").read_text())
    return record


def condition(release: Release, component: str = "master") -> str:
    """Return `Complete`, `Failed` or the empty string for the newest Job of a component."""
    job = load_test.newest_job(release, component)
    assert job is not None
    return load_test.finished(job)
