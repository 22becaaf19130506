"""The model's end of the line to its streaming companion."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from triton_hf.cpu import usable_cores
from triton_hf.engines.text import TextEvent
from triton_hf.errors import EngineError, EngineStoppedError, TritonHFError, error_code
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import log, log_fault, socket_path
from triton_hf.serving import wire
from triton_hf.serving.service import Service, Ticket

# An event takes a third of a millisecond of a core on its way through two processes and Triton.
EVENTS_PER_CORE = 100
POLL_SECONDS = 0.05
ACCEPT_PAUSE_SECONDS = 0.5


def events_per_second(settings: ModelSettings) -> float:
    """The most events a second that a model's streams send; 0 where there is no limit.

    An engine that is not paced sends every token: its times are what is asked for.
    """
    if settings.stream_events is not None:
        return float(settings.stream_events)
    return float(EVENTS_PER_CORE * usable_cores()) if settings.kind.paced else 0.0


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
        for session in sessions:
            session.refuse()
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
        self._refuses = False
        self._alone = {} if events_per_second else {"alone": True}
        self._tickets: dict[int, Ticket] = {}
        self._outbox = wire.Outbox(
            connection, on_broken=self._break, messages_per_second=events_per_second
        )

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way."""
        with self._lock:
            return bool(self._tickets)

    def handle(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if message.get("cancel"):
            with self._lock:
                ticket = self._tickets.get(message["cancel"]["id"])
            if ticket is not None:
                ticket.cancel()
            return
        try:
            self._submit(number, message)
        except TritonHFError as error:
            self._send_error(number, error)
        except Exception as error:  # a fault of ours must not end the other streams
            log(f"stream request failed: {error!r:.500}")
            self._send_error(number, EngineError("the server failed on this request"))

    def refuse(self) -> None:
        """Take no more requests; those that are open are answered."""
        self._refuses = True

    def close(self) -> None:
        self._cancel_all()
        self._outbox.close()

    def _submit(self, number: int, message: dict[str, Any]) -> None:
        if self._refuses:
            raise EngineStoppedError("the model is shutting down")
        rows = {
            name: [row.encode("latin-1") for row in values]
            for name, values in message["inputs"].items()
        }
        listener = _Forward(number=number, whole=not message["stream"], send=self._send)
        # The last event may come before submit returns: the ticket is noted before that is sent.
        with listener.lock:
            ticket = self._service.submit_stream(rows, message["parameters"], listener)
            with self._lock:
                self._tickets[number] = ticket

    def _send(self, message: dict[str, Any]) -> None:
        self._outbox.put(message | self._alone)
        if wire.is_last(message):  # after it was put, because a session that is not busy is closed
            with self._lock:
                self._tickets.pop(message["id"], None)

    def _send_error(self, number: int, error: TritonHFError) -> None:
        self._outbox.put({"id": number, "error": str(error), "code": error_code(error)})

    def _break(self) -> None:
        """Let the companion see that nothing more comes over this connection."""
        self._cancel_all()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _cancel_all(self) -> None:
        with self._lock:
            tickets = list(self._tickets.values())
        for ticket in tickets:
            ticket.cancel()


class _Forward:
    """Turns the events of one job into messages; with `whole`, into one message at the end."""

    def __init__(self, *, number: int, whole: bool, send: Callable[[dict[str, Any]], None]) -> None:
        self.lock = threading.Lock()
        self._number = number
        self._whole = whole
        self._send = send
        self._text = ""

    def __call__(self, event: TextEvent) -> None:
        with self.lock:
            self._text += event.text
            if self._whole and not event.last:
                return
            message: dict[str, Any] = {
                "id": self._number,
                "text": self._text,
                "completion_tokens": event.completion_tokens,
                "prompt_tokens": event.prompt_tokens,
            }
            self._text = ""
        if event.error is not None:
            message |= {"error": str(event.error), "code": error_code(event.error)}
        elif event.finish_reason is not None:
            message["finish_reason"] = event.finish_reason
        self._send(message)
