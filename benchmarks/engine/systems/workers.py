"""The systems without a server: each a worker in the environment that has its library."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.engine.systems import machine
from benchmarks.engine.systems.environments import environment
from benchmarks.engine.systems.llama_cpp import ensure_gguf
from benchmarks.engine.systems.worker import RunningWorker, running_worker
from tools.demo_model import LocalModel

OPENVINO = "2026.4.1"


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
        command = [sys.executable, "-m", "benchmarks.engine.systems.engine_worker", *self._words]
        with running_worker(command, folder=folder) as worker:
            yield worker


class ContinuousBatching:
    """transformers' own continuous batching, in process."""

    name = "transformers CB"
    precision = "bf16"
    serial = False
    settings = "sdpa, page_size 64, max_batch_tokens 512, no CUDA graphs, no compilation"

    def __init__(self, *, model: LocalModel, clients: int, longest: int) -> None:
        """Make room for `clients` requests of `longest` tokens each."""
        self._words = [str(model.folder), str(clients), str(longest)]

    def prepare(self, *, install: bool) -> None:
        """Nothing is missing."""

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningWorker]:
        """Run it until the block ends."""
        command = [
            sys.executable,
            "-m",
            "benchmarks.engine.systems.continuous_worker",
            *self._words,
        ]
        with running_worker(command, folder=folder) as worker:
            yield worker


class OpenVino:
    """OpenVINO GenAI's continuous batching, in process."""

    serial = False

    def __init__(self, *, model: LocalModel, kind: str, clients: int, longest: int) -> None:
        """Read weights of this kind of GGUF (`f16` or `q8_0`).

        It computes in bf16 where the processor does; elsewhere it ends when it is asked to.
        """
        self.name = f"OpenVINO {kind}"
        self._computes = "bf16" if machine.has_bf16() else "f32"
        self.precision = self._computes if kind == "f16" else f"{kind}, {self._computes}"
        self._model, self._kind, self._clients = model, kind, clients
        self._threads = len(os.sched_getaffinity(0))
        self.settings = f"openvino-genai {OPENVINO}, {self._threads} threads, from GGUF {kind}"

    def prepare(self, *, install: bool) -> None:
        """Install it and make its weights."""
        requirements = [f"openvino-genai=={OPENVINO}"]
        self._python = environment(f"openvino-genai-{OPENVINO}", requirements, install=install)
        self._weights = ensure_gguf(self._model, self._kind, install=install)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningWorker]:
        """Run it until the block ends."""
        words = [str(self._weights), str(self._clients), str(self._threads), self._computes]
        command = [str(self._python), "-m", "benchmarks.engine.systems.openvino_worker", *words]
        with running_worker(command, folder=folder) as worker:
            yield worker
