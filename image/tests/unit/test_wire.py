"""The line between a model and its companion: what is merged, and what never waits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from triton_hf.models.settings import parse_settings
from triton_hf.serving import stream_server, wire


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection."""
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


def token(number: int, count: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "text": f"{count} ", "completion_tokens": count, **more}


def played(
    line: tuple[socket.socket, socket.socket], *, streams: int, pace: float, tokens: int = 40
) -> list[dict[str, Any]]:
    """Send tokens of some streams every 5 ms; return the messages as they came, with times."""
    near, far = line
    outbox = wire.Outbox(near, on_broken=lambda: None, messages_per_second=pace)
    for count in range(1, tokens + 1):
        last = {"finish_reason": "length"} if count == tokens else {}
        for number in range(streams):
            outbox.put(token(number, count, **last))
        time.sleep(0.005)
    outbox.close()
    near.shutdown(socket.SHUT_WR)
    return list(wire.read_messages(far))


def whole(messages: list[dict[str, Any]], number: int) -> str:
    return "".join(each["text"] for each in messages if each["id"] == number)


@pytest.mark.parametrize("pace", [0.0, 200.0])
def test_nothing_is_lost_and_the_order_stays(line: Any, pace: float) -> None:
    messages = played(line, streams=8, pace=pace)
    expected = "".join(f"{count} " for count in range(1, 41))
    assert [whole(messages, number) for number in range(8)] == [expected] * 8
    for number in range(8):
        counts = [each["completion_tokens"] for each in messages if each["id"] == number]
        assert counts == sorted(set(counts))
        assert counts[-1] == 40


def test_a_pace_merges_tokens_of_many_streams(line: Any) -> None:
    """40 tokens of 8 streams in 0.2 s: 320 without a pace, about 40 and 2 for each stream with."""
    assert len(played(line, streams=8, pace=200.0)) < 160


def test_without_a_pace_every_token_is_alone_however_slow_the_reader_is(line: Any) -> None:
    near, far = line
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # nothing goes while nobody reads
    outbox = wire.Outbox(near, on_broken=lambda: None)
    for count in range(1, 501):
        for number in (1, 2):
            outbox.put(token(number, count))
    read: list[dict[str, Any]] = []
    reader = threading.Thread(target=lambda: read.extend(wire.read_messages(far)))
    reader.start()
    outbox.close()
    near.shutdown(socket.SHUT_WR)
    reader.join()
    for number in (1, 2):
        counts = [each["completion_tokens"] for each in read if each["id"] == number]
        assert counts == list(range(1, 501))


def test_few_streams_send_every_token(line: Any) -> None:
    near, far = line
    far.settimeout(5)
    outbox = wire.Outbox(near, on_broken=lambda: None, messages_per_second=0.5)
    lines = far.makefile("rb")
    for count in range(1, 41):
        for number in range(wire.FEW):
            outbox.put(token(number, count))
        for _ in range(wire.FEW):
            assert f'"{count} "'.encode() in lines.readline()
    outbox.close()


def test_the_first_token_and_the_last_do_not_wait(line: Any) -> None:
    near, far = line
    far.settimeout(5)
    outbox = wire.Outbox(near, on_broken=lambda: None, messages_per_second=0.5)
    for number in range(8):
        outbox.put(token(number, 1))
    lines = far.makefile("rb")
    for _ in range(8):
        assert b'"1 "' in lines.readline()
    outbox.put(token(3, 2))  # waits: 8 messages took the next 16 s
    outbox.put(token(9, 1))  # the first of another answer
    assert b'"id": 9' in lines.readline()
    outbox.put(token(3, 3, finish_reason="stop"))
    final = lines.readline()
    assert b'"id": 3' in final
    assert b'"2 3 "' in final
    outbox.close()


def test_a_pace_ends_with_the_crowd(line: Any) -> None:
    """When the last but few answers end, what waits goes at once."""
    near, far = line
    far.settimeout(5)
    outbox = wire.Outbox(near, on_broken=lambda: None, messages_per_second=0.5)
    lines = far.makefile("rb")
    for number in range(6):
        outbox.put(token(number, 1))
    for _ in range(6):
        lines.readline()
    for number in range(2, 6):
        outbox.put(token(number, 2, finish_reason="stop"))
    for _ in range(4):
        lines.readline()
    outbox.put(token(0, 2))
    assert b'"id": 0' in lines.readline()
    outbox.close()


def test_requests_that_passed_leave_nothing_behind(line: Any) -> None:
    near, far = line
    outbox = wire.Outbox(near, on_broken=lambda: None)
    for number in range(1000):
        outbox.put({"id": number})
    outbox.close()
    near.shutdown(socket.SHUT_WR)
    assert len(list(wire.read_messages(far))) == 1000
    assert (outbox._open, outbox._urgent, outbox._pending) == (set(), set(), {})


def test_a_message_that_cannot_be_written_breaks_the_line_loudly(line: Any, capsys) -> None:
    broken = threading.Event()
    outbox = wire.Outbox(line[0], on_broken=broken.set)
    outbox.put({"id": 1, "text": b"bytes"})
    assert broken.wait(30)
    outbox.close()
    assert "TypeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parameters", "events"),
    [
        ({"repo_id": "a/b"}, stream_server.EVENTS_PER_CORE),
        ({"repo_id": "a/b", "stream_events": "0"}, 0),
        ({"repo_id": "a/b", "stream_events": "50"}, 50),
        ({"engine": "simulated"}, 0),
    ],
)
def test_the_limit_follows_the_cores_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str], events: float
) -> None:
    monkeypatch.setattr(stream_server, "usable_cores", lambda: 1)
    assert stream_server.events_per_second(parse_settings(parameters)) == events
