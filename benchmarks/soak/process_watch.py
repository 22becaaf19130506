"""What a server holds: memory, descriptors, threads, shared memory."""

from __future__ import annotations

import contextlib
import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

from embedded_triton.server import Server

IN_FLIGHT = ("triton_hf_requests_running", "triton_hf_requests_waiting")


@dataclass(frozen=True, kw_only=True)
class Held:
    """One process; `rss` in bytes."""

    pid: int
    rss: int
    descriptors: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A server at one moment.

    Attributes:
        at: monotonic seconds.
        processes: the server and the stub of each model, by name.
        shared: bytes of the files in /dev/shm that these processes have mapped.
    """

    at: float
    processes: dict[str, Held]
    shared: int


def sample(server: Server) -> Sample:
    """Look at a server now."""
    parent = psutil.Process(server.process.pid)
    processes, files = {}, set()
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            words = process.cmdline()
            # A stub's last word but one is MODEL_0_0, its instance.
            stub = "triton_python_backend_stub" in words[0]
            name = f"stub of {words[-2].removesuffix('_0_0')}" if stub else Path(words[0]).name
            processes[name] = Held(
                pid=process.pid,
                rss=process.memory_info().rss,
                descriptors=process.num_fds(),
                threads=process.num_threads(),
            )
            files |= mapped(process.pid)
    shared = 0
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            shared += os.stat(file).st_blocks * 512
    return Sample(at=time.monotonic(), processes=processes, shared=shared)


def mapped(pid: int) -> set[str]:
    """Return the files in /dev/shm that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/" in line}
    return {path for path in paths if path.startswith("/dev/shm/")}


def cpu_seconds() -> tuple[float, float]:
    """Return the seconds of all cores since they started, and those that a hypervisor took."""
    spent = psutil.cpu_times()
    return sum(spent), getattr(spent, "steal", 0.0)


def in_flight(server: Server) -> dict[str, float]:
    """Return the requests that run or wait, by metric and model."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
        return dict(_in_flight(answer.read().decode()))


def _in_flight(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        if family.name in IN_FLIGHT:
            for found in family.samples:
                yield f"{family.name} {found.labels['model']}", found.value
