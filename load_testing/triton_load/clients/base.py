"""What every client shares: where requests go, and how a fault is told."""

from __future__ import annotations

import dataclasses
import json
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from triton_load.data import Case
from triton_load.measure import Outcome
from triton_load.schema import Model

_EXAMPLE = 200  # characters of an error that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go.

    Attributes:
        host: Base URL: http://NAME[:PORT] or https://...
        grpc: HOST:PORT of the gRPC service; only for the gRPC client.
        model: What the model takes and gives.
        stream: Name of the model that streams.
        timeout: Longest silence of the server in seconds before a request has failed.
        keep_alive: Reuse connections.
        insecure: Accept any TLS certificate.
        headers: Added to each request, for example an API key.
    """

    host: str
    grpc: str
    model: Model
    stream: str
    timeout: float
    keep_alive: bool
    insecure: bool
    headers: Mapping[str, str]


class Client(Protocol):
    """Sends cases, one at a time."""

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""

    def close(self) -> None:
        """Give up its connections."""


def end(outcome: Outcome, error: tuple[str, str]) -> None:
    """A request ends now, with an error: its class and its text."""
    outcome.ended = time.perf_counter()
    outcome.error = error


def network_error(error: Exception) -> tuple[str, str]:
    """Class and text of what went wrong below HTTP or gRPC."""
    if isinstance(error, TimeoutError | socket.timeout):
        name = "time-out"
    elif isinstance(error, ssl.SSLError):
        name = "TLS"
    elif isinstance(error, ConnectionRefusedError):
        name = "connection refused"
    elif isinstance(error, ConnectionError) or "closed" in type(error).__name__.lower():
        name = "connection lost"
    elif isinstance(error, OSError):
        name = "network"
    else:
        name = type(error).__name__
    return name, short(str(error) or type(error).__name__)


def message(answer: bytes) -> str:
    """The text of a server's error, as short as a report needs it."""
    try:
        error = json.loads(answer)["error"]
        return short(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, KeyError, TypeError):
        return short(answer.decode("utf-8", "replace") or "no text")


def short(text: str) -> str:
    """One line of a text, at most as long as a report needs it."""
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE else line[: _EXAMPLE - 3] + "..."


def total(values: Iterable[Any] | None) -> int | None:
    """The sum of counts that a server gave, or None."""
    if values is None:
        return None
    try:
        return sum(int(value) for value in values)
    except (TypeError, ValueError):
        return None
