"""Which image `make load` builds and pushes, and where to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools import load_test, place
from tools.steps import Board


def somewhere(*, embedded: bool) -> place.Place:
    registry = "registry.example.com/ml"
    return place.Place(kubeconfig=Path("x"), push=registry, pull=registry, embedded=embedded)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run."""
    seen: list[list[str]] = []

    def run_all(steps: list[Any], *_: Any, **__: Any) -> None:
        seen.extend(step.command for step in steps)

    monkeypatch.setattr(load_test, "run_all", run_all)
    monkeypatch.delenv("PUSH", raising=False)
    return seen


def test_another_cluster_gets_the_image_when_push_is_set(
    steps: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUSH", "1")
    load_test.ensure_image(somewhere(embedded=False), Board())
    (command,) = steps
    assert command[-2:] == ["--push", "registry.example.com/ml/triton-load:0.1.0"]
    assert command[command.index("--target") + 1] == "load"


def test_another_cluster_keeps_its_image_without_push(steps: list[list[str]]) -> None:
    load_test.ensure_image(somewhere(embedded=False), Board())
    assert steps == []


def test_the_embedded_cluster_always_gets_the_image(steps: list[list[str]]) -> None:
    load_test.ensure_image(somewhere(embedded=True), Board())
    (command,) = steps
    assert command[-1] == "--plain-http"
