"""How a process that is of no use any more ends its server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from triton_hf import runtime
from triton_hf.errors import EXIT_ENGINE

IMAGE = Path(runtime.__file__).parents[1]
ENDING = "from triton_hf.runtime import end_server; end_server('the engine has ended')"


@pytest.fixture
def last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "termination-log"
    monkeypatch.setenv("TERMINATION_LOG", str(file))
    monkeypatch.setenv("PYTHONPATH", str(IMAGE))
    return file


def test_a_process_without_a_tritonserver_ends_itself_and_says_why(last_words: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], capture_output=True, text=True, check=False
    )
    assert ended.returncode == EXIT_ENGINE == 70
    assert ended.stderr == last_words.read_text() == "the engine has ended\n"


def test_a_tritonserver_is_asked_to_end_in_good_order(last_words: Path, tmp_path: Path) -> None:
    # A process is known by the name of its program: a shell under the name of Triton's.
    server = tmp_path / "tritonserver"
    server.symlink_to("/bin/bash")
    script = f"trap 'echo drained; exit 0' TERM; {sys.executable} -c \"{ENDING}\"; sleep 30 & wait"
    ended = subprocess.run(
        [str(server), "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "drained\n")
    assert last_words.read_text() == "the engine has ended\n"


def test_a_log_that_cannot_be_written_stops_nobody(last_words: Path) -> None:
    script = "from triton_hf.runtime import log, log_fault; log('a'); log_fault(OSError()); "
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", f"{script} print('alive')"],
            stdout=subprocess.PIPE,
            stderr=full,
            check=False,
        )
    assert ended.stdout == b"alive\n"
    assert not last_words.exists()
