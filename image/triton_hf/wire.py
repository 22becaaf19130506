"""The line between a model and its streaming companion: JSON lines over a Unix socket.

Companion to model: `{"id", "inputs": {name: text}, "parameters", "stream"}` or
`{"id", "cancel": {"id"}}`. Model to companion: `{"id", "text", "completion_tokens",
"prompt_tokens"}`, with `finish_reason` or `error` and `code` on the last one. Bytes of the inputs
travel as Latin-1 text, so that broken UTF-8 reaches the one place that checks it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

Message = dict[str, Any]


def is_last(message: Message) -> bool:
    """Whether no message follows for this id."""
    return "finish_reason" in message or "error" in message


class Outbox:
    """Sends messages from a thread of its own; merges what a slow reader has not taken.

    Tokens of one answer that wait at the same time become one message: under load fewer and
    larger messages cross the border, with one token each when there is none.
    """

    def __init__(self, connection: socket.socket, *, on_broken: Callable[[], None]) -> None:
        """Own the sending side of a connection."""
        self._connection = connection
        self._on_broken = on_broken
        self._changed = threading.Condition()
        self._pending: dict[int, Message] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Queue a message; never blocks on the socket."""
        with self._changed:
            known = self._pending.get(message["id"])
            self._pending[message["id"]] = merge(known, message) if known else message
            self._changed.notify()

    def close(self) -> None:
        """Send what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._pending and not self._closed:
                    self._changed.wait()
                pending, self._pending = self._pending, {}
            if not pending:
                return
            lines = "".join(f"{json.dumps(message)}\n" for message in pending.values())
            try:
                self._connection.sendall(lines.encode())
            except OSError:
                self._on_broken()
                return


def merge(first: Message, second: Message) -> Message:
    """Join two messages of one id: the text of both, everything else of the later one."""
    return {**second, "text": first.get("text", "") + second.get("text", "")}


def read_messages(connection: socket.socket) -> Iterator[Message]:
    """Yield messages until the other side closes."""
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            yield json.loads(line)
