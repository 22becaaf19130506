"""`make up`: its order, what it says before it changes anything, and the record that it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import preflight
from tools import place, up
from tools.steps import Step
from tools.wait import until


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no other cluster, and a place to come back to."""
    monkeypatch.setenv("TRITON_CACHE", str(tmp_path))
    for name in ("KUBECONFIG", "PUSH", "IMAGE_REGISTRY", "VALUES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.chdir(place.ROOT)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return tmp_path


# The first line is for a test run in the background of a shell, which has SIGINT ignored.
STOPPED = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
import sys
from cluster import preflight
from tools import up
from tools.steps import Step
preflight.faults = lambda **_: []
long = "sleep 300 & echo $! >$1.new; mv $1.new $1; wait"
up.embedded_steps = lambda: [Step(name="image", command=["sh", "-c", long, "sh", sys.argv[1]])]
sys.exit(up.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_when_it_is_stopped_its_steps_end_and_it_says_how_to_go_on(
    folder: Path, number: signal.Signals
) -> None:
    started = folder / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(started)],
        env={**os.environ, "PYTHONPATH": place.python_path()},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(started.exists, seconds=20, every=0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.endswith("make up: stopped; run it again to go on from here\n")
    assert not alive(int(started.read_text()))


def words(step: Step) -> list[str]:
    assert not callable(step.command)
    return list(step.command)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def before(name: str, steps: dict[str, Step]) -> set[str]:
    """Return all steps that have ended when one starts."""
    found = set(steps[name].after)
    return found.union(*(before(each, steps) for each in found))


def test_images_and_cluster_are_made_when_the_packages_that_make_them_are_there() -> None:
    steps = {step.name: step for step in up.embedded_steps()}
    makers = [
        name
        for name, step in steps.items()
        if up.BUILD in words(step) or ("cluster" in words(step) and name != "packages")
    ]
    assert {"image", "image-light", "cluster", "hub"} <= set(makers)
    for name in makers:
        assert "packages" in before(name, steps), name


def test_what_needs_the_environment_starts_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "PYTHON", "python of the environment")
    steps = {step.name: step for step in up.embedded_steps()}
    for name, step in steps.items():
        if up.PYTHON in words(step):
            assert "environment" in before(name, steps), name


def test_on_an_unfit_machine_it_says_each_fault_fails_and_makes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(preflight, "memory_bytes", lambda: 2e9)

    assert up.main() == 1

    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("make up: ") for line in lines)
    assert any("root is needed" in line for line in lines)
    assert any("GB of memory are needed" in line for line in lines)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("false", 1)])
def test_a_run_leaves_its_times_as_json_also_when_it_failed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, code: int
) -> None:
    here = place.Place(kubeconfig=folder / "none", push="", pull="", embedded=True)
    monkeypatch.setattr(preflight, "faults", lambda **_: [])
    monkeypatch.setattr(up, "embedded_steps", lambda: [Step(name="cluster", command=["true"])])
    monkeypatch.setattr(up, "build_command", lambda *_, **__: ["true"])
    monkeypatch.setattr(up, "PYTHON", command)
    monkeypatch.setattr(place, "current", lambda: here)

    assert up.main() == code

    record = json.loads((folder / "logs" / "up.json").read_text())
    assert set(record["steps"]) == {"cluster", "push-full", "push-light", "release"}
    assert record["longest_silence"] < 10
