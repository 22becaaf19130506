"""The probes, against a small HTTP server and heartbeat files."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_hf.server import probe


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    server.status = 200  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TRITON_HF_HTTP_PORT", str(server.server_address[1]))
    monkeypatch.setenv("TRITON_HF_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "health").mkdir()
    yield server
    server.shutdown()
    server.server_close()


def beat(folder: Path, **changes: object) -> None:
    values = {"pid": os.getpid(), "state": "serving", "running": 0, "waiting": 0}
    values["monotonic"] = time.monotonic()
    (folder / "health" / "m.json").write_text(json.dumps({**values, **changes}))


LONG_AGO = -10_000.0


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("live", {}, None),
        ("ready", {}, None),
        ("live", {"running": 4}, None),  # busy and alive
        ("live", {"monotonic": LONG_AGO}, "silent for"),  # idle models beat as well
        ("live", {"running": 1, "waiting": 2, "monotonic": LONG_AGO}, "with 3 requests queued"),
        ("live", {"state": "loading", "monotonic": LONG_AGO}, None),
        ("ready", {"monotonic": LONG_AGO}, "silent for"),
        ("startup", {"state": "loading"}, "model 'm' is loading"),
        ("live", {"pid": 2**22 + 1}, "has died"),
        ("ready", {"pid": 2**22 + 1}, "has died"),
        ("live", {"pid": "x"}, "cannot be read"),
        ("live", {"state": "failed", "reason": "the engine has ended: why"}, "model 'm': the eng"),
        ("ready", {"state": "failed", "reason": "the engine has ended: why"}, "has ended: why"),
    ],
)
@pytest.mark.usefixtures("triton")
def test_a_heartbeat_is_judged(tmp_path: Path, kind: str, changes: dict, words: str | None) -> None:
    beat(tmp_path, **changes)
    problem = probe.find_problem(kind)
    assert problem is None if words is None else words in (problem or "")


@pytest.mark.parametrize(
    ("silent", "stale", "ready", "live"),
    [
        (10, 60, True, True),
        (30, 60, True, True),
        (50, 60, False, True),
        (70, 60, False, False),
        (15, 10, False, False),
    ],
)
@pytest.mark.usefixtures("triton")
def test_a_silent_model_leaves_the_rotation_before_it_is_restarted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    silent: float,
    stale: float,
    ready: bool,
    live: bool,
) -> None:
    monkeypatch.setenv("TRITON_HF_STALE_SECONDS", str(stale))
    beat(tmp_path, monotonic=time.monotonic() - silent)
    assert (probe.find_problem("ready") is None) is ready
    assert (probe.find_problem("live") is None) is live


@pytest.mark.usefixtures("triton")
def test_a_zombie_counts_as_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", ""])
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    beat(tmp_path, pid=child.pid)
    assert "has died" in (probe.find_problem("live") or "")
    child.wait()


def test_a_server_that_is_not_ready_or_gone_fails(triton) -> None:
    triton.status = 400
    assert "/v2/health/ready says 400" in (probe.find_problem("ready") or "")
    triton.shutdown()
    triton.server_close()
    assert "does not answer" in (probe.find_problem("live") or "")


def test_what_a_model_says_of_itself_comes_before_what_the_server_does_not_say(
    triton, tmp_path: Path
) -> None:
    triton.shutdown()
    triton.server_close()
    beat(tmp_path, state="failed", reason="the engine has ended: why")
    assert probe.find_problem("live") == "model 'm': the engine has ended: why"
    beat(tmp_path, state="loading")
    assert probe.find_problem("startup") == "model 'm' is loading"


def test_it_runs_with_the_standard_library_alone(triton) -> None:
    command = [sys.executable, "-I", "-S", probe.__file__]
    assert subprocess.run([*command, "live"], check=False).returncode == 0
    assert subprocess.run([*command, "well"], check=False, capture_output=True).returncode == 2
