"""The pure parts of the benchmark of peers: prompts, verification, numbers and tables."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from benchmarks.engine.systems import machine
from benchmarks.engine.systems.base import Answer, Prompt, UnavailableError
from benchmarks.engine.systems.environments import run
from benchmarks.engine.systems.http_client import ask_all
from benchmarks.engine.systems.limits import Limits
from benchmarks.engine.systems.measure import (
    FailedError,
    Run,
    Shape,
    check,
    measure,
    requests,
    summary,
)
from benchmarks.engine.systems.prompts import make_prompts
from benchmarks.engine.systems.report import OURS, Row, document, draw, ratio, speed_table
from benchmarks.engine.systems.worker import running_worker

# 240 MB of weights, of which a fifth is the last layer; 125 tokens/s for one client.
LIMITS = Limits(
    parameters=120_000_000, last_layer=24_000_000, bandwidth=[20e9, 30e9], products=[86.4e9, 40e9]
)
PROMPT = Prompt(system="a", user="b", ids=(1, 2, 3))


def whole(start: float, *times: float, prompt: int | None = None) -> Answer:
    events = tuple((time, count + 1) for count, time in enumerate(times))
    return Answer(start=start, events=events, prompt_tokens=prompt)


def runs(*speeds: float) -> list[Run]:
    return [
        Run(tokens_per_second=s, first_token_p50=0.1, inter_token_p50=0.01, inter_token_p99=0.02)
        for s in speeds
    ]


def row(name: str, *speeds: float, precision: str = "bf16") -> Row:
    made = Row(name=name, precision=precision, settings="some", starts=[2.0])
    made.cells = {"64/64": {1: runs(*speeds)}} if speeds else {}
    return made


def test_a_prompt_has_exactly_its_length_and_no_two_begin_alike() -> None:
    def encode(system: str, user: str) -> tuple[int, ...]:
        return tuple(range(7)) + tuple(hash(word) for word in [*system.split(), *user.split()])

    prompts = make_prompts(encode, 20, length=64, seed="x")
    assert {len(prompt.ids) for prompt in prompts} == {64}
    assert len({prompt.system for prompt in prompts}) == 20


def test_a_prompt_shorter_than_its_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="template takes 40"):
        make_prompts(lambda system, user: tuple(range(40)), 1, length=20, seed="x")


def test_an_answer_with_fewer_tokens_fails_the_run() -> None:
    with pytest.raises(FailedError, match="2 tokens instead of 3"):
        check([whole(0.0, 0.1, 0.2)], [PROMPT], tokens=3)


def test_an_answer_without_tokens_fails_the_run() -> None:
    with pytest.raises(FailedError, match="0 tokens instead of 1"):
        check([Answer(start=0.0)], [PROMPT], tokens=1)


def test_a_fault_fails_the_run_with_its_text() -> None:
    with pytest.raises(FailedError, match="refused"):
        check([Answer(start=0.0, fault="refused")], [PROMPT], tokens=1)


def test_a_prompt_of_another_length_fails_the_run() -> None:
    with pytest.raises(FailedError, match="3 tokens was read as 40"):
        check([whole(0.0, 0.1, prompt=40)], [PROMPT], tokens=1)


def test_a_run_lasts_from_the_first_request_to_the_last_token() -> None:
    found = summary([whole(10.0, 11.0, 12.0), whole(10.5, 12.0, 14.0)], tokens=2)
    assert found.tokens_per_second == 4 / 4.0
    assert found.first_token_p50 == 1.25
    assert found.inter_token_p50 == 1.5


def test_whole_answers_have_no_time_between_tokens() -> None:
    found = summary([Answer(start=0.0, events=((2.0, 64),))], tokens=64)
    assert (found.tokens_per_second, found.inter_token_p50) == (32.0, None)


def test_one_client_is_held_to_the_memory_as_it_was_around_it() -> None:
    near = row("ours", 100.0)
    near.bandwidth = [12e9, 24e9, 48e9]
    lines = speed_table([near, row("peer", 100.0)], "64/64", limits=LIMITS).splitlines()
    assert [line.split(" | ")[-2] for line in lines[2:]] == ["100%", "80%"]


def test_a_serial_system_gets_few_requests_and_every_client_several() -> None:
    assert [requests(c, serial=False) for c in (1, 4, 32)] == [4, 16, 128]
    assert requests(32, serial=True) == 2


def test_something_can_be_done_between_the_runs_and_around_them() -> None:
    noted: list[str] = []

    class Noted:
        session = 0

        def ask(self, prompts, *, tokens: int, clients: int) -> list[Answer]:
            noted.append("run")
            return [whole(0.0, 1.0) for _ in prompts]

    measure(
        Noted(),
        lambda count, length, seed: [PROMPT] * count,
        Shape(prompt=3, answer=1),
        clients=1,
        serial=False,
        runs=2,
        seconds=60.0,
        between=lambda: noted.append("between"),
    )
    assert noted == ["between", "run", "between", "run", "between"]


def test_no_repeat_begins_after_the_seconds_of_a_cell() -> None:
    class Instant:
        session = 0

        def ask(self, prompts, *, tokens: int, clients: int) -> list[Answer]:
            return [whole(0.0, 1.0) for _ in prompts]

    def measured(seconds: float) -> int:
        shape = Shape.parse("3/1")
        found = measure(
            Instant(),
            lambda count, length, seed: [PROMPT] * count,
            shape,
            clients=1,
            serial=False,
            runs=3,
            seconds=seconds,
        )
        return len(found)

    assert (measured(60), measured(-1)) == (3, 1)


def test_a_ratio_is_that_of_the_medians_and_missing_without_a_peer() -> None:
    assert ratio(runs(90, 100, 300), runs(40, 50, 60)) == 2.0
    assert ratio(runs(100), None) is None


def test_the_table_says_median_spread_ratio_and_share_of_the_limit() -> None:
    table = speed_table([row(OURS, 90, 100, 110), row("peer", 50)], "64/64", limits=LIMITS)
    assert "| ours, infer | bf16 | 100 (90 to 110) | 80% | 50% |" in table
    assert "| peer | bf16 | 50 (50 to 50) x2.00 | 40% | 25% |" in table


def test_other_precisions_have_no_share_of_the_limit_of_bf16() -> None:
    table = speed_table([row("peer", 50, precision="q8_0")], "64/64", limits=LIMITS)
    assert table.endswith("| 50 (50 to 50) | - | - |")


def test_a_system_that_failed_is_a_line_that_says_why() -> None:
    failed = row("peer")
    failed.fault = "it did not start"
    text = document([row(OURS, 100), failed], limits=LIMITS)
    assert "- peer: it did not start" in text
    assert "104 tokens/s, from the median of 2 sweeps (25.0 GB/s; 20.0 to 30.0)" in text


def test_many_clients_are_bounded_by_the_products_of_prompt_and_answer() -> None:
    assert LIMITS.arithmetic(Shape.parse("64/64")) == pytest.approx(86.4e9 / 432e6)
    assert LIMITS.arithmetic(Shape.parse("0/64")) == pytest.approx(86.4e9 / 240e6)


def test_the_machine_multiplies_at_some_rate(monkeypatch) -> None:
    monkeypatch.setattr(machine, "PRODUCT_SIZE", 64)
    rates = machine.multiply_rates(threads=1)
    assert len(rates) == machine.PRODUCTS
    assert min(rates) > 0


def test_the_plot_is_drawn_with_systems_that_have_no_numbers(tmp_path: Path) -> None:
    draw([row(OURS, 100), row("peer")], tmp_path / "plot.png", limits=LIMITS)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_command_that_fails_gives_the_line_of_its_error() -> None:
    script = "import sys; sys.exit('ERROR: no such package')"
    with pytest.raises(UnavailableError, match="pip failed: ERROR: no such package"):
        run([sys.executable, "-c", script], "pip")


def test_a_worker_that_dies_says_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no memory')"]
    with (
        pytest.raises(UnavailableError, match="no memory"),
        running_worker(command, folder=tmp_path),
    ):
        pass


def test_a_stream_is_read_across_chunks_that_break_its_lines() -> None:
    events = [
        b'data: {"tokens_predicted":1,"tokens_evaluated":3}\n\nda',
        b'ta: {"tokens_predicted":2}\n\n',
        b"data: [DONE]\n\n",
    ]
    answers = _asked(events)
    assert [count for _, count in answers[0].events] == [1, 2]
    assert (answers[0].prompt_tokens, answers[0].fault) == (3, "")


def test_an_error_inside_a_stream_is_a_fault() -> None:
    assert "overloaded" in _asked([b'data: {"error":"overloaded"}\n\n'])[0].fault


def _asked(parts: list[bytes]) -> list[Answer]:
    """What the client makes of a server that sends these chunks."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + chunks)
        await writer.drain()
        writer.close()

    async def both() -> list[Answer]:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await asyncio.to_thread(
                ask_all, port, lambda prompt, tokens: ("/x", {}), [PROMPT], tokens=2, clients=1
            )

    return asyncio.run(both())
