"""Process 1 of a node: private mounts, a host name, and its daemons, each in a loop.

Runs alone inside the node's namespaces with standard library and nothing else; its one argument
is a JSON file with what the node is (see `node.Node.start`). Ends with the node.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

KUBELET_CONFIG = Path("/var/lib/kubelet/config.yaml")
KUBELET_FLAGS = Path("/var/lib/kubelet/kubeadm-flags.env")
PLUGINS = Path("/var/lib/kubelet/device-plugins")  # made by the kubelet; plugins register here
KUBECONFIGS = ("/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf")
RESTART_SECONDS = 1.0


def main() -> int:
    """Set the node up and keep its daemons running until it is stopped."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    mount(settings)
    socket.sethostname(settings["name"])
    daemons = Daemons(settings)
    signal.signal(signal.SIGTERM, daemons.stop)
    # SIGUSR1 stops the kubelet and keeps it down, SIGUSR2 lets it run again: a fault of a node.
    signal.signal(signal.SIGUSR1, lambda *_: daemons.hold_kubelet())
    signal.signal(signal.SIGUSR2, lambda *_: daemons.release_kubelet())
    daemons.run()
    return 0


def mount(settings: dict[str, object]) -> None:
    """Put the node's own folders over those that Kubernetes uses."""
    _mount("--make-rshared", "/")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for folder in ("/run/netns", "/run/lock"):
        os.makedirs(folder, exist_ok=True)
    binds = settings["binds"]
    assert isinstance(binds, dict)  # noqa: S101
    for inside, outside in binds.items():
        _mount("--bind", str(outside), inside)
        _mount("--make-rshared", inside)


class Daemons:
    """containerd, kubelet, device plugin: started, started again when they end."""

    def __init__(self, settings: dict[str, object]) -> None:
        """Remember the settings; nothing is started yet."""
        self.settings = settings
        self.stopping = False
        self.held = False
        self.children: dict[str, int] = {}
        self.started: dict[str, float] = {}

    def run(self) -> None:
        """Start what should run, reap what ended, until stopped."""
        while not self.stopping:
            self._start("containerd", self._containerd())
            if self._kubelet_ready() and not self.held:
                self._start("kubelet", self._kubelet())
            if (words := self.settings["device_plugin"]) and PLUGINS.is_dir():
                assert isinstance(words, list)  # noqa: S101
                self._start("device-plugin", words)
            self._reap()
            time.sleep(0.2)
        for pid in self.children.values():
            os.kill(pid, signal.SIGKILL)

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        """End the loop; every process of the node ends with process 1."""
        self.stopping = True

    def hold_kubelet(self) -> None:
        """Kill the kubelet and do not start it again."""
        self.held = True
        if pid := self.children.get("kubelet"):
            os.kill(pid, signal.SIGKILL)

    def release_kubelet(self) -> None:
        """Start the kubelet again."""
        self.held = False

    def _start(self, name: str, words: list[str]) -> None:
        if name in self.children:
            return
        if time.monotonic() - self.started.get(name, -60.0) < RESTART_SECONDS:
            return
        log = open(f"{self.settings['folder']}/{name}.log", "ab")  # noqa: SIM115 - the child's
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        child.returncode = 0  # reaped below, together with the orphans of the node
        self.children[name] = child.pid
        self.started[name] = time.monotonic()

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.children = {n: p for n, p in self.children.items() if p != pid}

    def _containerd(self) -> list[str]:
        return ["containerd", "--config", f"{self.settings['folder']}/containerd.toml"]

    def _kubelet_ready(self) -> bool:
        return KUBELET_CONFIG.exists() and any(Path(name).exists() for name in KUBECONFIGS)

    def _kubelet(self) -> list[str]:
        flags = KUBELET_FLAGS.read_text().partition("=")[2].strip().strip('"')
        return [
            str(self.settings["kubelet"]),
            f"--config={KUBELET_CONFIG}",
            f"--kubeconfig={KUBECONFIGS[0]}",
            f"--bootstrap-kubeconfig={KUBECONFIGS[1]}",
            *shlex.split(flags),
        ]


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    # Ends with the process that made the namespaces, even when that one is killed.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    sys.exit(main())
