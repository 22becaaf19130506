"""Triton's side of a text model: `/infer`, `/generate` and unary gRPC.

The model is not decoupled, so Triton accepts `/infer`, and it answers late through its response
sender: `execute` returns at once and requests batch inside the engine.
"""

from __future__ import annotations

import functools
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from triton_hf.answers import Answer, Service, error_code
from triton_hf.engine import Engine, Job
from triton_hf.errors import EngineError, RequestError, TritonHFError
from triton_hf.health import Heartbeat, heartbeat_path
from triton_hf.metrics import Metrics, TritonPublisher
from triton_hf.responder import Responder
from triton_hf.runtime import end_server, log, log_fault, write_termination_log
from triton_hf.settings import ModelSettings, parse_settings
from triton_hf.stream_server import StreamServer, events_per_second

INPUTS = ("user_message", "system_message", "messages", "prompt")
# Triton says only when asked that a client went away. A slot is to be free within two steps and
# 100 ms, so that is asked every 50 ms; where asking takes long, less often, but at least so often.
CANCEL_POLL_SECONDS = 0.05
LONGEST_CANCEL_POLL_SECONDS = 0.2
CANCEL_POLL_SHARE = 0.05  # of a core
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TextModel:
    """One Hugging Face text model; `model.py` names it `TritonPythonModel`."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model. An error is one sentence that Triton prints and the model not ready."""
        name = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {
            key: value["string_value"] for key, value in config.get("parameters", {}).items()
        }
        try:
            settings = parse_settings(parameters)
            metrics = Metrics()
            heartbeat = Heartbeat(heartbeat_path(name))
            self._engine = make_engine(
                settings=settings,
                metrics=metrics,
                heartbeat=heartbeat,
                on_death=lambda reason: end_server(f"model '{name}': {reason}"),
            )
            self._publisher = TritonPublisher(metrics=metrics, model=name, backend=pb_utils)
            self._engine.start()
        except TritonHFError as error:
            log(f"model '{name}': {error}")
            # Triton's own last lines are tables of its options, too long for the cause to be seen.
            write_termination_log(f"model '{name}': {error}")
            raise pb_utils.TritonModelException(f"model '{name}': {error}") from None
        self._publisher.start()
        self._service = Service(engine=self._engine, metrics=metrics)
        self._replies = _Replies()
        self._watch = CancelWatch(self._service.cancel)
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
        self._engine.stop()
        self._replies.stop()
        self._publisher.stop()

    def _submit(self, request: Any, sender: Responder) -> None:
        ticket = object()

        def done(result: list[Answer] | TritonHFError) -> None:
            self._watch.remove(ticket)
            self._replies.put(sender, result)

        # The jobs may be done before submit returns: then the watch is told last, in vain, and
        # drops the ticket at its next look because all jobs are finished.
        jobs = self._service.submit_whole(read_inputs(request), read_parameters(request), done)
        self._watch.add(ticket, sender, jobs)


def make_engine(
    *,
    settings: ModelSettings,
    metrics: Metrics,
    heartbeat: Heartbeat,
    on_death: Callable[[str], None],
) -> Engine:
    """Return the engine that the settings name, not started.

    The import is here so that a simulated model needs neither torch nor transformers.
    """
    parts: dict[str, Any] = {
        "settings": settings,
        "metrics": metrics,
        "heartbeat": heartbeat,
        "on_death": on_death,
    }
    if settings.engine == "simulated":
        from triton_hf.simulated_engine import SimulatedEngine

        return SimulatedEngine(**parts)
    from triton_hf.transformers_engine import TransformersEngine

    return TransformersEngine(**parts)


def read_inputs(request: Any) -> dict[str, list[bytes] | None]:
    """Return the rows of each text input, None for one that was not sent."""
    rows: dict[str, list[bytes] | None] = {}
    for name in INPUTS:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        rows[name] = None if tensor is None else [bytes(x) for x in tensor.as_numpy().reshape(-1)]
    return rows


