"""The registry and the mirror of the Hub: two processes beside the nodes, in the fabric."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import network, plan
from tools.place import ROOT, cache, python_path
from tools.pushed_images import manifest_digest

REGISTRY_CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{address}:{port}", secret: not-a-secret-one-server-only}}
"""


class ServiceError(Exception):
    """A service does not start; the text holds the end of its log."""


def start_registry() -> None:
    """Start the registry if it does not answer; what was pushed is kept in the cache.

    Raises:
        ServiceError: when it does not listen within 30 s.
    """
    folder = plan.state() / "registry"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(
        REGISTRY_CONFIG.format(
            data=folder / "data", address=plan.SERVICES_ADDRESS, port=plan.REGISTRY_PORT
        )
    )
    program = shutil.which("docker-registry") or "docker-registry"
    if not answers(plan.REGISTRY_PORT):
        _drop_replaced(program, config)
    _start("registry", [program, "serve", str(config)], plan.REGISTRY_PORT)


def _drop_replaced(program: str, config: Path) -> None:
    """Free the space of images whose tag was pushed again; only while nobody pushes."""
    words = [program, "garbage-collect", "--delete-untagged", str(config)]
    with (plan.state() / "registry.log").open("ab") as log:
        # An empty registry has nothing to collect, which it calls an error.
        subprocess.run(words, stdout=log, stderr=log, check=False)


def pushed_digests() -> set[str]:
    """Return the digests of all manifests that have a tag in the registry."""
    base = f"http://{plan.SERVICES_ADDRESS}:{plan.REGISTRY_PORT}/v2"

    def get(path: str) -> Any:
        with urllib.request.urlopen(f"{base}/{path}", timeout=10) as answer:  # noqa: S310
            return json.load(answer)

    return {
        manifest_digest(f"{base}/{name}/manifests/{tag}")
        for name in get("_catalog")["repositories"]
        for tag in get(f"{name}/tags/list")["tags"] or ()
    }


def start_hub() -> None:
    """Start the mirror of the Hub if it does not answer.

    Raises:
        ServiceError: when its model cannot be made, or it does not listen within 120 s.
    """
    if answers(plan.HUB_PORT):
        return
    python = ROOT / ".venv" / "bin" / "python"
    words = [
        *(str(python if python.exists() else sys.executable), "-m", "tools.hub_mirror"),
        *("--listen", f"{plan.SERVICES_ADDRESS}:{plan.HUB_PORT}"),
        *("--root", str(cache() / "hub")),
    ]
    # Here, because inside the fabric there is no way out to download anything.
    env = {**os.environ, "PYTHONPATH": python_path()}
    if subprocess.run([*words, "--fill"], env=env, cwd=ROOT, check=False).returncode:
        raise ServiceError("the Hub mirror has no model to serve; the message above says why")
    _start("hub", words, plan.HUB_PORT, seconds=120)


def stop() -> None:
    """End both."""
    for name in ("registry", "hub"):
        file = plan.state() / f"{name}.pid"
        if (pid := _pid(file)) is not None:
            os.kill(pid, signal.SIGTERM)
        file.unlink(missing_ok=True)


def answers(port: int) -> bool:
    """Return whether something listens on a port of the fabric."""
    with contextlib.suppress(OSError):
        socket.create_connection((plan.SERVICES_ADDRESS, port), timeout=1).close()
        return True
    return False


def _start(name: str, words: Sequence[str], port: int, *, seconds: float = 30) -> None:
    if answers(port):
        return
    file = plan.state() / f"{name}.log"
    with file.open("ab") as log:
        child = subprocess.Popen(
            [*network.enter(plan.FABRIC), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path()},
            cwd=ROOT,
        )
    (plan.state() / f"{name}.pid").write_text(str(child.pid))
    start = time.monotonic()
    shown = start
    while not answers(port):
        now = time.monotonic()
        if child.poll() is not None or now - start > seconds:
            said = file.read_text(errors="replace")[-1500:]
            raise ServiceError(f"the {name} does not answer on port {port}: {said}")
        if now - shown > 8:
            shown = now
            print(f"cluster: waiting for the {name}, {now - start:.0f} s", file=sys.stderr)
        time.sleep(0.1)


def _pid(file: Path) -> int | None:
    """Return the process of a pid file when it still is in the fabric's namespace."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(file.read_text())
        fabric = os.stat(f"/run/netns/{plan.FABRIC}").st_ino
        if os.stat(f"/proc/{pid}/ns/net").st_ino == fabric:
            return pid
    return None
