"""The engine's promises: order, slots, queue, cancellation, metrics."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_hf.engine import Event, Job, TextAssembler
from triton_hf.errors import EngineError, OverloadedError, RequestError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.requests import Message, Sampling
from triton_hf.settings import ModelSettings, SimulatedSettings
from triton_hf.simulated_engine import SimulatedEngine

FAST = SimulatedSettings(time_to_first_token=0.001, inter_token=0.001)
NEVER = SimulatedSettings(time_to_first_token=3600)


class Client:
    """Collects the events of its jobs."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.events: queue.Queue[Event] = queue.Queue()

    def ask(self, text: str = "a b c", **sampling: object) -> Job:
        values = Sampling(**sampling)  # type: ignore[arg-type]
        work = self.engine.encode((Message(role="user", content=text),), values)
        return self.engine.submit([work], [self.events.put])[0]

    def answer(self) -> tuple[str, Event]:
        text = ""
        while True:
            event = self.events.get(timeout=30)
            text += event.text
            if event.last:
                return text, event


@pytest.fixture
def make(tmp_path: Path) -> Iterator[object]:
    engines = []

    def build(**settings: object) -> SimulatedEngine:
        values = {"engine": "simulated", "simulated": FAST, **settings}
        engine = SimulatedEngine(
            settings=ModelSettings(**values),  # type: ignore[arg-type]
            metrics=Metrics(),
            heartbeat=Heartbeat(tmp_path / f"{len(engines)}.json"),
        )
        engine.start()
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.stop()


def test_an_answer_has_its_tokens_in_order_and_one_last_event(make) -> None:
    client = Client(make())
    client.ask("a b c", max_tokens=5)
    text, last = client.answer()
    assert (text, last.finish_reason, last.completion_tokens) == ("a b c a b", "length", 5)
    assert client.events.empty()


def test_an_answer_ends_before_the_first_stop_string(make) -> None:
    client = Client(make())
    client.ask("a b c d", max_tokens=20, stop=("d", "c d"))
    text, last = client.answer()
    assert (text, last.finish_reason) == ("a b ", "stop")


def test_a_full_queue_refuses_the_next_request_and_nothing_else(make) -> None:
    engine = make(slots=1, max_queue=1, simulated=NEVER)
    client = Client(engine)
    jobs = [client.ask(), client.ask()]
    with pytest.raises(OverloadedError, match="2 requests in flight and 1 new, 2 allowed"):
        client.ask()
    for job in jobs:
        job.cancel()
    engine.wake()
    assert {client.answer()[1].finish_reason for _ in jobs} == {"cancelled"}
    state = engine.state()
    assert (state.running, state.waiting, state.kv_usage) == (0, 0, 0.0)


def test_the_time_in_the_queue_is_that_until_the_slot_and_not_that_of_the_answer(make) -> None:
    slow = SimulatedSettings(time_to_first_token=0.2, inter_token=0.001)
    engine = make(slots=1, max_queue=1, simulated=slow)
    first, second = Client(engine), Client(engine)
    first.ask(max_tokens=1)
    second.ask(max_tokens=1)
    first.answer()
    second.answer()
    _, _, seen = engine._metrics.drain()
    waits = [value for name, value in seen if name == "triton_hf_queue_seconds"]
    answers = [value for name, value in seen if name == "triton_hf_time_to_first_token_seconds"]
    assert len(waits) == 2
    assert waits[0] < answers[0]
    assert answers[0] * 0.5 < waits[1] < answers[1]


def test_rows_of_one_request_are_queued_all_or_none(make) -> None:
    engine = make(slots=1, max_queue=1, simulated=NEVER)
    work = engine.encode((Message(role="user", content="x"),), Sampling())
    with pytest.raises(OverloadedError, match="0 requests in flight and 3 new, 2 allowed"):
        engine.submit([work] * 3, [print] * 3)
    assert engine.state().waiting == 0


def test_a_cancelled_waiting_request_never_gets_a_slot(make) -> None:
    engine = make(slots=1, max_queue=5, simulated=NEVER)
    first, second = Client(engine), Client(engine)
    running = first.ask()
    waiting = second.ask()
    waiting.cancel()
    engine.wake()
    assert second.answer()[1].finish_reason == "cancelled"
    assert not running.finished


@pytest.mark.parametrize(
    ("text", "max_tokens", "words"),
    [
        ("w " * 11, None, "the prompt has 11 tokens after the chat template; this model takes"),
        ("w " * 10, 11, "'max_tokens' must be a whole number from 1 to 10 for this prompt of 10"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_numbers(make, text, max_tokens, words) -> None:
    engine = make(max_prompt_tokens=10, max_total_tokens=20)
    with pytest.raises(RequestError, match=words):
        engine.encode((Message(role="user", content=text),), Sampling(max_tokens=max_tokens))


def test_the_default_length_is_cut_to_what_fits(make) -> None:
    engine = make(max_prompt_tokens=10, max_total_tokens=20)
    work = engine.encode((Message(role="user", content="a b c"),), Sampling())
    assert work.max_tokens == 17


def test_stopping_fails_what_is_left_and_refuses_what_comes(make) -> None:
    engine = make(simulated=NEVER)
    client = Client(engine)
    client.ask()
    engine.stop()
    assert isinstance(client.answer()[1].error, EngineError)
    with pytest.raises(EngineError, match="shutting down"):
        client.ask()


def test_an_exception_in_a_step_fails_its_jobs_and_the_engine_goes_on(make, monkeypatch) -> None:
    engine = make()
    client = Client(engine)
    advance = engine._advance

    def broken(admitted):
        monkeypatch.setattr(engine, "_advance", advance)
        raise ZeroDivisionError

    monkeypatch.setattr(engine, "_advance", broken)
    client.ask()
    assert isinstance(client.answer()[1].error, EngineError)
    client.ask(max_tokens=2)
    assert client.answer()[0] == "a b"


def test_metrics_count_each_request_once(make) -> None:
    engine = make()
    client = Client(engine)
    client.ask("a b", max_tokens=3)
    client.answer()
    _, counts, observations = engine._metrics.drain()
    assert counts["triton_hf_requests_finished_total", "length"] == 1
    assert counts["triton_hf_prompt_tokens_total", None] == 2
    assert counts["triton_hf_generation_tokens_total", None] == 3
    names = [name for name, _ in observations]
    assert names.count("triton_hf_time_to_first_token_seconds") == 1
    assert names.count("triton_hf_inter_token_seconds") == 2
    assert names.count("triton_hf_request_duration_seconds") == 1


@pytest.mark.parametrize(
    ("pieces", "stop", "shown", "stopped"),
    [
        (["ab", "cd"], ["bc"], "a", True),
        (["a", "b", "x"], ["bc"], "abx", False),
        (["x", "END"], ["END"], "x", True),
        (["aE", "N"], ["END"], "aEN", False),
        (["abab", "c"], ["abc"], "ab", True),
        (["one"], [], "one", False),
    ],
)
def test_no_part_of_a_stop_string_is_ever_shown(pieces, stop, shown, stopped) -> None:
    assembler = TextAssembler(stop)
    text = "".join(assembler.push(piece) for piece in pieces) + assembler.flush()
    assert (text, assembler.stopped) == (shown, stopped)
