"""Objectives are read as written, and the verdict follows from what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from triton_load import objectives, record
from triton_load.errors import LoadTestError

GOOD = record.Totals(
    requests=1000,
    failed=5,
    unfinished=0,
    duration=100.0,
    requests_per_second=9.95,
    output_tokens_per_second=600.0,
    goodput=8.0,
)
WORKERS = record.Workers(expected=2, seen=2, lost=0, cpu_percent=40.0, lag_seconds=0.001)
VALID = objectives.Validity(min_requests=100, max_lag=0.02)


def distributions() -> dict[str, record.Distribution]:
    found = {}
    for name, factor in ((record.LATENCY, 1.0), (record.TTFT, 0.1), (record.INTER_TOKEN, 0.01)):
        found[name] = record.Distribution(name)
        for step in range(1, 101):
            found[name].add(step / 100 * factor)
    return found


def verdict(wanted: dict, *, totals: record.Totals = GOOD) -> record.Verdict:
    goals = objectives.parse_goals(wanted, where="test")
    found = objectives.evaluate(goals, totals, distributions())
    return objectives.judge(found, totals, WORKERS, VALID)


@pytest.mark.parametrize(
    ("wanted", "met"),
    [
        ({"p95 latency": "960 ms"}, True),
        ({"p95 latency": "940 ms"}, False),
        ({"p50 ttft": "0.06 s"}, True),
        ({"p99.9 ttft": "90 ms"}, False),
        ({"mean inter token": "6000 us"}, True),
        ({"max latency": "0.5 s"}, False),
        ({"error ratio": 0.005}, True),
        ({"error ratio": 0.004}, False),
        ({"goodput": 8}, True),
        ({"goodput": 8.1}, False),
        ({"throughput": 9}, True),
        ({"output tokens": 601}, False),
    ],
)
def test_an_objective_is_met_or_not(wanted: dict, met: bool) -> None:
    found = verdict({"error ratio": 1, **wanted})
    assert found.result == ("pass" if met else "fail")
    assert found.exit_code == (0 if met else 1)
    assert bool(found.reasons) is not met


def test_without_an_objective_for_errors_one_failure_fails_the_run() -> None:
    assert verdict({}).reasons == ("5 of 1000 requests failed",)


def test_an_objective_without_a_measurement_is_missed() -> None:
    goals = objectives.parse_goals({"p95 ttft": "1 s", "error ratio": 1}, where="test")
    found = objectives.evaluate(goals, GOOD, {})
    assert objectives.judge(found, GOOD, WORKERS, VALID).result == "fail"


@pytest.mark.parametrize(
    ("workers", "validity", "words"),
    [
        ({"seen": 1}, {}, "only 1 of 2 workers came"),
        ({"lost": 1}, {}, "1 of 2 workers were lost"),
        ({"cpu_percent": 81.0}, {}, "saturated: 81 % of a core"),
        ({"master_cpu_percent": 81.0}, {}, "the master was saturated: 81 % of a core"),
        ({"lag_seconds": 0.03}, {}, "late: p95 of its lag 30 ms"),
        ({}, {"interrupted": True}, "interrupted"),
        ({}, {"min_requests": 1001}, "only 1000 requests ended"),
        ({}, {"cut": 3}, "3 arrivals exceeded --max-in-flight"),
    ],
)
def test_what_proves_nothing_is_invalid_though_every_objective_is_met(
    workers: dict, validity: dict, words: str
) -> None:
    found = objectives.judge(
        (),
        dataclasses.replace(GOOD, failed=0),
        dataclasses.replace(WORKERS, **workers),
        dataclasses.replace(VALID, **validity),
    )
    assert (found.result, found.exit_code) == ("invalid", 3)
    assert words in found.reasons[0]


def test_requests_without_an_answer_after_the_grace_fail_the_run() -> None:
    found = objectives.judge(
        (),
        dataclasses.replace(GOOD, failed=0, unfinished=2),
        WORKERS,
        dataclasses.replace(VALID, grace=20.0),
    )
    assert (found.result, found.reasons) == (
        "fail",
        ("2 requests had no answer 20 s after the end",),
    )


def test_where_every_request_failed_the_fault_is_the_reason_and_not_the_generator() -> None:
    failed = dataclasses.replace(GOOD, requests=9, failed=9, goodput=0.0, requests_per_second=0.0)
    busy = dataclasses.replace(WORKERS, cpu_percent=99.0, lag_seconds=1.0)
    errors = [record.ErrorClass(name="HTTP 400", count=9, example="no such input")]
    found = objectives.judge((), failed, busy, VALID, errors)
    reason = "all 9 requests failed, most of them so: HTTP 400: no such input"
    assert (found.result, found.reasons) == ("fail", (reason,))
    lost = dataclasses.replace(busy, lost=1)
    found = objectives.judge((), failed, lost, VALID, errors)
    assert found.result == "invalid"
    assert found.reasons == ("1 of 2 workers were lost during the run",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p95 latence: 1 s", "unknown objective 'p95 latence'"),
        ("p95 latency: 1", "needs a time such as 500 ms"),
        ("p95 latency: fast", "needs a time such as 500 ms"),
        ("error ratio: 2", "a ratio from 0 to 1"),
        ("goodput: -1", "a number of at least 0"),
        ("goodput: .nan", "a number of at least 0"),
        ("goodput: true", "a number of at least 0"),
        ("- p95", "must map objectives to limits"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_bad_objective_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "objectives.yaml"
    file.write_text(text)
    with pytest.raises(LoadTestError, match=words) as caught:
        objectives.read_goals(file)
    assert "\n" not in str(caught.value)


def test_the_limits_of_a_good_request_are_the_tightest_of_each_time() -> None:
    wanted = {"p95 ttft": "1 s", "p50 ttft": "300 ms", "max latency": "9 s", "goodput": 1}
    found = objectives.limits(objectives.parse_goals(wanted, where="test"))
    assert found == {record.TTFT: 0.3, record.LATENCY: 9.0}
