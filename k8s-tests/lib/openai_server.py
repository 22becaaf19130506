"""The OpenAI API as a process beside a real tritonserver, for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import openai

from embedded_triton.server import free_ports, stop_group
from lib.triton_client import eventually
from tools.place import ROOT

IMAGE = ROOT / "image"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Api:
    """A running API."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Base address of `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, *, key: str = "none") -> openai.OpenAI:
        """Return OpenAI's own client; it tries nothing twice."""
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8")

    def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, Mapping[str, str]]:
        """POST a body (JSON or raw bytes); return status, body and headers."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        request = urllib.request.Request(f"{self.url}{path}", data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, error.read(), dict(error.headers)


@contextlib.contextmanager
def running_api(
    *,
    grpc_port: int,
    workdir: Path,
    arguments: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Api]:
    """Run `triton-hf openai` on loopback until the block ends."""
    port, log = free_ports().http, workdir / "openai.log"
    command = [sys.executable, "-m", "triton_hf", "openai", "--triton", f"127.0.0.1:{grpc_port}"]
    command += ["--address", "127.0.0.1", "--port", str(port), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(IMAGE), **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    api = Api(process=process, port=port, log=log)
    try:
        eventually(lambda: _live(api))
        yield api
    finally:
        stop_group(process)


def _live(api: Api) -> bool:
    if api.process.poll() is not None:
        raise RuntimeError(f"the API ended at its start: {api.output()}")
    with (
        contextlib.suppress(OSError),
        urllib.request.urlopen(f"http://127.0.0.1:{api.port}/health/live", timeout=2) as answer,
    ):
        return bool(answer.status == 200)
    return False
