"""Comparison of two runs: real changes are found, noise is not taken for one."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from triton_load import compare
from triton_load import record as records
from triton_load.record import Distribution, Record, Second, Totals, Verdict, Workers


def run(
    seed: int, *, rate: float = 20.0, ttft: float = 0.1, seconds: int = 120, model: str = "m"
) -> Record:
    """Return the record of a run whose rate wanders and whose times to first token vary."""
    source = random.Random(seed)
    series, wander = [], 0.0
    for at in range(seconds):
        wander = 0.7 * wander + source.gauss(0, 1.5)
        passed = max(0, round(rate + wander))
        series.append(Second(at=at, users=4, passed=passed, tokens=30 * passed))
    times = Distribution(records.TTFT)
    for _ in range(sum(second.passed for second in series)):
        times.add(source.lognormvariate(0, 0.4) * ttft)
    return Record(
        name=f"run-{seed}",
        started=0.0,
        config={"model": model, "users": 4},
        totals=Totals(
            requests=times.count,
            failed=0,
            unfinished=0,
            duration=float(seconds),
            requests_per_second=times.count / seconds,
            output_tokens_per_second=30 * times.count / seconds,
            goodput=0.0,
        ),
        distributions={records.TTFT: times},
        series=tuple(series),
        errors=(),
        workers=Workers(expected=1, seen=1, lost=0, cpu_percent=1.0, lag_seconds=0.0),
        objectives=(),
        verdict=Verdict(result="pass", reasons=(), exit_code=0),
    )


def lines(before: Record, after: Record) -> dict[str, compare.Line]:
    return {line.name: line for line in compare.compare(before, after)}


def test_a_slower_server_is_worse_in_times_and_a_faster_one_better_in_rates() -> None:
    found = lines(run(1), run(2, rate=24.0, ttft=0.13))
    assert found["requests/s"].word == "better"
    assert found["output tokens/s"].word == "better"
    assert {found[f"p{p} ttft"].word for p in (50, 95, 99)} == {"worse"}
    change = found["p50 ttft"].change
    assert change.low < 0.3 < change.high
    assert change.low > 0.2


def test_noise_is_called_a_change_about_as_often_as_promised() -> None:
    """At 95 % confidence one line in twenty is wrong; one in eight is the worst that may be."""
    words = [
        line.word
        for seed in range(30)
        for line in compare.compare(run(2 * seed), run(2 * seed + 1))
        if line.name != "output tokens/s"  # the same series again
    ]
    assert len(words) == 120
    assert words.count("same") >= 105


def test_the_same_runs_give_the_same_intervals() -> None:
    assert compare.compare(run(1), run(2)) == compare.compare(run(1), run(2))


def test_a_percentile_with_too_few_values_above_it_is_left_out() -> None:
    found = lines(run(1, rate=8.0, seconds=60), run(2, rate=8.0, seconds=60))
    assert "p95 ttft" in found
    assert "p99 ttft" not in found


def test_what_was_never_measured_is_no_line() -> None:
    quiet = dataclasses.replace(run(1), series=tuple(Second(at=n) for n in range(9)))
    assert "requests/s" not in lines(quiet, run(2))
    assert "p50 latency" not in lines(run(1), run(2))


def test_runs_that_differ_in_more_than_time_are_warned_of() -> None:
    other = dataclasses.replace(
        run(2, seconds=20, model="other"),
        verdict=Verdict(result="invalid", reasons=("a worker was lost.",), exit_code=3),
    )
    found = compare.warnings(run(1), other)
    assert "the second run is invalid: its numbers prove nothing." in found
    assert "asked for differently: model: m -> other" in found
    assert any("has 20 s" in text for text in found)
    assert compare.warnings(run(1), run(2)) == []


def test_the_table_fits_80_columns_and_names_the_methods() -> None:
    other = dataclasses.replace(run(2, rate=500.0, ttft=3.0), config={"model": "x" * 200})
    text = compare.render(run(1), other, compare.compare(run(1), other))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "blocks of neighbouring seconds" in text
    assert "worse" in text


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    for name, record in (("a", run(1)), ("b", run(2, ttft=0.2))):
        records.write(record, tmp_path / name)
    return str(tmp_path / "a"), str(tmp_path / "b" / "run.json")


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "triton_load.compare", *words],
        cwd=Path(compare.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_takes_folders_and_files_and_prints_json(files: tuple[str, str]) -> None:
    done = command(*files, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["before"], told["after"]) == ("run-1", "run-2")
    assert {line["word"] for line in told["lines"] if "ttft" in line["name"]} == {"worse"}


@pytest.mark.parametrize(("percent", "code"), [("50", 1), ("150", 0)])
def test_the_exit_code_tells_of_a_loss_beyond_the_tolerance(
    files: tuple[str, str], percent: str, code: int
) -> None:
    assert command(*files, "--worse-than", percent).returncode == code


def test_a_file_that_is_no_run_is_one_sentence_and_exit_code_2(
    files: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text("[]")
    for bad in (str(tmp_path / "x.json"), str(tmp_path / "none")):
        done = command(files[0], bad)
        assert done.returncode == 2
        assert done.stderr.startswith("compare: ")
        assert len(done.stderr.splitlines()) == 1
