"""`./run_server.sh` with the embedded Triton, from its start to Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from embedded_triton.server import Ports, Server, free_ports
from lib.triton_client import Client, eventually

ROOT = Path(__file__).resolve().parents[3]
MARK = "RUN_SERVER_TEST"


@dataclass
class Run:
    """The script, run as a terminal runs it: in a process group of its own."""

    process: subprocess.Popen[str]
    mark: str
    client: Client
    openai_port: int
    lines: list[str] = field(default_factory=list)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.lines
            return any("ready after" in line for line in self.lines)

        eventually(ready, seconds=120)

    def processes(self) -> dict[int, str]:
        """Return everything that the script started, by pid, and that still runs."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    free, mark = free_ports(), uuid.uuid4().hex
    port, openai_port = free.http, free.grpc
    chosen = {"RUNNER": "embedded", "PORT": str(port), "MODELS": "simulated", MARK: mark}
    chosen |= {"OPENAI_PORT": str(openai_port)}
    process = subprocess.Popen(
        [str(ROOT / "run_server.sh")],
        env={**os.environ, **chosen},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    ports = Ports(http=port)
    log = tmp_path / "none"
    server: Any = Server(process=process, ports=ports, runtime=tmp_path, log=log)  # type: ignore[arg-type]
    made = Run(process=process, mark=mark, client=Client(server), openai_port=openai_port)
    reader = threading.Thread(target=lambda: made.lines.extend(process.stderr or ()), daemon=True)
    reader.start()
    yield made
    for pid in made.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    reader.join(10)


def test_it_becomes_ready_answers_and_ctrl_c_leaves_no_process(run: Run) -> None:
    run.wait_ready()
    status, answer = run.client.infer(
        "simulated", system_message=["be brief"], user_message=["why is it"]
    )
    assert status == 200, answer
    assert "tritonserver" in run.processes().values()
    url = f"http://127.0.0.1:{run.openai_port}/v1"
    with openai.OpenAI(base_url=url, api_key="none") as api:
        assert [model.id for model in api.models.list()] == ["simulated"]
    assert any(f"OpenAI's API on http://localhost:{run.openai_port}/v1" in x for x in run.lines)

    os.killpg(run.process.pid, signal.SIGINT)

    assert run.process.wait(30) == 0
    assert run.processes() == {}


def test_when_the_server_ends_by_itself_that_is_said_and_the_exit_code_is_not_0(run: Run) -> None:
    run.wait_ready()
    (server,) = (pid for pid, name in run.processes().items() if name == "tritonserver")

    os.kill(server, signal.SIGKILL)

    assert run.process.wait(30) != 0
    eventually(lambda: run.processes() == {}, seconds=10)
    assert any("tritonserver ended by itself" in line for line in run.lines)
