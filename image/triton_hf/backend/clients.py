"""The clients of open requests: the way back to each, and a watch on who has left.

Triton frees a request's response factory with its final response. To ask `is_cancelled` after that,
or while it happens, is a use after free that ends the whole server (seen with 2.51:
TRITONBACKEND_ResponseFactoryIsCancelled, signal 11). So both go through one lock, and nothing is
asked or sent after the final response.
"""

from __future__ import annotations

import threading
import time
from typing import Any, Protocol

from triton_hf.runtime import log_fault

# Triton says only when asked that a client has left. A slot must be free within two steps and
# 100 ms, so the watch asks every 50 ms. If asking takes long, it asks less often, but at least
# every 200 ms.
CANCEL_POLL_SECONDS = 0.05
LONGEST_CANCEL_POLL_SECONDS = 0.2
CANCEL_POLL_SHARE = 0.05  # of a core


class Responder:
    """Wraps the response sender of one request."""

    def __init__(self, sender: Any, *, final: int) -> None:
        """Take over a sender; `final` is Triton's flag for the last response."""
        self._sender = sender
        self._final = final
        self._lock = threading.Lock()
        self._closed = False

    def send(self, response: Any, *, last: bool) -> None:
        """Send a response; after the last one further ones are dropped."""
        with self._lock:
            if self._closed:
                return
            # Also when it fails: Triton may have freed the factory by then.
            self._closed = last
            self._sender.send(response, flags=self._final if last else 0)

    def is_cancelled(self) -> bool:
        """Whether the client has gone away; False after the last response."""
        with self._lock:
            return not self._closed and bool(self._sender.is_cancelled())


class Ticket(Protocol):
    """A request that can be cancelled."""

    @property
    def finished(self) -> bool:
        """Whether it has been answered."""

    def cancel(self) -> None:
        """End it."""


def until_next_poll(asking_seconds: float) -> float:
    """Return the pause in seconds after a round of questions that took so long."""
    pause = max(CANCEL_POLL_SECONDS, asking_seconds / CANCEL_POLL_SHARE)
    return min(pause, LONGEST_CANCEL_POLL_SECONDS)


class CancelWatch:
    """Asks several times a second whether the clients of open requests are still there.

    Asking Triton crosses a process border, so the engine's thread never does it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[object, tuple[Responder, Ticket]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cancel-watch", daemon=True)
        self._thread.start()

    def add(self, key: object, sender: Responder, ticket: Ticket) -> None:
        """Watch the client behind a sender; cancel its ticket when the client leaves."""
        with self._lock:
            self._open[key] = (sender, ticket)

    def remove(self, key: object) -> None:
        """Stop watching; unknown keys are fine."""
        with self._lock:
            self._open.pop(key, None)

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
            for key, (sender, ticket) in entries:
                self._look(key, sender, ticket)
            pause = until_next_poll(time.monotonic() - start)

    def _look(self, key: object, sender: Responder, ticket: Ticket) -> None:
        try:
            if ticket.finished:
                self.remove(key)
            elif sender.is_cancelled():
                self.remove(key)
                ticket.cancel()
        except Exception as error:  # one client that cannot be asked about must not hide the others
            self.remove(key)
            log_fault(error)
