"""Triton's side of a text model: `/infer`, `/generate` and unary gRPC.

The model is not decoupled, so Triton accepts `/infer`, and it answers late through its response
sender: `execute` returns at once and requests batch inside the engine.
"""

from __future__ import annotations

import functools
import json
import queue
import threading
from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from triton_hf.backend.clients import CancelWatch, Responder
from triton_hf.backend.publisher import TritonPublisher
from triton_hf.backend.tensors import (
    FINAL,
    answer,
    error_response,
    read_inputs,
    read_parameters,
    text_response,
    unexpected,
)
from triton_hf.errors import TritonHFError, in_short
from triton_hf.health import Heartbeat, heartbeat_path
from triton_hf.metrics import Metrics
from triton_hf.models.registry import load_class, missing_package
from triton_hf.models.settings import parse_settings
from triton_hf.runtime import end_server, log, log_fault, write_termination_log
from triton_hf.serving.service import Answer, Service
from triton_hf.serving.stream_server import StreamServer, events_per_second


class TextModel:
    """One Hugging Face text model; `model.py` names it `TritonPythonModel`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model. On error, raise one sentence that Triton prints, and stay unready."""
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {
            key: value["string_value"] for key, value in config.get("parameters", {}).items()
        }
        try:
            self._start(name, parameters)
        except Exception as error:
            sentence = f"model '{name}': {_sentence(error)}"
            log(sentence)
            # Triton's own last lines are tables of its options, too long to show the cause.
            write_termination_log(sentence)
            raise pb_utils.TritonModelException(sentence) from None

    def _start(self, name: str, parameters: dict[str, str]) -> None:
        settings = parse_settings(parameters)
        metrics = Metrics()
        self._engine = load_class(settings.kind.factory)(
            settings=settings,
            metrics=metrics,
            heartbeat=Heartbeat(heartbeat_path(name)),
            on_death=lambda reason: end_server(f"model '{name}': {reason}"),
        )
        self._publisher = TritonPublisher(metrics=metrics, model=name, backend=pb_utils)
        self._engine.start()
        self._publisher.start()
        self._service = Service(engine=self._engine, metrics=metrics)
        self._replies = _Replies()
        self._watch = CancelWatch()
        self._streams = StreamServer(
            model=name, service=self._service, events_per_second=events_per_second(settings)
        )
        self._streams.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Queue each request; a bad one gets its error and leaves the others alone."""
        for request in requests:
            sender = Responder(request.get_response_sender(), final=FINAL)
            try:
                self._submit(request, sender)
            except TritonHFError as error:
                sender.send(error_response(error), last=True)
            except Exception as error:  # a fault of ours must not take the model down
                sender.send(unexpected(error), last=True)

    def finalize(self) -> None:
        """Stop in good order."""
        self._streams.stop()
        self._watch.stop()
        self._service.stop()
        self._engine.stop()
        self._replies.stop()
        self._publisher.stop()

    def _submit(self, request: Any, sender: Responder) -> None:
        key = object()

        def done(result: list[Answer] | TritonHFError) -> None:
            self._watch.remove(key)
            self._replies.put(sender, result)

        # The request may be done before submit returns. The watch then drops the key at its next
        # look, because the ticket is finished.
        ticket = self._service.submit_whole(read_inputs(request), read_parameters(request), done)
        self._watch.add(key, sender, ticket)


class _Replies:
    """Sends whole answers on a separate thread, so that the engine never waits for Triton."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="replies", daemon=True)
        self._thread.start()

    def put(self, sender: Responder, result: list[Answer] | TritonHFError) -> None:
        self._queue.put((sender, result))

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            sender, result = item
            answer(sender, functools.partial(_response, result), last=True)


def _sentence(error: Exception) -> str:
    """One sentence for an error of a load; the log gets the traceback of one that is not ours."""
    if isinstance(error, TritonHFError):
        return str(error)
    log_fault(error)
    if isinstance(error, ModuleNotFoundError):
        return str(missing_package(error))
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return f"there is not enough memory to load it: {in_short(error)}"
    return f"it cannot be loaded: {in_short(error)}"


def _response(result: list[Answer] | TritonHFError) -> Any:
    return error_response(result) if isinstance(result, TritonHFError) else text_response(result)
