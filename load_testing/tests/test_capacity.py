"""The search finds the load that a server holds, and says what follows from it."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, environment, known_server
from test_record import some_record

from triton_load import capacity, record
from triton_load.capacity import Step


def searched(limit: float, **options: float | bool) -> list[Step]:
    chosen = {"start": 1.0, "highest": 1000.0, "precision": 0.1, "whole": False, **options}
    return capacity.search(
        lambda load: Step(load=load, held=load <= limit, run=some_record()),
        **chosen,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("limit", [1, 1.05, 3, 7.7, 42, 999])
def test_the_highest_load_is_known_to_the_precision(limit: float) -> None:
    steps = searched(limit)
    good = max(step.load for step in steps if step.held)
    bad = min(step.load for step in steps if not step.held)
    assert good <= limit < bad
    assert bad - good <= 0.1 * good
    assert len(steps) <= 16


def test_users_are_whole_and_the_last_gap_is_one() -> None:
    steps = searched(5, whole=True, precision=0.01)
    assert all(step.load == int(step.load) for step in steps)
    assert max(step.load for step in steps if step.held) == 5
    assert min(step.load for step in steps if not step.held) == 6


def test_a_server_that_holds_everything_is_asked_up_to_the_highest() -> None:
    steps = searched(math.inf, highest=12)
    assert [step.load for step in steps] == [1, 2, 4, 8, 12]


def test_a_server_that_holds_nothing_has_no_capacity() -> None:
    steps = searched(0.5)
    assert len(steps) == 1
    assert capacity.conclude(steps, users=None, think_time=0) is None


def test_target_and_replicas_follow_from_the_best_step() -> None:
    # 3 requests/s of 0.2 s each; 300 users who think for 9.8 s send 30 requests/s.
    steps = [Step(load=3, held=True, run=some_record())]
    answer = capacity.conclude(steps, users=300, think_time=9.8)
    assert answer is not None
    assert answer.in_flight == pytest.approx(0.6, rel=1e-2)
    assert answer.target == 1
    assert answer.replicas == math.ceil(30 / (3 * capacity.HEADROOM))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**environment(), "PYTHONPATH": str(ROOT / "load_testing"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "triton_load.capacity", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_a_server_of_known_capacity_is_measured(tmp_path: Path) -> None:
    # 2 slots of 100 ms: 20 requests/s is its limit, and near it Poisson arrivals queue.
    goals = tmp_path / "goals.yaml"
    goals.write_text("p95 latency: 1 s\nerror ratio: 0\n")
    with known_server(ttft_ms=98, gap_ms=2, tokens=2, slots=2) as server:
        done = run(
            *(f"--out={tmp_path / 'out'}", "--start=5", "--precision=0.5", "--step-time=6"),
            *("--stop-timeout=30", "--for-users=100", "--think-time=5", "--", "--model=known"),
            *(f"--host={server.host}", "--client=stream", f"--objectives={goals}"),
            *("--arrival=constant", "--max-lag=500"),
        )
    assert done.returncode == 0, done.stdout + done.stderr
    found = record.read(tmp_path / "out")
    answer = found.notes["answer"]
    assert 10 <= answer["load"] <= 20 < answer["failed"] + 5
    assert answer["target"] >= 1
    assert answer["replicas"] >= 1
    assert "one replica holds" in done.stdout
    assert len(found.notes["steps"]) >= 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--", "--rate=3", "--objectives=x"], "--rate=3 is chosen by the search"),
        (["--", "--host=http://x"], "within which objectives?"),
        (["--", "--objectives=none.yaml", "--model=m"], "--host is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    done = run(f"--out={tmp_path}", *words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
