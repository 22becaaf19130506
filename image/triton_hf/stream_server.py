"""The model's end of the line to its streaming companion."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from triton_hf import wire
from triton_hf.answers import Service, error_code
from triton_hf.cpu import usable_cores
from triton_hf.engine import Event, Job
from triton_hf.errors import EngineError, TritonHFError
from triton_hf.runtime import log, log_fault, socket_path
from triton_hf.settings import ModelSettings

# An event takes a third of a millisecond of a core on its way through two processes and Triton.
EVENTS_PER_CORE = 100
POLL_SECONDS = 0.05
ACCEPT_PAUSE_SECONDS = 0.5


def events_per_second(settings: ModelSettings) -> float:
    """The most events a second that a model's streams send; 0 where there is no limit.

    A simulated model sends every token, because its times are what is asked for.
    """
    if settings.stream_events is not None:
        return float(settings.stream_events)
    return 0.0 if settings.engine == "simulated" else float(EVENTS_PER_CORE * usable_cores())


class StreamServer:
    """Accepts the companion's connection and turns its messages into jobs.

    When a connection ends, the jobs that came over it are cancelled.
    """

    def __init__(self, *, model: str, service: Service, events_per_second: float = 0.0) -> None:
        """Listen for the companion of this model, from `start` on.

        Args:
            model: its name.
            service: what answers.
            events_per_second: see `wire.Outbox`.
        """
        self._path = socket_path(model)
        self._service = service
        self._events_per_second = events_per_second
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connections: set[socket.socket] = set()
        self._sessions: set[_Session] = set()
        self._stopping = threading.Event()

    def start(self) -> None:
        """Bind the socket and accept in a thread."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(16)
        threading.Thread(target=self._accept, name="stream-accept", daemon=True).start()

    def stop(self) -> None:
        """Close everything once what is open is answered; the companion sees its connection end.

        Triton does not count an open stream as in flight when it unloads its models.
        """
        self._stopping.set()
        self._path.unlink(missing_ok=True)
        sessions = list(self._sessions)
        while any(session.busy for session in sessions):
            time.sleep(POLL_SECONDS)
        for session in sessions:
            session.close()
        for connection in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            connection = None
            try:
                connection, _ = self._listener.accept()
                self._connections.add(connection)
                threading.Thread(
                    target=self._serve, args=(connection,), name="stream-read", daemon=True
                ).start()
            except (OSError, RuntimeError) as error:
                if connection is not None:
                    self._end(connection)
                if self._stopping.wait(ACCEPT_PAUSE_SECONDS):
                    return
                # Too many files or threads, for example: the companion tries again, and so do we.
                log_fault(error)

    def _serve(self, connection: socket.socket) -> None:
        try:
            session = _Session(connection, self._service, self._events_per_second)
            self._sessions.add(session)
            try:
                for message in wire.read_messages(connection):
                    session.handle(message)
            finally:
                session.close()
                self._sessions.discard(session)
        except Exception as error:  # the companion sees its connection end, and makes a new one
            log_fault(error)
        finally:
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        connection.close()


class _Session:
    """The open requests of one connection."""

    def __init__(
        self, connection: socket.socket, service: Service, events_per_second: float
    ) -> None:
        self._connection = connection
        self._service = service
        self._lock = threading.Lock()
        self._jobs: dict[int, Job] = {}
        self._outbox = wire.Outbox(
            connection, on_broken=self._break, messages_per_second=events_per_second
        )

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        with self._lock:
            return bool(self._jobs)

    def handle(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if message.get("cancel"):
            with self._lock:
                job = self._jobs.get(message["cancel"]["id"])
            if job is not None:
                self._service.cancel([job])
            return
        try:
            self._submit(number, message)
        except TritonHFError as error:
            self._send_error(number, error)
        except Exception as error:  # a fault of ours must not end the other streams
            log(f"stream request failed: {error!r:.500}")
            self._send_error(number, EngineError("the server failed on this request"))

    def close(self) -> None:
        self._cancel_all()
        self._outbox.close()

    def _submit(self, number: int, message: dict[str, Any]) -> None:
        rows = {
            name: [row.encode("latin-1") for row in values]
            for name, values in message["inputs"].items()
        }
        listener = _Forward(number=number, whole=not message["stream"], send=self._send)
        # The first event may come before submit returns; the companion takes the length of the
        # prompt from the last event, so it is set before that can be sent.
        with listener.lock:
            job, listener.prompt_tokens = self._service.submit_stream(
                rows, message["parameters"], listener
            )
            with self._lock:
                self._jobs[number] = job

    def _send(self, message: dict[str, Any]) -> None:
        self._outbox.put(message)
        if wire.is_last(message):  # after it was put: who is not busy is closed
            with self._lock:
                self._jobs.pop(message["id"], None)

    def _send_error(self, number: int, error: TritonHFError) -> None:
        self._outbox.put({"id": number, "error": str(error), "code": error_code(error)})

    def _break(self) -> None:
        """Let the companion see that nothing more comes over this connection."""
        self._cancel_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _cancel_all(self) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        self._service.cancel(jobs)


class _Forward:
    """Turns the events of one job into messages; with `whole`, into one message at the end."""

    def __init__(self, *, number: int, whole: bool, send: Callable[[dict[str, Any]], None]) -> None:
        self.lock = threading.Lock()
        self.prompt_tokens = 0
        self._number = number
        self._whole = whole
        self._send = send
        self._text = ""

    def __call__(self, event: Event) -> None:
        with self.lock:
            self._text += event.text
            if self._whole and not event.last:
                return
            message: dict[str, Any] = {
                "id": self._number,
                "text": self._text,
                "completion_tokens": event.completion_tokens,
                "prompt_tokens": self.prompt_tokens,
            }
            self._text = ""
        if event.error is not None:
            message |= {"error": str(event.error), "code": error_code(event.error)}
        elif event.finish_reason is not None:
            message["finish_reason"] = event.finish_reason
        self._send(message)
