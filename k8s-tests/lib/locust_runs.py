"""Runs Locust as people do, and the server with known times."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tools.place import ROOT
from triton_load import record

LOCUST = str(Path(sys.executable).parent / "locust")
Process = subprocess.Popen[str]
TOKENS = 20
# A busy test machine must not make a generator call itself late.
STREAM = ("--client=stream", "--model=known", "--stop-timeout=20", "--max-lag=60000")
SPAWNED = ("All users spawned", "Spawning is complete")  # Locust's words, in time or late


def locust(*words: str, seconds: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run locust with our locustfile to its end, from the root of the repository."""
    command = [LOCUST, "-f", "load_testing/locustfile.py", *words]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def start_locust(*words: str) -> Process:
    """Start locust with our locustfile."""
    command = [LOCUST, "-f", "load_testing/locustfile.py", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def says(process: Process, *words: str) -> bool:
    """Wait until a process says one of these."""
    return any(word in line for line in process.stdout or () for word in words)


def finish(name: str, process: Process) -> str:
    """Wait for a process to end, and return what it said after its name."""
    text, _ = process.communicate(timeout=90)
    return f"== {name}\n{text}"


def rate(arrivals: Sequence[float]) -> float:
    """Return arrivals a second: the slope of all of them, so that one that is late means little."""
    return statistics.linear_regression(sorted(arrivals), range(len(arrivals))).slope


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """The environment of a user: no path of ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def measured(
    folder: Path, *words: str, seconds: float = 120
) -> tuple[subprocess.CompletedProcess[str], record.Record]:
    """Run locust headless with a report, and return how it ended and the record."""
    done = locust("--headless", "--only-summary", "--out", str(folder), *words, seconds=seconds)
    assert (folder / "run.json").exists(), done.stdout + done.stderr
    return done, record.read(folder)


class Known:
    """The running server with known times."""

    def __init__(self, process: subprocess.Popen[str], *, scheme: str) -> None:
        assert process.stdout is not None
        self._process = process
        self.host = f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
        self._log: list[list[float]] | None = None

    def log(self) -> list[list[float]]:
        """End the server; for each request its arrival and the moments of its sends, seconds."""
        if self._log is None:
            self._process.terminate()
            text, _ = self._process.communicate(timeout=30)
            self._log = json.loads(text)
        return self._log


@contextlib.contextmanager
def known_server(**options: Any) -> Iterator[Known]:
    """Run `known_server.py` with these options until the block ends."""
    with _program(Path(__file__).with_name("known_server.py"), options) as process:
        yield Known(process, scheme="https" if options.get("cert") else "http")


@contextlib.contextmanager
def ticker(**options: Any) -> Iterator[str]:
    """Run the benchmarks' `ticker.py`, which costs little, until the block ends; give its URL."""
    with _program(ROOT / "benchmarks/load_generator/ticker.py", options) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


@contextlib.contextmanager
def _program(file: Path, options: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        words.append(option if value is True else f"{option}={value}")
    command = [sys.executable, str(file), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stream_numbers(folder: Path, *, host: str, users: int, seconds: int) -> dict[str, float]:
    """Return what another client can be asked, too, after a run of streams of the known model."""
    words = (f"--host={host}", "--model=known", "--client=stream", "--stop-timeout=10")
    done, found = measured(folder, *words, f"-u{users}", "-r100", f"-t{seconds}s")
    assert done.returncode in (0, 3), done.stdout + done.stderr  # a busy machine is no error here
    assert found.totals.failed == found.totals.unfinished == 0
    return {
        "tokens_per_second": found.totals.output_tokens_per_second or 0.0,
        "ttft_p50_seconds": found.distributions[record.TTFT].quantile(50),
    }
