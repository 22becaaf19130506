"""The adapters' threads: a fault of one client ends none of them."""

from __future__ import annotations

import importlib
import json
import queue
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from triton_hf.backend.clients import CancelWatch, Responder, until_next_poll
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
    """The modules of `backend` that see Triton, with a stand-in for Triton's module."""
    triton = ModuleType("triton_python_backend_utils")

    class TritonError:
        UNAVAILABLE, INTERNAL, INVALID_ARG = "unavailable", "internal", "invalid"

        def __init__(self, text: str, code: str) -> None:
            self.text, self.code = text, code

    triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    triton.TritonError = TritonError  # type: ignore[attr-defined]
    triton.TritonModelException = RuntimeError  # type: ignore[attr-defined]
    triton.Tensor = lambda name, rows: (name, rows.tolist())  # type: ignore[attr-defined]
    triton.InferenceResponse = (  # type: ignore[attr-defined]
        lambda output_tensors, error=None: error or output_tensors
    )
    parts = ("tensors", "served_model", "text_model", "stream_model")
    names = tuple(f"triton_hf.backend.{part}" for part in parts)
    sys.modules[triton.__name__] = triton
    try:
        tensors, served, whole, stream = (importlib.import_module(name) for name in names)
        yield SimpleNamespace(
            tensors=tensors, served=served, whole=whole, stream=stream, error=TritonError
        )
    finally:
        for name in (triton.__name__, *names):
            sys.modules.pop(name, None)


def ticket(cancelled: queue.Queue[str], name: str) -> Any:
    return SimpleNamespace(finished=False, cancel=lambda: cancelled.put(name))


def test_a_client_that_cannot_be_asked_for_hides_no_other_one(capsys) -> None:
    cancelled: queue.Queue[str] = queue.Queue()
    watch = CancelWatch()
    broken, other = Client(broken=True), Client()
    watch.add("broken", broken.responder, ticket(cancelled, "broken"))
    watch.add("other", other.responder, ticket(cancelled, "other"))
    assert broken.asked.wait(30)
    other.left.set()
    assert cancelled.get(timeout=30) == "other"
    watch.stop()
    assert cancelled.empty()
    assert capsys.readouterr().err.count("RuntimeError: cannot be asked") == 1


def test_an_answer_that_cannot_be_made_is_an_error_and_the_last_word(adapters) -> None:
    client = Client()
    adapters.tensors.answer(client.responder, lambda: 1 / 0, last=False)
    error, flags = client.got.get_nowait()
    assert (error.code, flags) == ("internal", FINAL)
    adapters.tensors.answer(client.responder, lambda: "more", last=True)
    assert client.got.empty()


def test_a_client_that_cannot_be_answered_stops_no_other_answers(adapters) -> None:
    replies, good = adapters.served.Replies(adapters.tensors.text_response), Client()
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
    ("flag", "texts"), [({}, ["abc"]), ({"alone": True}, ["a", "b", "c"])], ids=["merged", "alone"]
)
def test_tokens_that_wait_for_triton_are_merged_unless_each_shall_be_alone(
    adapters, flag, texts
) -> None:
    held = threading.Event()

    class Slow(Client):
        def send(self, response: Any, flags: int) -> None:
            held.wait(30)

    client, sender = Client(), adapters.stream._Sender()
    token = {"id": 1, "prompt_tokens": 1, "completion_tokens": 1, **flag}
    sender.put(Slow().responder, {**token, "id": 2, "text": "x"})
    for text in ("a", "b"):
        sender.put(client.responder, {**token, "text": text})
    sender.put(client.responder, {**token, "text": "c", "finish_reason": "stop"})
    held.set()
    sender.stop()
    got = [client.got.get_nowait() for _ in texts]
    assert client.got.empty()
    assert [dict(response)["text_output"] for response, _ in got] == [
        [[text.encode()]] for text in texts
    ]
    assert [flags for _, flags in got][-1] == FINAL


@pytest.mark.parametrize(
    ("asking", "pause"), [(0.0, 0.05), (0.002, 0.05), (0.005, 0.1), (1.0, 0.2)]
)
def test_clients_are_asked_for_often_while_that_costs_little(asking, pause) -> None:
    assert until_next_poll(asking) == pytest.approx(pause)


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


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "lacks the package 'torch'"),
        (MemoryError(), "there is not enough memory to load it: MemoryError"),
        (OutOfMemoryError("CUDA out of memory\nmore"), "there is not enough memory to load it"),
        (ZeroDivisionError("by zero\nmore"), "it cannot be loaded: ZeroDivisionError: by zero"),
    ],
)
def test_whatever_goes_wrong_in_a_load_is_one_sentence_in_the_termination_message(
    adapters, monkeypatch, tmp_path: Path, error: Exception, words: str
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(adapters.served, "load_class", broken)
    config = {"parameters": {"engine": {"string_value": "simulated"}}}
    arguments = {"model_name": "m", "model_config": json.dumps(config)}
    with pytest.raises(RuntimeError, match=words):
        adapters.whole.TextModel().initialize(arguments)
    said = (tmp_path / "log").read_text().splitlines()
    assert len(said) == 1
    assert words in said[0]


def test_an_abandoned_stream_is_cancelled_once(adapters, monkeypatch, tmp_path: Path) -> None:
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
            client.left.set()
            for _ in range(5):
                link.cancel_abandoned()
            link.submit({"id": 1}, Client().responder)
            lines = connection.makefile("rb")
            heard = [json.loads(lines.readline()) for _ in range(3)]
    assert [message.get("cancel") for message in heard] == [None, {"id": 0}, None]
    link.close()
    senders[0].stop()
