"""From requests to jobs: long prompts stand apart, and the rows of one request end together."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.triton_client import eventually
from triton_hf.engines.simulated_engine import SimulatedEngine
from triton_hf.engines.text import TextEvent
from triton_hf.errors import EngineError, OverloadedError, RequestError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings, SimulatedSettings
from triton_hf.serving import service as service_module
from triton_hf.serving.service import Service

NEVER = SimulatedSettings(time_to_first_token=3600)
LONG = b"w " * service_module.LONG_CHARACTERS


class Door:
    """A service with a simulated engine."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        values = {"engine": "simulated", "max_total_tokens": 100_000, **settings}
        self.engine = SimulatedEngine(
            settings=ModelSettings(**{"max_prompt_tokens": 50_000} | values),
            metrics=Metrics(),
            heartbeat=Heartbeat(folder / "m.json"),
        )
        self.engine.start()
        self.service = Service(engine=self.engine, metrics=self.engine._metrics)
        self.results: queue.Queue[Any] = queue.Queue()

    def ask(self, *rows: bytes, **parameters: Any) -> Any:
        return self.service.submit_whole(
            {"user_message": rows}, json.dumps(parameters), self.results.put
        )


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    doors = []

    def build(**settings: Any) -> Door:
        doors.append(Door(tmp_path, **settings))
        return doors[-1]

    yield build
    for door in doors:
        door.service.stop()
        door.engine.stop()


def held(door: Door, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let tokenizing of long prompts wait for an event."""
    go, tokenize = threading.Event(), door.engine._tokenize

    def slow(conversation: Any) -> Any:
        if len(conversation[-1].content) > service_module.LONG_CHARACTERS:
            assert go.wait(30)
        return tokenize(conversation)

    monkeypatch.setattr(door.engine, "_tokenize", slow)
    return go


def test_a_long_prompt_is_tokenized_without_holding_up_others(make, monkeypatch) -> None:
    door = make()
    go = held(door, monkeypatch)
    door.ask(LONG, max_tokens=1)
    door.ask(b"a b", max_tokens=2)
    assert door.results.get(timeout=30)[0].text == "a b"
    go.set()
    assert door.results.get(timeout=30)[0].prompt_tokens == service_module.LONG_CHARACTERS


def test_a_long_prompt_that_is_refused_gets_its_sentence(make) -> None:
    door = make(max_prompt_tokens=10)
    door.ask(LONG)
    error = door.results.get(timeout=30)
    assert isinstance(error, RequestError)
    assert "tokens after the chat template; this model takes at most 10" in str(error)
    _, counts, _ = door.engine._metrics.drain()
    assert counts["triton_hf_requests_rejected_total", "invalid"] == 1


def test_long_prompts_count_as_in_flight_while_they_are_tokenized(make, monkeypatch) -> None:
    door = make(slots=1, max_queue=1)
    go = held(door, monkeypatch)
    for _ in range(2):
        door.ask(LONG, max_tokens=1)
    with pytest.raises(OverloadedError, match="2 requests in flight and 1 new, 2 allowed"):
        door.ask(LONG, max_tokens=1)
    go.set()
    assert {len(door.results.get(timeout=30)) for _ in range(2)} == {1}


def test_a_client_that_leaves_while_its_prompt_is_tokenized_gets_no_slot(make, monkeypatch) -> None:
    door = make(simulated=NEVER)
    go = held(door, monkeypatch)
    ticket = door.ask(LONG)
    ticket.cancel()
    go.set()
    assert door.results.get(timeout=30)[0].finish_reason == "cancelled"
    assert ticket.finished
    assert door.engine.state().running == 0


def test_a_fault_in_a_tokenizing_thread_is_an_answer(make, monkeypatch) -> None:
    door = make()

    def broken(conversation: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(door.engine, "_tokenize", broken)
    door.ask(LONG)
    assert "the server failed on this request" in str(door.results.get(timeout=30))


def test_when_one_row_fails_the_others_free_their_slots(make, monkeypatch) -> None:
    door = make(simulated=SimulatedSettings(time_to_first_token=0.001, inter_token=0.001))
    advance = door.engine._advance

    def faulty(admitted: Any) -> bool:
        bad = [job for job in door.engine._running if job.work.conversation[-1].content == "bad"]
        for job in bad:
            door.engine._fail(job, EngineError("this row failed"))
        return advance(admitted) if door.engine._running else True

    monkeypatch.setattr(door.engine, "_advance", faulty)
    start = time.monotonic()
    door.ask(b"good", b"bad", b"good", max_tokens=40_000)  # 40 s
    assert "this row failed" in str(door.results.get(timeout=30))
    assert time.monotonic() - start < 20
    eventually(lambda: door.engine.state().running == 0)


def test_a_stream_hears_of_a_prompt_that_is_refused_later(make) -> None:
    door = make(max_prompt_tokens=10)
    events: queue.Queue[TextEvent] = queue.Queue()
    ticket = door.service.submit_stream({"user_message": [LONG]}, "", events.put)
    event = events.get(timeout=30)
    assert isinstance(event.error, RequestError)
    assert event.last
    assert ticket.finished
