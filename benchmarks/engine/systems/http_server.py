"""A peer's own HTTP server in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.engine.systems.base import Answer, Prompt, UnavailableError
from benchmarks.engine.systems.http_client import Request, ask_all
from embedded_triton.server import stop_group

READY_SECONDS = 900  # vLLM compiles the model when it starts for the first time


class RunningServer:
    """A server that is ready."""

    def __init__(self, *, session: int, port: int, request: Request) -> None:
        """Ask the server on this port of loopback."""
        self.session = session
        self._port, self._request = port, request

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, clients: int) -> list[Answer]:
        """Answer all prompts with this many tokens each, `clients` of them at any time."""
        return ask_all(self._port, self._request, prompts, tokens=tokens, clients=clients)


@contextlib.contextmanager
def server_process(
    command: Sequence[str],
    *,
    folder: Path,
    port: int,
    request: Request,
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningServer]:
    """Run a server until the block ends; it is ready when its `/health` says so.

    Args:
        command: Of the server.
        folder: For its log.
        port: Of loopback, where it listens.
        request: Makes what is sent for a prompt.
        environment: Its variables; None gives it those of this process.

    Raises:
        UnavailableError: It does not start; the text holds the last line of its log.
    """
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + READY_SECONDS
        while not _healthy(port):
            if process.poll() is not None or time.monotonic() > end:
                lines = log.read_text("utf-8", errors="replace").strip().splitlines() or ["nothing"]
                raise UnavailableError(f"it did not start; it last said: {lines[-1][:300]}")
            time.sleep(0.05)
        yield RunningServer(session=process.pid, port=port, request=request)
    finally:
        stop_group(process)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
