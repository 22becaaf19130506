"""A server that is told to end finishes what it has begun, however the client came."""

from __future__ import annotations

import json
import queue
import signal
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc

from embedded_triton.server import Server, running_server
from lib.pooling_models import Pooled
from lib.triton_client import Client, eventually
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec

TOKENS = 100
PARAMETERS = {"ttft_ms": "5", "inter_token_ms": "20", "slots": "8", "max_tokens": str(TOKENS)}


def by_grpc(server: Server, begun: Callable[[], None]) -> int:
    """Stream over gRPC; return how many tokens came."""
    events: queue.Queue[Any] = queue.Queue()
    tensor = tritonclient.grpc.InferInput("user_message", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[b"a b"]], dtype=object))
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}") as client:
        client.start_stream(lambda result, error: events.put(error or result))
        client.async_stream_infer("slow_stream", [tensor])
        count = 0
        while True:
            event = events.get(timeout=30)
            if isinstance(event, Exception):
                raise event
            count += 1
            if count == 1:
                begun()
            if event.as_numpy("finish_reason").item():
                return int(event.as_numpy("completion_tokens").item())


def by_http(server: Server, begun: Callable[[], None]) -> int:
    """Stream over HTTP; return how many tokens came."""
    url = f"{server.url}/v2/models/slow_stream/generate_stream"
    with urllib.request.urlopen(url, data=b'{"user_message": "a b"}', timeout=30) as answer:
        last: dict[str, Any] = {}
        for line in answer:
            if line.startswith(b"data:"):
                if not last:
                    begun()
                last = json.loads(line[5:])
        assert last["finish_reason"] == "length"
        return int(last["completion_tokens"])


def triton_process(server: Server) -> psutil.Process:
    """Return tritonserver itself, whatever started it."""
    leader = psutil.Process(server.process.pid)
    (found,) = [
        process
        for process in (leader, *leader.children(recursive=True))
        if process.name() == "tritonserver"
    ]
    return found


def taken(client: Client) -> float:
    """Return how many rows the model `slow` has taken so far."""
    found = client.metrics("slow")
    names = ("requests_running", "requests_waiting", "requests_finished_total{stop}")
    return sum(found.get(f"triton_hf_{name}", 0.0) for name in names)


def test_embeddings_that_wait_when_the_server_is_told_to_end_are_answered(
    pooled: Pooled, tmp_path: Path
) -> None:
    spec = ModelSpec(
        name="slow",
        task="embed",
        repository="org/embedder",
        revision="0" * 40,
        parameters={"slots": "1", "device": "cpu"},
    )
    write_model(tmp_path / "models", spec)
    texts = [f"text {number}" for number in range(60)]
    with (
        running_server(
            arguments=[f"--model-repository={tmp_path / 'models'}"],
            workdir=tmp_path,
            environment={"TRITON_HF_STORE": str(pooled.store), "HF_HUB_OFFLINE": "1"},
            wait_seconds=400,
        ) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        client = Client(server)
        asked = [pool.submit(client.infer, "slow", text=texts) for _ in range(8)]
        # Triton resets connections that come after the signal, so all have to be taken before it.
        eventually(lambda: taken(client) == 8 * len(texts), seconds=60)
        triton_process(server).send_signal(signal.SIGTERM)
        for answer in asked:
            status, body = answer.result(timeout=120)
            assert (status, body["outputs"][0]["shape"][0]) == (200, len(texts)), body
        assert server.process.wait(timeout=60) == 0


@pytest.mark.parametrize("stream", [by_grpc, by_http])
def test_a_stream_that_is_open_when_the_server_is_told_to_end_goes_on_to_its_last_token(
    tmp_path: Path, stream: Callable[[Server, Callable[[], None]], int]
) -> None:
    spec = ModelSpec(name="slow", engine="simulated", parameters=PARAMETERS)
    write_model(tmp_path / "models", spec)
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with (
        running_server(arguments=arguments, workdir=tmp_path) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        triton = triton_process(server)
        tokens = pool.submit(stream, server, lambda: triton.send_signal(signal.SIGTERM))
        assert tokens.result(timeout=60) == TOKENS
        assert server.process.wait(timeout=30) == 0
