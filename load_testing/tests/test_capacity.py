"""The capacity of a server whose capacity is known, and what follows from it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.locust_runs import ROOT, environment, known_server
from lib.records import some_record
from triton_load import capacity, record, sizing, steps
from triton_load.errors import LoadTestError
from triton_load.record import Second, Verdict
from triton_load.search import BLIND, BREAKS, HOLDS, Step
from triton_load.sizing import Wish

BEST = Step(level=40, result=HOLDS, in_flight=20, requests_per_second=40, latency=0.5)


@pytest.mark.parametrize(
    ("wish", "replicas"),
    [
        (Wish(rate=32), 1),  # 40 requests/s, of which 8 stay free
        (Wish(rate=32.1), 2),
        (Wish(users=16), 1),  # each asks twice a second: 0.5 s an answer, no pause
        (Wish(users=17), 2),
        (Wish(users=160, think=4.5), 1),  # each asks every 5 s
        (Wish(users=161, think=4.5), 2),
        (Wish(), None),
    ],
)
def test_replicas_follow_from_the_rate_or_the_users(wish: Wish, replicas: int | None) -> None:
    assert sizing.answer(BEST, wish).replicas == replicas


def test_several_replicas_are_tested_together_and_told_for_one() -> None:
    found = sizing.answer(BEST, Wish(tested=4, headroom=0.4))
    assert (found.load, found.rate, found.in_flight, found.target) == (10, 10, 5, 3)


def test_a_step_that_dies_is_not_judged_by_the_record_of_an_earlier_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = capacity._parser().parse_args([f"--out={tmp_path}", "--by=users"])
    monkeypatch.setattr(steps, "_finished", lambda command: (-9, "Killed"))
    record.write(some_record(), tmp_path / "01-users-64")
    with pytest.raises(LoadTestError, match="Killed"):
        steps.Runs(options, []).attempt(64)


def judged(result: str, *reasons: str, in_flight: int = 9) -> record.Record:
    seconds = tuple(Second(at=at, offered=5.0, in_flight=in_flight) for at in range(9))
    verdict = Verdict(result=result, reasons=reasons, exit_code=0)
    return dataclasses.replace(some_record(), verdict=verdict, series=seconds)


@pytest.mark.parametrize(
    ("run", "result"),
    [
        (judged("pass"), HOLDS),
        (judged("fail", "p95 ttft is 2 s"), BREAKS),
        (judged("invalid", "only 3 requests ended, at least 9 are needed"), BREAKS),
        (judged("invalid", "7 arrivals exceeded --max-in-flight and never started"), BREAKS),
        (judged("invalid", "the generator was saturated: 90 % of a core"), BLIND),
        (judged("invalid", "only 3 requests ended", "the generator was late"), BLIND),
        (judged("invalid", "only 0 requests ended", in_flight=0), BLIND),
    ],
)
def test_a_step_is_blind_only_when_the_generator_was_at_fault(
    run: record.Record, result: str
) -> None:
    assert steps.step_of(run, level=5).result == result


def test_a_queue_that_grows_breaks_a_step_that_passed() -> None:
    series = tuple(Second(at=at, offered=5.0, in_flight=2 * at) for at in range(30))
    run = dataclasses.replace(judged("pass"), series=series)
    step = steps.step_of(run, level=5)
    assert step.result == BREAKS
    assert step.reasons == ("the queue grows: 29 requests in flight, then 49",)


def begin(*words: str) -> subprocess.Popen[str]:
    env = {**environment(), "PYTHONPATH": str(ROOT / "load_testing"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "triton_load.capacity", *words]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*words: str) -> subprocess.CompletedProcess[str]:
    with begin(*words) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.mark.slow  # `make test` has a search in the cluster
def test_the_capacity_of_a_server_with_four_slots_is_four_users(tmp_path: Path) -> None:
    # 800 ms for each answer: the fifth user makes all of them wait 1 s on average.
    goals = tmp_path / "goals.yaml"
    goals.write_text("mean latency: 900 ms\nerror ratio: 0\n")
    with known_server(ttft_ms=798, gap_ms=2, tokens=2, slots=4) as server:
        done = run(
            *(f"--out={tmp_path / 'out'}", "--by=users", "--start=2", "--precision=0", "--json"),
            *("--step-time=5", "--warm-up=0", "--for-users=17", "--", "--model=known"),
            *(f"--host={server.host}", "--client=stream", f"--objectives={goals}"),
            "--max-lag=500",
        )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["answer"]["load"] == 4
    assert told["answer"]["in_flight"] == pytest.approx(4, abs=0.4)
    assert told["answer"]["target"] in (2, 3)  # a fifth of it stays free
    assert told["answer"]["replicas"] == 6  # 17 users at 3.2 a replica
    assert "at 5 users it breaks: mean latency is" in told["capacity"]
    kept = record.read(tmp_path / "out")
    assert kept.verdict.result == "pass"
    assert len(kept.notes["steps"]) == len(told["steps"]) >= 4
    page = (tmp_path / "out/report.html").read_text()
    assert told["capacity"].split(";")[0] in page
    assert f"autoscaling.target: {told['answer']['target']}" in page
    summary = (tmp_path / "out/summary.txt").read_text()
    for text in (page, summary):
        assert text.count("holds") >= 3
        assert text.count("breaks") >= 2
        assert "replicas for 17 users: 6" in text
    assert max(map(len, summary.splitlines())) <= 80


def test_a_server_that_is_too_slow_for_the_first_load_fails(tmp_path: Path) -> None:
    goals = tmp_path / "goals.yaml"
    goals.write_text("p95 ttft: 50 ms\n")
    with known_server(ttft_ms=200, gap_ms=1, tokens=2) as server:
        done = run(
            *(f"--out={tmp_path / 'out'}", "--start=4", "--step-time=5", "--warm-up=0"),
            *(
                "--processes=2",
                "--",
                "--model=known",
                f"--host={server.host}",
                "--client=stream",
                "--max-lag=500",
            ),
            f"--objectives={goals}",
        )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "one replica does not hold 4 requests/s: p95 ttft is" in done.stdout
    kept = record.read(tmp_path / "out")
    assert kept.verdict.result == "fail"
    assert (kept.workers.seen, max(second.users for second in kept.series)) == (2, 2)
    assert max(len(line) for line in done.stdout.splitlines() if "report:" not in line) <= 80


def test_a_search_that_is_interrupted_is_invalid_and_keeps_its_steps(tmp_path: Path) -> None:
    goals = tmp_path / "goals.yaml"
    goals.write_text("error ratio: 0\n")
    with known_server(ttft_ms=20, gap_ms=1, tokens=2) as server:
        words = ("--start=4", "--step-time=4", "--warm-up=0", "--", "--model=known")
        locust = (f"--host={server.host}", f"--objectives={goals}", "--max-lag=500")
        with begin(f"--out={tmp_path / 'out'}", *words, *locust, "--client=stream") as process:
            assert process.stderr is not None
            assert any("step 2" in line for line in process.stderr)
            process.terminate()
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 3, out
    assert "the search was interrupted before its end; 4 requests/s held once" in out
    kept = record.read(tmp_path / "out")
    assert kept.verdict.result == "invalid"
    assert [step["result"] for step in kept.notes["steps"]] == ["holds"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--", "--rate=3", "--objectives=x"], "--rate=3 is chosen by the search"),
        (["--", "--host=http://x"], "within which objectives?"),
        (["--", "--objectives=none.yaml", "--model=m"], "--host is missing"),
        (["--start=5", "--highest=2", "--", "--objectives=x"], "--start must be above 0"),
        (["--by=users", "--start=1.5", "--", "--objectives=x"], "whole number of users"),
        (["--processes=0", "--", "--objectives=x"], "--processes and --step-time must be at"),
        (["--headroom=1", "--", "--objectives=x"], "--headroom must be"),
        (["--for-users=3", "--for-rate=3", "--", "--objectives=x"], "exclude each other"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert capacity.main([f"--out={tmp_path}", "--warm-up=0", *words]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert sentence in told[0]
