"""`make down` and `make clean` of the embedded cluster: what goes, and what stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import down, place


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run; each succeeds, unless there is a file `fails`."""
    ran: list[list[str]] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(words[1:])
        fails = tmp_path / "fails"
        return subprocess.CompletedProcess(words, int(fails.exists()))

    monkeypatch.setenv("TRITON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    (tmp_path / "cache" / "bin").mkdir(parents=True)
    return ran


def test_down_keeps_programs_and_images(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["down"])
    assert down.main() == 0
    assert commands == [["-m", "cluster", "down"]]
    assert (place.cache() / "bin").is_dir()


def test_clean_removes_the_cluster_with_its_images_those_that_were_built_and_the_caches(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["down", "--all"])
    assert down.main() == 0
    assert commands == [["-m", "cluster", "reset"], ["-m", "tools.image_build", "--remove-all"]]
    assert not place.cache().exists()


def test_clean_keeps_the_caches_when_the_cluster_could_not_be_removed(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fails").touch()
    monkeypatch.setattr(sys, "argv", ["down", "--all"])
    assert down.main() == 1
    assert commands == [["-m", "cluster", "reset"]]
    assert (place.cache() / "bin").is_dir()