def read_parameters(request: Any) -> str:
    """Return the parameters of a request as JSON.

    Raises:
        RequestError: They are no text.
    """
    try:
        return str(request.parameters())
    except UnicodeDecodeError:
        raise RequestError("the names and texts in 'parameters' must be UTF-8") from None


def unexpected(error: Exception) -> Any:
    """Write a fault of ours to the log, cut, because a client may be in it; return its response."""
    log(f"request failed: {error!r:.500}")
    return error_response(EngineError("the server failed on this request; see its log"))


def text_response(answers: Sequence[Answer]) -> Any:
    """One response with a row for each answer."""
    return pb_utils.InferenceResponse(
        [
            _strings("text_output", [answer.text for answer in answers]),
            _strings("finish_reason", [answer.finish_reason for answer in answers]),
            _integers("prompt_tokens", [answer.prompt_tokens for answer in answers]),
            _integers("completion_tokens", [answer.completion_tokens for answer in answers]),
        ]
    )


def error_response(error: TritonHFError) -> Any:
    """An error with the code that makes Triton answer the right HTTP status."""
    return coded_error(str(error), error_code(error))


def coded_error(text: str, code: str) -> Any:
    """An error response from a text and the name of a code."""
    error = pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _strings(name: str, values: list[str]) -> Any:
    rows = np.array([value.encode() for value in values], dtype=np.object_).reshape(-1, 1)
    return pb_utils.Tensor(name, rows)


def _integers(name: str, values: list[int]) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=np.int32).reshape(-1, 1))


def answer(sender: Responder, make: Callable[[], Any], *, last: bool) -> None:
    """Send what `make` returns; an answer that cannot be made becomes an error, the last one.

    Nothing is raised: a client that cannot be answered is nobody else's fault.
    """
    try:
        try:
            response = make()
        except Exception as error:
            sender.send(unexpected(error), last=True)
        else:
            sender.send(response, last=last)
    except Exception as error:
        log(f"an answer could not be sent: {error!r:.500}")


def until_next_poll(asking_seconds: float) -> float:
    """How long to wait after all clients were asked for, which took so long."""
    pause = max(CANCEL_POLL_SECONDS, asking_seconds / CANCEL_POLL_SHARE)
    return min(pause, LONGEST_CANCEL_POLL_SECONDS)


class CancelWatch:
    """Looks some times a second whether the clients of open requests are still there.

    Asking Triton crosses a process border, so it is kept away from the engine's thread.
    """

    def __init__(self, cancel: Callable[[Sequence[Job]], None]) -> None:
        """Call `cancel` with the jobs of a request whose client went away."""
        self._cancel = cancel
        self._lock = threading.Lock()
        self._open: dict[object, tuple[Responder, Sequence[Job]]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cancel-watch", daemon=True)
        self._thread.start()

    def add(self, ticket: object, sender: Responder, jobs: Sequence[Job]) -> None:
        """Watch the client behind this sender."""
        with self._lock:
            self._open[ticket] = (sender, jobs)

    def remove(self, ticket: object) -> None:
        """Stop to watch; unknown tickets are fine."""
        with self._lock:
            self._open.pop(ticket, None)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        pause = CANCEL_POLL_SECONDS
        while not self._stopping.wait(pause):
            with self._lock:
                entries = list(self._open.items())
            start = time.monotonic()
            for ticket, (sender, jobs) in entries:
                self._look(ticket, sender, jobs)
            pause = until_next_poll(time.monotonic() - start)

    def _look(self, ticket: object, sender: Responder, jobs: Sequence[Job]) -> None:
        try:
            if all(job.finished for job in jobs):
                self.remove(ticket)
            elif sender.is_cancelled():
                self.remove(ticket)
                self._cancel(jobs)
        except Exception as error:  # one client that cannot be asked for must not hide the others
            self.remove(ticket)
            log_fault(error)


class _Replies:
    """Sends whole answers from a thread of its own, so that the engine never waits for Triton."""

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


def _response(result: list[Answer] | TritonHFError) -> Any:
    return error_response(result) if isinstance(result, TritonHFError) else text_response(result)
