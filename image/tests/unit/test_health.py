"""The heartbeat: what it says, and that a full disk does not stop it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_hf.health import Heartbeat

FULL = Path("/dev/full")


@pytest.fixture
def heartbeat(tmp_path: Path) -> Heartbeat:
    return Heartbeat(tmp_path / "m.json")


def fill_disk(folder: Path) -> None:
    """Let every new file of the heartbeat meet a full disk."""
    (folder / "m.partial").symlink_to(FULL)


def said(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "m.json").read_text()))


def test_a_full_disk_does_not_stop_it(heartbeat: Heartbeat, tmp_path: Path, capsys) -> None:
    heartbeat.beat(state="loading", running=0, waiting=0)
    fill_disk(tmp_path)
    heartbeat.beat(state="serving", running=1000, waiting=1000)
    assert said(tmp_path)["state"] == "serving"
    heartbeat.beat(state="serving", running=0, waiting=0)
    assert said(tmp_path)["running"] == 0
    heartbeat.fail("a long reason " * 10)
    assert said(tmp_path)["reason"] == "a long reason " * 10
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_beat_that_cannot_be_written_at_all_raises_nothing(
    heartbeat: Heartbeat, tmp_path: Path, capsys
) -> None:
    fill_disk(tmp_path)
    (tmp_path / "m.json").mkdir()
    for state in ("loading", "serving"):
        heartbeat.beat(state=state, running=0, waiting=0)
    assert "cannot be written as usual" in capsys.readouterr().err
