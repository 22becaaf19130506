"""The engine's promises: order, slots, queue, cancellation, faults, metrics."""

from __future__ import annotations

import collections
import dataclasses
import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lib.triton_client import eventually
from triton_hf import health
from triton_hf.contract import Message, Sampling
from triton_hf.engines.base import FAULTS_BEFORE_PROOF
from triton_hf.engines.simulated_engine import SimulatedEngine
from triton_hf.engines.text import TextEvent, TextJob
from triton_hf.engines.tokens import TextAssembler
from triton_hf.errors import EngineError, EngineStoppedError, OverloadedError, RequestError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings, SimulatedSettings

FAST = SimulatedSettings(time_to_first_token=0.001, inter_token=0.001)
NEVER = SimulatedSettings(time_to_first_token=3600)


class Client:
    """Collects the events of its jobs."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self.engine = engine
        self.events: queue.Queue[TextEvent] = queue.Queue()

    def ask(self, text: str = "a b c", **sampling: object) -> TextJob:
        return submit(self.engine, self.events.put, text=text, **sampling)

    def answer(self) -> tuple[str, TextEvent]:
        text = ""
        while True:
            event = self.events.get(timeout=30)
            text += event.text
            if event.last:
                return text, event


def submit(
    engine: SimulatedEngine,
    listener: Callable[[TextEvent], None],
    late: float = 0.0,
    text: str = "a b c",
    **sampling: object,
) -> TextJob:
    values = Sampling(**sampling)  # type: ignore[arg-type]
    work = engine.encode((Message(role="user", content=text),), values)
    return engine.submit([work], [listener], arrived=time.monotonic() - late)[0]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[object]:
    engines = []

    def build(on_death: Callable[[str], None] | None = None, **settings: object) -> SimulatedEngine:
        values = {"engine": "simulated", "simulated": FAST, **settings}
        engine = SimulatedEngine(
            settings=ModelSettings(**values),  # type: ignore[arg-type]
            metrics=Metrics(),
            heartbeat=Heartbeat(tmp_path / f"{len(engines)}.json"),
            on_death=on_death,
        )
        engine.start()
        engines.append(engine)
        return engine

    yield build
    for engine in engines:
        engine.stop()


def test_what_no_request_waits_for_is_done_while_there_is_none(make, monkeypatch) -> None:
    asked: list[int] = []

    def prepare(engine: SimulatedEngine) -> bool:
        asked.append(engine.state().running)
        return len(asked) < 50

    monkeypatch.setattr(SimulatedEngine, "_prepare", prepare)
    engine = make()
    client = Client(engine)
    client.ask()
    assert client.answer()[1].finish_reason == "length"
    # By the clock of an idle engine alone it would take 25 seconds.
    eventually(lambda: len(asked) >= 50, seconds=10)
    assert set(asked) == {0}


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
    engine = make(slots=1, max_queue=2, simulated=NEVER)
    Client(engine).ask()
    work = engine.encode((Message(role="user", content="x"),), Sampling())
    with pytest.raises(OverloadedError, match="1 requests in flight and 3 new, 3 allowed"):
        engine.submit([work] * 3, [print] * 3)
    eventually(lambda: engine.state().running == 1)
    assert engine.state().waiting == 0


def test_a_request_that_can_never_fit_is_the_clients_to_change(make) -> None:
    engine = make(slots=1, max_queue=1, simulated=NEVER)
    work = engine.encode((Message(role="user", content="x"),), Sampling())
    with pytest.raises(RequestError, match="3 rows, but this model holds at most 2 at a time"):
        engine.submit([work] * 3, [print] * 3)
    _, counts, _ = engine._metrics.drain()
    assert ("triton_hf_requests_rejected_total", "queue_full") not in counts


def test_a_long_queue_costs_a_step_no_more_than_a_short_one(make) -> None:
    engine = make(slots=1, max_queue=100_000, max_queue_seconds=3600.0, simulated=NEVER)
    work = engine.encode((Message(role="user", content="x"),), Sampling())
    walks: list[int] = []

    class Counting(collections.OrderedDict):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            walks.append(1)
            return super().__iter__()

        def values(self) -> Any:
            walks.append(1)
            return super().values()

    engine._waiting = Counting()
    jobs = [
        job for _ in range(50) for job in engine.submit([work] * 1000, [lambda event: None] * 1000)
    ]
    eventually(lambda: engine.state().running == 1)
    for job in jobs[40_000:40_100]:
        job.cancel()
    engine.wake()
    eventually(lambda: all(job.finished for job in jobs[40_000:40_100]))
    assert walks == []
    assert engine.state().waiting == 50_000 - 1 - 100
    engine._waiting = collections.OrderedDict(engine._waiting)


def test_the_heart_beats_while_there_is_progress_and_while_there_is_nothing_to_do(
    make, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(health, "BEAT_SECONDS", 0.0)
    engine = make()

    def beat() -> float:
        return float(json.loads((tmp_path / "0.json").read_text())["monotonic"])

    idle = beat()
    eventually(lambda: beat() > idle)
    moves = threading.Event()
    advance = engine._advance
    monkeypatch.setattr(
        engine, "_advance", lambda jobs: advance(jobs) if moves.is_set() else time.sleep(0.01)
    )
    client = Client(engine)
    client.ask(max_tokens=500)
    eventually(lambda: json.loads((tmp_path / "0.json").read_text())["running"] == 1)
    stuck = beat()
    time.sleep(0.3)  # thirty turns of the loop, none of which got anywhere
    assert beat() == stuck
    moves.set()
    eventually(lambda: beat() > stuck)


def test_an_engine_that_finds_itself_broken_while_idle_says_so(make, monkeypatch) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    engine = make(on_death=deaths.put)
    monkeypatch.setattr(engine, "_look", always(RuntimeError("the core has died")))
    assert "the core has died" in deaths.get(timeout=30)


def test_an_engine_is_told_of_every_job_that_leaves(make, monkeypatch) -> None:
    engine = make(slots=1, max_queue=5, max_queue_seconds=0.2)
    dropped: list[int] = []
    monkeypatch.setattr(engine, "_dropped", lambda job: dropped.append(job.number))
    monkeypatch.setattr(engine, "settings", dataclasses.replace(engine.settings, simulated=NEVER))
    client = Client(engine)
    jobs = [client.ask() for _ in range(3)]
    jobs[0].cancel()
    jobs[1].cancel()
    engine.wake()
    jobs.append(client.ask())
    eventually(lambda: jobs[3].finished)  # refused: the third one keeps the slot
    engine.stop()
    assert sorted(dropped) == [job.number for job in jobs]


def test_several_tokens_at_once_count_as_so_many(make) -> None:
    engine = make(simulated=NEVER)
    client = Client(engine)
    job = client.ask(max_tokens=5)
    eventually(lambda: engine.state().running == 1)
    engine._emit(job, "a b ", tokens=2)
    engine._emit(job, "c d e", tokens=3)
    text, last = client.answer()
    assert (text, last.completion_tokens, last.finish_reason) == ("a b c d e", 5, "length")
    _, counts, seen = engine._metrics.drain()
    assert counts["triton_hf_generation_tokens_total", None] == 5
    assert [name for name, _ in seen].count("triton_hf_inter_token_seconds") == 3


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
    assert isinstance(client.answer()[1].error, EngineStoppedError)
    with pytest.raises(EngineStoppedError, match="shutting down"):
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


def always(error: BaseException) -> Callable[..., Any]:
    def raising(*_: object) -> Any:
        raise error

    return raising


def test_a_listener_that_raises_loses_its_own_request_only(make) -> None:
    engine = make(slots=4)
    client = Client(engine)
    heard: list[TextEvent] = []

    def deaf(event: TextEvent) -> None:
        heard.append(event)
        if not event.last:
            raise BrokenPipeError

    for listener in (always(BrokenPipeError()), deaf):
        submit(engine, listener, max_tokens=20)
    cut = submit(engine, always(MemoryError()), max_tokens=1000)
    cut.cancel()
    client.ask("a b c", max_tokens=30)
    assert client.answer()[0] == " ".join(["a b c"] * 10)
    assert "could not pass on" in str(heard[-1].error)
    assert len(heard) == 2
    eventually(lambda: engine.state().running == 0)
    client.ask(max_tokens=2)
    assert client.answer()[0] == "a b"


def test_a_request_that_fails_again_and_again_never_ends_the_engine(make, monkeypatch) -> None:
    deaths: list[str] = []
    engine = make(on_death=deaths.append)
    client = Client(engine)
    advance = engine._advance

    def poisoned(admitted: Sequence[TextJob]) -> bool:
        if any(job.work.conversation[-1].content == "poison" for job in engine._running):
            raise ZeroDivisionError
        return advance(admitted)

    monkeypatch.setattr(engine, "_advance", poisoned)
    for _ in range(5 * FAULTS_BEFORE_PROOF):
        client.ask("poison")
        assert "the engine failed on this request" in str(client.answer()[1].error)
    client.ask(max_tokens=2)
    assert client.answer()[0] == "a b"
    assert deaths == []


def test_an_engine_that_cannot_go_on_fails_all_requests_refuses_new_ones_and_says_why(
    make, monkeypatch, tmp_path
) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    engine = make(on_death=deaths.put, slots=1, max_queue=20)
    clients = [Client(engine) for _ in range(10)]
    sticky = RuntimeError("CUDA error: an illegal memory access\nand more lines")
    ready = threading.Event()
    monkeypatch.setattr(engine, "_prove", always(sticky))
    monkeypatch.setattr(engine, "_advance", lambda _: (ready.wait(30), always(sticky)()))
    for client in clients:
        client.ask()
    ready.set()
    reason = deaths.get(timeout=30)
    assert "3 faults without a token" in reason
    assert reason.endswith("RuntimeError: CUDA error: an illegal memory access")
    errors = [client.answer()[1].error for client in clients]
    assert [type(error) for error in errors[:FAULTS_BEFORE_PROOF]] == [EngineError] * 3
    assert {str(error) for error in errors[FAULTS_BEFORE_PROOF:]} == {reason}
    assert {type(error) for error in errors[FAULTS_BEFORE_PROOF:]} == {EngineStoppedError}
    with pytest.raises(EngineStoppedError, match="CUDA error"):
        clients[0].ask()
    beat = json.loads((tmp_path / "0.json").read_text())
    assert (beat["state"], beat["reason"]) == ("failed", reason)
    state = engine.state()
    assert (state.running, state.waiting) == (0, 0)
    engine.stop()
    assert deaths.empty()


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError(), KeyboardInterrupt()])
def test_an_engine_whose_thread_ends_says_so_whatever_ended_it(make, monkeypatch, error) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    engine = make(on_death=deaths.put)
    monkeypatch.setattr(engine, "_wait_for_work", always(error))
    assert type(error).__name__ in deaths.get(timeout=30)
    with pytest.raises(EngineStoppedError, match="the engine has ended"):
        Client(engine).ask()


def test_housekeeping_that_fails_for_ever_ends_the_engine_and_once_only_its_requests(
    make, monkeypatch
) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    engine = make(on_death=deaths.put)
    client = Client(engine)
    sweep = engine._sweep

    def broken_once() -> None:
        monkeypatch.setattr(engine, "_sweep", sweep)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "_sweep", broken_once)
    eventually(lambda: engine._sweep == sweep)
    client.ask(max_tokens=2)
    assert client.answer()[0] == "a b"
    monkeypatch.setattr(engine, "_sweep", always(OSError(28, "No space left on device")))
    assert "No space left on device" in deaths.get(timeout=30)


def test_a_request_that_waits_too_long_is_refused_and_told_when_to_come_again(make) -> None:
    slow = SimulatedSettings(time_to_first_token=3600)
    engine = make(slots=1, max_queue=5, max_queue_seconds=0.05, simulated=slow)
    engine._note_answer(20.0)
    running, waiting = Client(engine), [Client(engine) for _ in range(2)]
    running.ask()
    for client in waiting:
        client.ask()
    errors = [client.answer()[1].error for client in waiting]
    assert {type(error) for error in errors} == {OverloadedError}
    assert str(errors[0]).startswith("no slot became free within 0.05 s ('max_queue_seconds')")
    assert str(errors[0]).endswith(("try again in 40 s", "try again in 20 s"))
    assert engine.state().running == 1
    _, counts, _ = engine._metrics.drain()
    assert counts["triton_hf_requests_rejected_total", "queue_deadline"] == 2


def test_the_rows_of_a_request_that_was_begun_have_no_deadline(make) -> None:
    slow = SimulatedSettings(time_to_first_token=0.1, inter_token=0.001)
    engine = make(slots=1, max_queue=9, max_queue_seconds=0.05, simulated=slow)
    events: queue.Queue[TextEvent] = queue.Queue()
    values = Sampling(max_tokens=1)
    work = engine.encode((Message(role="user", content="a"),), values)
    engine.submit([work] * 4, [events.put] * 4)
    other = Client(engine)
    other.ask(max_tokens=1)
    assert isinstance(other.answer()[1].error, OverloadedError)
    assert [events.get(timeout=30).finish_reason for _ in range(4)] == ["length"] * 4


def test_without_a_deadline_a_request_waits_for_ever(make, monkeypatch) -> None:
    engine = make(slots=1, max_queue=1, max_queue_seconds=0.0, simulated=NEVER)
    first, second = Client(engine), Client(engine)
    running, waiting = first.ask(), second.ask()
    waiting.submitted -= 1e6
    engine.wake()
    running.cancel()
    engine.wake()
    assert first.answer()[1].finish_reason == "cancelled"
    eventually(lambda: engine.state().running == 1)
    assert second.events.empty()


def test_a_full_queue_says_after_how_long_a_slot_was_free_lately(make) -> None:
    engine = make(slots=2, max_queue=0, simulated=NEVER)
    client = Client(engine)
    for _ in range(2):
        client.ask()
    with pytest.raises(OverloadedError, match="2 allowed; try again in 1 s"):
        client.ask()
    engine._note_answer(9.0)
    with pytest.raises(OverloadedError, match="try again in 5 s"):
        client.ask()


def test_every_request_is_counted_once_whatever_becomes_of_it(make, monkeypatch) -> None:
    engine = make(slots=4, max_queue=20, max_queue_seconds=0.05)
    numbers = random.Random(3)
    advance = engine._advance
    steps: list[int] = []
    opened = threading.Event()

    def faulty(admitted: Sequence[TextJob]) -> bool:
        opened.wait()
        steps.append(1)
        if len(steps) % 40 == 0:
            raise ZeroDivisionError
        return advance(admitted)

    monkeypatch.setattr(engine, "_advance", faulty)
    jobs, refused = [], 0
    for number in range(600):
        if number == 30:  # none has moved until now: the queue is full, and three are late
            opened.set()
        listener = always(BrokenPipeError()) if numbers.random() < 0.1 else lambda event: None
        try:
            late = 60.0 if number in (10, 11, 12) else 0.0
            jobs.append(submit(engine, listener, late, max_tokens=numbers.randint(1, 30)))
        except OverloadedError:
            refused += 1
            if refused % 20 == 0:
                eventually(lambda: engine.state().waiting == 0)
        if jobs and numbers.random() < 0.2:
            numbers.choice(jobs[-10:]).cancel()
    eventually(lambda: all(job.finished for job in jobs))
    _, counts, observations = engine._metrics.drain()

    def count(name: str, label: str | None = None) -> float:
        return counts.get((f"triton_hf_{name}_total", label), 0)

    finished = count("requests_finished", "length")
    cancelled, failed = count("requests_cancelled"), count("requests_failed")
    full, late = (count("requests_rejected", each) for each in ("queue_full", "queue_deadline"))
    assert min(finished, cancelled, failed, full, late) > 0, counts
    assert finished + cancelled + failed + late == len(jobs)
    assert full == refused
    assert count("generation_tokens") == sum(job.completion_tokens for job in jobs)
    assert count("prompt_tokens") == sum(job.work.prompt_tokens for job in jobs)
    names = [name for name, _ in observations]
    assert names.count("triton_hf_request_duration_seconds") == finished
    assert names.count("triton_hf_queue_seconds") == sum(job.admitted is not None for job in jobs)
    state = engine.state()
    assert (state.running, state.waiting, state.kv_usage) == (0, 0, 0.0)


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
