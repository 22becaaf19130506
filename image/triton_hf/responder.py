"""A request's way back to its client, safe to use from several threads.

Triton frees a request's response factory with its final response. To ask `is_cancelled` after that,
or while it happens, is a use after free that ends the whole server (seen with 2.51:
TRITONBACKEND_ResponseFactoryIsCancelled, signal 11). So both go through one lock, and nothing is
asked or sent after the final response.
"""

from __future__ import annotations

import threading
from typing import Any


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
