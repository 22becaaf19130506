"""The adapters' threads: a fault of one client ends none of them."""

from __future__ import annotations

import importlib
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from triton_hf.responder import Responder
from triton_hf.runtime import socket_path

FINAL = 1


class Client:
    """The response sender of one request, and what came over it."""

    def __init__(self, *, broken: bool = False) -> None:
        self.left = threading.Event()
        self.asked = threading.Event()
        self.got: queue.Queue[tuple[Any, int]] = queue.Queue()
        self.responder = Responder(self, final=FINAL)
        self._broken = broken

    def send(self, response: Any, flags: int) -> None:
        if self._broken:
            raise RuntimeError("nobody there")
        self.got.put((response, flags))

    def is_cancelled(self) -> bool:
        self.asked.set()
        if self._broken:
            raise RuntimeError("cannot be asked")
        return self.left.is_set()


@pytest.fixture(scope="module")
def adapters() -> Iterator[SimpleNamespace]:
    """The modules `adapter` and `stream_adapter`, with a stand-in for Triton's own module."""
    triton = ModuleType("triton_python_backend_utils")

    class TritonError:
        UNAVAILABLE, INTERNAL, INVALID_ARG = "unavailable", "internal", "invalid"

        def __init__(self, text: str, code: str) -> None:
            self.text, self.code = text, code

    triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    triton.TritonError = TritonError  # type: ignore[attr-defined]
    triton.Tensor = lambda name, rows: (name, rows.tolist())  # type: ignore[attr-defined]
    triton.InferenceResponse = (  # type: ignore[attr-defined]
        lambda output_tensors, error=None: error or output_tensors
    )
    names = ("triton_hf.adapter", "triton_hf.stream_adapter")
    sys.modules[triton.__name__] = triton
    try:
        whole, stream = (importlib.import_module(name) for name in names)
        yield SimpleNamespace(whole=whole, stream=stream, error=TritonError)
    finally:
        for name in (triton.__name__, *names):
            sys.modules.pop(name, None)


def job(*, finished: bool = False) -> Any:
    return SimpleNamespace(finished=finished)


def test_a_client_that_cannot_be_asked_for_hides_no_other_one(adapters, capsys) -> None:
    cancelled: queue.Queue[Any] = queue.Queue()
    watch = adapters.whole.CancelWatch(cancelled.put)
    broken, other, mine = Client(broken=True), Client(), [job()]
    watch.add("broken", broken.responder, [job()])
    watch.add("other", other.responder, mine)
    assert broken.asked.wait(30)
    other.left.set()
    assert cancelled.get(timeout=30) is mine
    watch.stop()
    assert capsys.readouterr().err.count("RuntimeError: cannot be asked") == 1


def test_an_answer_that_cannot_be_made_is_an_error_and_the_last_word(adapters) -> None:
    client = Client()
    adapters.whole.answer(client.responder, lambda: 1 / 0, last=False)
    error, flags = client.got.get_nowait()
    assert (error.code, flags) == ("internal", FINAL)
    adapters.whole.answer(client.responder, lambda: "more", last=True)
    assert client.got.empty()


def test_a_client_that_cannot_be_answered_stops_no_other_answers(adapters) -> None:
    replies, good = adapters.whole._Replies(), Client()
    replies.put(Client(broken=True).responder, [])
    replies.put(good.responder, "no answers at all")
    replies.stop()
    assert good.got.get_nowait()[0].code == "internal"
    sender = adapters.stream._Sender()
    token = {"text": "a", "prompt_tokens": 1, "completion_tokens": 1}
    sender.put(Client(broken=True).responder, {"id": 1, **token})
    sender.put(good.responder, {"id": 2})
    other = Client()
    sender.put(other.responder, {"id": 3, **token, "finish_reason": "stop"})
    sender.stop()
    assert other.got.get_nowait()[1] == FINAL


@pytest.mark.parametrize(
    ("asking", "pause"), [(0.0, 0.05), (0.002, 0.05), (0.005, 0.1), (1.0, 0.2)]
)
def test_clients_are_asked_for_often_while_that_costs_little(adapters, asking, pause) -> None:
    assert adapters.whole.until_next_poll(asking) == pytest.approx(pause)


@pytest.mark.parametrize("words", [b"no json\n", b'{"no": "id"}\n', b""])
def test_a_line_to_the_model_that_breaks_ends_its_streams_with_an_error(
    adapters, monkeypatch, tmp_path: Path, words: bytes
) -> None:
    monkeypatch.setenv("TRITON_HF_RUNTIME_DIR", str(tmp_path))
    path = socket_path("m")
    path.parent.mkdir(parents=True)
    client, senders = Client(), [adapters.stream._Sender()]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        link = adapters.stream._Link(model="m", senders=senders)
        connection, _ = listener.accept()
        with connection:
            link.submit({"id": 0}, client.responder)
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            error, flags = client.got.get(timeout=30)
    assert (error.code, flags) == ("unavailable", FINAL)
    assert "stopped while it was answering" in error.text
    assert link.broken
    link.close()
    senders[0].stop()
