"""The systems without a server: each a worker in the environment that has its library."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.systems.worker import RunningWorker, running_worker

from support.models import LocalModel


class Engine:
    """Our engine in process, without Triton."""

    name = "ours, engine"
    precision = "bf16"
    serial = False

    def __init__(self, *, model: LocalModel, clients: int, longest: int) -> None:
        """Make room for `clients` requests of `longest` tokens each."""
        self._words = [str(model.folder), str(clients), str(longest)]
        self.settings = f"slots {clients}, max_total_tokens {longest}, without Triton"

    def prepare(self, *, install: bool) -> None:
        """Nothing is missing."""

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningWorker]:
        """Run it until the block ends."""
        command = [sys.executable, "-m", "benchmarks.systems.engine_worker", *self._words]
        with running_worker(command, folder=folder) as worker:
            yield worker
