"""From the counts of a model to Triton's own metrics, also when Triton refuses."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from triton_hf.backend.publisher import TritonPublisher
from triton_hf.metrics import FAMILIES, Metrics


class Series:
    """One series of a Triton that can be told to refuse."""

    def __init__(self, triton: Triton, key: tuple[str, str | None]) -> None:
        self._triton = triton
        self._key = key

    def set(self, value: float) -> None:
        self._triton.take(self._key)
        self._triton.values[self._key] = value

    def increment(self, value: float) -> None:
        self._triton.take(self._key)
        self._triton.values[self._key] = self._triton.values.get(self._key, 0) + value

    def observe(self, value: float) -> None:
        self._triton.take(self._key)
        self._triton.values[self._key] = self._triton.values.get(self._key, 0) + 1


class Triton:
    """Stands for `triton_python_backend_utils`."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str | None], float] = {}
        self.refused: set[str] = set()
        self.MetricFamily = self._family
        self.MetricFamily.__dict__.update(COUNTER=0, GAUGE=1, HISTOGRAM=2)

    def take(self, key: tuple[str, str | None]) -> None:
        if key[0] in self.refused:
            raise RuntimeError(f"{key[0]} cannot be reached")

    @property
    def _family(self) -> Any:
        def family(*, name: str, description: str, kind: int) -> Any:
            def metric(*, labels: dict[str, str], **_: Any) -> Series:
                return Series(self, (name, labels.get("reason")))

            return SimpleNamespace(Metric=metric)

        return family


@pytest.fixture
def triton() -> Triton:
    return Triton()


def test_what_triton_refuses_freezes_nothing_else_and_comes_later(triton: Triton, capsys) -> None:
    metrics = Metrics()
    publisher = TritonPublisher(metrics=metrics, model="m", backend=triton)
    triton.refused = {"triton_hf_requests_waiting", "triton_hf_requests_finished_total"}
    metrics.queue(running=3, waiting=9, kv_usage=0.5)
    metrics.finished("stop", duration=1.0, prompt_tokens=4, completion_tokens=5)
    metrics.rejected("queue_full", 2)
    publisher._copy()
    assert triton.values["triton_hf_requests_running", None] == 3
    assert triton.values["triton_hf_requests_rejected_total", "queue_full"] == 2
    assert triton.values["triton_hf_request_duration_seconds", None] == 1
    assert ("triton_hf_requests_waiting", None) not in triton.values
    assert "triton_hf_requests_waiting cannot be reached" in capsys.readouterr().err
    triton.refused = set()
    metrics.finished("stop", duration=1.0, prompt_tokens=4, completion_tokens=5)
    publisher._copy()
    assert triton.values["triton_hf_requests_waiting", None] == 9
    assert triton.values["triton_hf_requests_finished_total", "stop"] == 2
    assert triton.values["triton_hf_requests_rejected_total", "queue_full"] == 2


def test_a_gauge_that_moved_while_triton_refused_shows_its_last_value(triton: Triton) -> None:
    metrics = Metrics()
    publisher = TritonPublisher(metrics=metrics, model="m", backend=triton)
    triton.refused = {"triton_hf_requests_running"}
    metrics.queue(running=3, waiting=0, kv_usage=0.0)
    publisher._copy()
    metrics.queue(running=1, waiting=0, kv_usage=0.0)
    triton.refused = set()
    publisher._copy()
    assert triton.values["triton_hf_requests_running", None] == 1


def test_observations_that_triton_refuses_are_not_kept(triton: Triton) -> None:
    metrics = Metrics()
    publisher = TritonPublisher(metrics=metrics, model="m", backend=triton)
    triton.refused = {family.name for family in FAMILIES}
    for _ in range(100):
        metrics.next_token(0.01)
    publisher._copy()
    assert metrics.drain()[2] == []


def test_a_copy_that_fails_as_a_whole_is_not_the_last_one(triton: Triton, monkeypatch) -> None:
    metrics = Metrics()
    publisher = TritonPublisher(metrics=metrics, model="m", backend=triton)
    drain = metrics.drain

    def broken() -> Any:
        monkeypatch.setattr(metrics, "drain", drain)
        raise MemoryError

    monkeypatch.setattr(metrics, "drain", broken)
    metrics.queue(running=3, waiting=0, kv_usage=0.0)
    publisher.start()
    while metrics.drain == broken:
        time.sleep(0.01)
    publisher.stop()
    assert triton.values["triton_hf_requests_running", None] == 3
