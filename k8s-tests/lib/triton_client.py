"""What tests share: a client of a real tritonserver, streams, waiting, and the native step."""

from __future__ import annotations

import ctypes
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedded_triton.server import Server
from triton_hf.runtime import cache_root
from triton_native.library import CompileError, UnavailableError, load_library


def need_native_step() -> ctypes.CDLL:
    """Return the library of the native step; skip the test where something is missing for it.

    Raises:
        CompileError: Nothing is missing, its sources are at fault.
    """
    try:
        return load_library(cache=cache_root())
    except CompileError:
        raise
    except UnavailableError as error:
        pytest.skip(f"no native step: {error}")


class Client:
    """Speaks to a server and knows its metrics."""

    def __init__(self, server: Server) -> None:
        """Speak to this server."""
        self.server = server

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """POST a body (JSON or raw bytes); return status and answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.server.url}{path}", data=data)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read().removeprefix(b"data: ") or b"{}")

    def infer(self, model: str, **tensors: Any) -> tuple[int, dict[str, Any]]:
        """Send each keyword as a text tensor with one row per item."""
        parameters = tensors.pop("parameters", {})
        return self.post(
            f"/v2/models/{model}/infer",
            {
                "inputs": [
                    {
                        "name": name,
                        "datatype": "BYTES",
                        "shape": [len(rows), 1],
                        "data": [[row] for row in rows],
                    }
                    for name, rows in tensors.items()
                ],
                "parameters": parameters,
            },
        )

    def generate(self, model: str, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Send the fields to `/generate`."""
        return self.post(f"/v2/models/{model}/generate", fields)

    def stream(self, model: str, **fields: Any) -> list[dict[str, Any]]:
        """Return all events of `/generate_stream`."""
        return list(self.open_stream(model, **fields).events())

    def open_stream(self, model: str, **fields: Any) -> Stream:
        """Open a stream and return it before its first event."""
        return Stream(self.server, model, fields)

    def metrics(self, model: str) -> dict[str, float]:
        """Values of one model; a label other than `model` is part of the name."""
        with urllib.request.urlopen(self.server.metrics_url, timeout=10) as answer:
            text = answer.read().decode()
        values = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = dict(sample.labels)
                labels.pop("model_name", None)  # the same, in the gauges that routers read
                ours = sample.name.startswith(("triton_hf", "vllm:"))
                if ours and labels.pop("model", None) == model:
                    suffix = "".join(f"{{{value}}}" for value in labels.values())
                    values[sample.name + suffix] = sample.value
        return values


class Stream:
    """One open `/generate_stream` request."""

    def __init__(self, server: Server, model: str, fields: dict[str, Any]) -> None:
        """Send the request."""
        self._connection = http.client.HTTPConnection("127.0.0.1", server.ports.http, timeout=60)
        path = f"/v2/models/{model}_stream/generate_stream"
        self._connection.request("POST", path, json.dumps(fields))
        self.answer = self._connection.getresponse()
        self.status = self.answer.status

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events as they come."""
        for line in self.answer:
            if line.startswith(b"data:"):
                yield json.loads(line[5:])

    def close(self) -> None:
        """Go away, as a client that lost interest."""
        self.answer.close()
        self._connection.close()


def eventually(check: Callable[[], Any], *, seconds: float = 30) -> Any:
    """Wait until a check neither fails nor returns False; else raise its last failure."""
    end = time.monotonic() + seconds
    while True:
        try:
            result = check()
            if result is not False:
                return result
            raise AssertionError("still false")
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
