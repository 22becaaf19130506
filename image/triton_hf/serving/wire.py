"""The line between a model and its streaming companion: JSON lines over a Unix socket.

Companion to model: `{"id", "inputs": {name: text}, "parameters", "stream"}` or
`{"id", "cancel": {"id"}}`. Model to companion: `{"id", "text", "completion_tokens",
"prompt_tokens"}`, with `finish_reason` or `error` and `code` on the last one, and with `alone`
where no token may be merged with the next. Bytes of the inputs travel as Latin-1 text, so that
broken UTF-8 reaches the one place that checks it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from triton_hf.runtime import log_fault

Message = dict[str, Any]
FEW = 4  # open answers up to which every token goes at once


def is_last(message: Message) -> bool:
    """Whether no message follows for this id."""
    return "finish_reason" in message or "error" in message


class Outbox:
    """Sends messages from a thread of its own; with a pace, it merges what waits.

    Tokens of one answer that wait at the same time become one message: under load fewer and
    larger messages cross the border, with one token each when there is none, because each message
    costs the machine more than its token. Without a pace every message goes alone.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        on_broken: Callable[[], None],
        messages_per_second: float = 0.0,
    ) -> None:
        """Own the sending side of a connection.

        Args:
            connection: a stream socket.
            on_broken: called once when the other side is gone.
            messages_per_second: most messages a second while more than a few answers are open; the
                first and the last of an answer never wait. 0 sends each at once, and each alone.
        """
        self._connection = connection
        self._on_broken = on_broken
        self._pace = messages_per_second
        self._changed = threading.Condition()
        self._pending: dict[int, list[Message]] = {}
        self._open: set[int] = set()
        self._urgent: set[int] = set()
        self._next = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="outbox", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Queue a message; never blocks on the socket."""
        number = message["id"]
        with self._changed:
            waiting = self._pending.setdefault(number, [])
            if self._pace:
                waiting[:] = [merge(waiting[0], message) if waiting else message]
                self._note(number, last=is_last(message))
            else:
                waiting.append(message)
            self._changed.notify()

    def close(self) -> None:
        """Send what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _note(self, number: int, *, last: bool) -> None:
        """Keep account of the open answers; without a pace nothing asks for it. Holds the lock."""
        if number not in self._open or last:
            self._urgent.add(number)
        if last:
            self._open.discard(number)
        else:
            self._open.add(number)

    def _loop(self) -> None:
        while True:
            with self._changed:
                taken = self._take()
            if not taken:
                return
            try:
                lines = "".join(f"{json.dumps(message)}\n" for message in taken)
                self._connection.sendall(lines.encode())
            except Exception as error:  # what was taken is lost, and with it the order
                if not isinstance(error, OSError):
                    log_fault(error)
                self._on_broken()
                return

    def _take(self) -> list[Message]:
        """Wait for messages that may go, and return them; none when closed. Holds the lock."""
        while not self._closed:
            rest = self._next - time.monotonic()
            if self._pending and (rest <= 0 or self._urgent):
                break
            self._changed.wait(rest if self._pending else None)
        else:
            rest = 0.0
        numbers = list(self._pending if rest <= 0 else self._urgent)
        taken = [message for number in numbers for message in self._pending.pop(number)]
        self._urgent.clear()
        if self._pace and len(self._open) > FEW:
            self._next = max(self._next, time.monotonic()) + len(taken) / self._pace
        else:
            self._next = 0.0
        return taken


def merge(first: Message, second: Message) -> Message:
    """Join two messages of one id: the text of both, everything else of the later one."""
    return {**second, "text": first.get("text", "") + second.get("text", "")}


def read_messages(connection: socket.socket) -> Iterator[Message]:
    """Yield messages until the other side closes."""
    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
        for line in lines:
            yield json.loads(line)
