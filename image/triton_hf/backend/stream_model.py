"""Triton's side of a streaming companion: `/generate_stream`, and streaming gRPC.

Triton refuses `/infer` on a decoupled model, so each model M has a decoupled companion M_stream
that holds no weights: it passes requests to M's process and sends M's tokens as they come.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from triton_hf.backend.clients import CANCEL_POLL_SECONDS, Responder, until_next_poll
from triton_hf.backend.tensors import (
    FINAL,
    answer,
    coded_error,
    read_inputs,
    read_parameters,
    text_response,
    unexpected,
)
from triton_hf.errors import RequestError
from triton_hf.health import Heartbeat, heartbeat_path
from triton_hf.runtime import log_fault, socket_path
from triton_hf.serving import wire
from triton_hf.serving.service import Answer
from triton_hf.serving.validation import wants_stream

SENDER_THREADS = 4


class StreamModel:
    """The companion of one model; its config.pbtxt names the model in parameter `model`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Start the threads; the line to the model is made with the first request."""
        config = json.loads(args["model_config"])
        self._model = config["parameters"]["model"]["string_value"]
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        self._senders = [_Sender() for _ in range(SENDER_THREADS)]
        self._stopping = threading.Event()
        self._heartbeat = Heartbeat(heartbeat_path(args["model_name"]))
        self._beat()
        self._watch = threading.Thread(target=self._watch_clients, name="watch", daemon=True)
        self._watch.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Pass each request on; its tokens come back on the threads of the link."""
        for request in requests:
            sender = Responder(request.get_response_sender(), final=FINAL)
            try:
                self._pass_on(request, sender)
            except RequestError as error:
                sender.send(coded_error(str(error), "INVALID_ARG"), last=True)
            except OSError:
                text = f"model '{self._model}' is not running; see the log of the server"
                sender.send(coded_error(text, "UNAVAILABLE"), last=True)
            except Exception as error:  # a fault of ours must not take the streams down
                sender.send(unexpected(error), last=True)

    def finalize(self) -> None:
        """Close the line once what is open is answered, or its client has gone."""
        while self._link is not None and self._link.open_requests:
            time.sleep(CANCEL_POLL_SECONDS)
        self._stopping.set()
        self._watch.join()
        if self._link is not None:
            self._link.close()
        for sender in self._senders:
            sender.stop()
        self._heartbeat.remove()

    def _pass_on(self, request: Any, sender: Responder) -> None:
        parameters = read_parameters(request)
        message = {
            "id": next(self._numbers),
            "inputs": {
                name: [row.decode("latin-1") for row in rows]
                for name, rows in read_inputs(request).items()
                if rows is not None
            },
            "parameters": parameters,
            "stream": wants_stream(parameters),
        }
        self._connected().submit(message, sender)

    def _connected(self) -> _Link:
        with self._lock:
            if self._link is None or self._link.broken:
                self._link = _Link(model=self._model, senders=self._senders)
            return self._link

    def _watch_clients(self) -> None:
        pause = CANCEL_POLL_SECONDS
        while not self._stopping.wait(pause):
            start = time.monotonic()
            try:
                self._beat()
                if self._link is not None:
                    self._link.cancel_abandoned()
            except Exception as error:  # a watch that ends would look like a hang
                log_fault(error)
            pause = until_next_poll(time.monotonic() - start)

    def _beat(self) -> None:
        running = 0 if self._link is None else self._link.open_requests
        self._heartbeat.beat(state="serving", running=running, waiting=0)


class _Link:
    """One connection to the model and the requests that are open on it."""

    def __init__(self, *, model: str, senders: Sequence[_Sender]) -> None:
        self._model = model
        self._senders = senders
        self._lock = threading.Lock()
        self._open: dict[int, Responder] = {}
        self._abandoned: set[int] = set()
        self.broken = False
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(str(socket_path(model)))
        self._outbox = wire.Outbox(self._connection, on_broken=self._break)
        threading.Thread(target=self._read, name="stream-read", daemon=True).start()

    @property
    def open_requests(self) -> int:
        with self._lock:
            return len(self._open)

    def submit(self, message: dict[str, Any], sender: Responder) -> None:
        with self._lock:
            if self.broken:
                raise ConnectionError("the line to the model broke")
            self._open[message["id"]] = sender
        self._outbox.put(message)

    def cancel_abandoned(self) -> None:
        with self._lock:
            entries = [item for item in self._open.items() if item[0] not in self._abandoned]
        for number, sender in entries:
            if _has_left(sender):
                self._abandoned.add(number)
                # A message of its own: it must not replace a submission that still waits.
                self._outbox.put({"id": -1 - number, "cancel": {"id": number}})

    def close(self) -> None:
        self._outbox.close()
        self._break()

    def _read(self) -> None:
        try:
            for message in wire.read_messages(self._connection):
                self._receive(message)
        except Exception as error:  # nothing behind a broken message can be trusted
            log_fault(error)
        finally:
            self._break()

    def _receive(self, message: dict[str, Any]) -> None:
        number = message["id"]
        with self._lock:
            sender = self._open.get(number)
            if wire.is_last(message):
                self._open.pop(number, None)
                self._abandoned.discard(number)
        if sender is not None:
            self._senders[number % len(self._senders)].put(sender, message)

    def _break(self) -> None:
        with self._lock:
            self.broken = True
            left, self._open = self._open, {}
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # ends the reading thread, too
        self._connection.close()
        text = f"model '{self._model}' stopped while it was answering; see the log of the server"
        for number, sender in left.items():
            message = {"id": number, "error": text, "code": "UNAVAILABLE"}
            self._senders[number % len(self._senders)].put(sender, message)


class _Sender:
    """Sends responses to Triton from one thread, in order; several share the requests.

    Each send takes 100 to 200 us of waiting for Triton. Messages of one answer that wait at the
    same time are merged, but for those that shall be alone.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="stream-send", daemon=True)
        self._thread.start()

    def put(self, sender: Responder, message: dict[str, Any]) -> None:
        self._queue.put((sender, message))

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while True:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            for sender, message in _merged([item for item in batch if item is not None]):
                _send(sender, message)
            if None in batch:
                return


def _merged(batch: list[tuple[Any, dict[str, Any]]]) -> list[tuple[Any, dict[str, Any]]]:
    """Messages with those of one answer joined, in the order of their first."""
    merged: dict[tuple[int, int], tuple[Any, dict[str, Any]]] = {}
    for place, (sender, message) in enumerate(batch, start=1):
        key = (message["id"], place if message.get("alone") else 0)
        known = merged.get(key)
        merged[key] = (sender, wire.merge(known[1], message) if known else message)
    return list(merged.values())


def _send(sender: Responder, message: dict[str, Any]) -> None:
    answer(sender, functools.partial(_response, message), last=wire.is_last(message))


def _response(message: dict[str, Any]) -> Any:
    if "error" in message:
        return coded_error(message["error"], message["code"])
    tokens = Answer(
        text=message["text"],
        finish_reason=message.get("finish_reason", ""),
        prompt_tokens=message["prompt_tokens"],
        completion_tokens=message["completion_tokens"],
    )
    return text_response([tokens])


def _has_left(sender: Responder) -> bool:
    """Whether a client has gone away; one that cannot be asked for counts as there."""
    try:
        return sender.is_cancelled()
    except Exception as error:
        log_fault(error)
        return False
