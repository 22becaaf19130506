"""Connections of a companion that cannot be served end, and answers do not get lost in a drain."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_hf.serving import stream_server
from triton_hf.serving.stream_server import StreamServer


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "streams.sock"
    monkeypatch.setattr(stream_server, "socket_path", lambda model: place)
    monkeypatch.setattr(stream_server, "ACCEPT_PAUSE_SECONDS", 0.01)
    return place


class Nobody:
    """A service that takes no requests."""


def connect(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.settimeout(30)
    made.connect(str(path))
    return made


@pytest.mark.parametrize("refused", ["stream-read", "outbox"])
def test_without_a_thread_for_it_a_connection_ends_and_the_next_is_served(
    path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    start, left = threading.Thread.start, [1]

    def limited(thread: threading.Thread) -> None:
        if thread.name == refused and left:
            left.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    server = StreamServer(model="m", service=Nobody())  # type: ignore[arg-type]
    server.start()
    with connect(path) as first:
        assert first.recv(1) == b""
    with connect(path) as second:
        second.sendall(b'{"id": 1, "inputs": 1, "stream": true, "parameters": {}}\n')
        assert b"the server failed on this request" in second.recv(1000)
        server.stop()
        assert second.recv(1) == b""


def test_a_drain_waits_until_the_last_message_was_put() -> None:
    near, far = socket.socketpair()
    session = stream_server._Session(near, Nobody(), 0.0)  # type: ignore[arg-type]
    session._tickets[1] = SimpleNamespace(cancel=lambda: None)  # type: ignore[assignment]
    put, states = session._outbox.put, []

    def slow(message: dict[str, Any]) -> None:
        states.append(session.busy)
        time.sleep(0.05)
        put(message)

    session._outbox.put = slow  # type: ignore[method-assign]
    session._send({"id": 1, "finish_reason": "stop"})
    assert (states, session.busy) == ([True], False)
    session.close()
    assert b'"stop"' in far.recv(1000)
    near.close()
    far.close()


def test_a_drain_takes_no_new_requests_and_so_it_ends(path: Path) -> None:
    server = StreamServer(model="m", service=Nobody())  # type: ignore[arg-type]
    server.start()
    with connect(path) as made:
        made.sendall(b'{"id": -1, "cancel": {"id": 0}}\n')
        while not server._sessions:
            time.sleep(0.01)
        session = next(iter(server._sessions))
        session._tickets[1] = SimpleNamespace(cancel=lambda: None)  # type: ignore[assignment]
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        while not session._refuses:
            time.sleep(0.01)
        made.sendall(b'{"id": 2, "inputs": {}, "stream": true, "parameters": ""}\n')
        assert b"the model is shutting down" in made.recv(1000)
        session._send({"id": 1, "finish_reason": "stop"})
        stopping.join(30)
        assert not stopping.is_alive()
