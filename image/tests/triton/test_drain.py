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
        leader = psutil.Process(server.process.pid)
        (triton,) = [
            process
            for process in (leader, *leader.children(recursive=True))
            if process.name() == "tritonserver"
        ]
        tokens = pool.submit(stream, server, lambda: triton.send_signal(signal.SIGTERM))
        assert tokens.result(timeout=60) == TOKENS
        assert server.process.wait(timeout=30) == 0
