"""Triton's side of a model that is not decoupled: what every task shares.

Triton accepts `/infer` for it, and it answers late through its response sender: `execute` returns
at once and requests batch inside the engine.
"""

from __future__ import annotations

import abc
import functools
import json
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from triton_hf.backend.clients import CancelWatch, Responder, Ticket
from triton_hf.backend.publisher import TritonPublisher
from triton_hf.backend.tensors import FINAL, answer, error_response, unexpected
from triton_hf.errors import TritonHFError, in_short
from triton_hf.health import Heartbeat, heartbeat_path
from triton_hf.metrics import Metrics
from triton_hf.models.registry import load_class, missing_package
from triton_hf.models.settings import ModelSettings, parse_settings
from triton_hf.runtime import end_server, log, log_fault, write_termination_log

Done = Callable[[Any], None]


class ServedModel(abc.ABC):
    """One Hugging Face model; a task says how it reads requests and writes answers."""

    @abc.abstractmethod
    def _metrics(self, settings: ModelSettings) -> Metrics:
        """Return the metrics of the model, at zero."""

    @abc.abstractmethod
    def _open(self, name: str, settings: ModelSettings, engine: Any, metrics: Metrics) -> None:
        """Serve with a started engine."""

    @abc.abstractmethod
    def _ask(self, request: Any, done: Done) -> Ticket:
        """Queue a request; `done` gets what `_response` takes, or an error.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """

    @abc.abstractmethod
    def _response(self, result: Any) -> Any:
        """Return the response of Triton for a result."""

    @abc.abstractmethod
    def _close_streams(self) -> None:
        """Take no more requests that do not come over `execute`."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Stop what `_open` started, but for the streams."""

    # For Triton.

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
        metrics = self._metrics(settings)
        self._engine = load_class(settings.kind.factory)(
            settings=settings,
            metrics=metrics,
            heartbeat=Heartbeat(heartbeat_path(name)),
            on_death=lambda reason: end_server(f"model '{name}': {reason}"),
        )
        self._publisher = TritonPublisher(metrics=metrics, model=name, backend=pb_utils)
        self._engine.start()
        self._publisher.start()
        self._replies = Replies(self._response)
        self._watch = CancelWatch()
        self._open(name, settings, self._engine, metrics)

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
        self._close_streams()
        self._watch.stop()
        self._close()
        self._engine.stop()
        self._replies.stop()
        self._publisher.stop()

    def _submit(self, request: Any, sender: Responder) -> None:
        key = object()

        def done(result: Any) -> None:
            self._watch.remove(key)
            self._replies.put(sender, result)

        # The request may be done before `_ask` returns. The watch then drops the key at its next
        # look, because the ticket is finished.
        self._watch.add(key, sender, self._ask(request, done))


class Replies:
    """Sends whole answers on a separate thread, so that the engine never waits for Triton."""

    def __init__(self, respond: Callable[[Any], Any]) -> None:
        """Make each response with `respond`, but those of errors."""
        self._respond = respond
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="replies", daemon=True)
        self._thread.start()

    def put(self, sender: Responder, result: Any) -> None:
        """Queue the answer of a request."""
        self._queue.put((sender, result))

    def stop(self) -> None:
        """Send what is queued, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (item := self._queue.get()) is not None:
            sender, result = item
            answer(sender, functools.partial(self._made, result), last=True)

    def _made(self, result: Any) -> Any:
        return (
            error_response(result) if isinstance(result, TritonHFError) else self._respond(result)
        )


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
