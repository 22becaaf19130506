"""Steps of the cluster speak while they go on, and not after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import lifecycle
from tools.place import python_path
from tools.wait import until

# A process that takes over what is left without a parent, as systemd of a user and containers do.
SUBREAPER = """
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stderr=subprocess.PIPE)
print(child.pid, flush=True)
# Ends with the last process that may write: the step's, and the one that speaks for it.
print(len(child.stderr.read()), flush=True)
"""
STEP = """
import time
from cluster import lifecycle
lifecycle.SILENCE = 0.1
with lifecycle.step("kubeadm init"):
    time.sleep(300)
"""

ENDED = """
import sys, time
from cluster import __main__ as command, lifecycle
def run(_):
    with lifecycle.step("kubeadm init"):
        print("started", flush=True)
        time.sleep(300)
command.run = run
sys.argv = ["cluster", "up"]
sys.exit(command.main())
"""


def test_sigterm_ends_a_command_as_it_ends_itself_and_nothing_speaks_on() -> None:
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(
        [sys.executable, "-c", ENDED], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.terminate()
        # The output ends with the last process that holds it: the one that speaks for the step.
        assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 143


def test_a_long_step_says_that_it_goes_on_and_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lifecycle, "SILENCE", 0.05)
    heard = ""

    def spoken() -> bool:
        nonlocal heard
        heard += capfd.readouterr().err
        return "cluster: kubeadm init ... 0 s" in heard

    with lifecycle.step("kubeadm init"):
        until(spoken, seconds=20, every=0.05)

    assert capfd.readouterr().err.splitlines()[-1].startswith("cluster: kubeadm init, ")


def test_nothing_speaks_for_a_step_that_was_killed_under_a_subreaper() -> None:
    words = [sys.executable, "-c", SUBREAPER, STEP]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    with subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, text=True, cwd=Path("/")
    ) as reaper:
        assert reaper.stdout is not None
        step = int(reaper.stdout.readline())
        children = Path(f"/proc/{step}/task/{step}/children")
        until(lambda: children.read_text() != "", seconds=20, every=0.05)
        os.kill(step, signal.SIGKILL)
        out, _ = reaper.communicate(timeout=20)
    assert out.strip().isdigit()
