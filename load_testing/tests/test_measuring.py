"""What a run reports is what happened, against a server whose own times are known."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest

from lib.locust_runs import STREAM, TOKENS, known_server, measured, rate, ticker
from triton_load import record

CALM_SECONDS = 0.001


def quantile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def skip_on_a_busy_machine(found: record.Record) -> None:
    """Milliseconds can be told apart only where a planned pause ends on time."""
    lag = found.distributions[record.PROBE_LAG].quantile(95)
    if lag > CALM_SECONDS:
        pytest.skip(f"the machine is too busy to measure 2 ms: pauses end {lag * 1000:.1f} ms late")


@pytest.fixture(scope="module")
def streams(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[record.Record, list[list[float]]]:
    """A closed loop of 12 streaming users, and the server's own log."""
    with known_server(ttft_ms=50, gap_ms=10, tokens=TOKENS) as server:
        folder = tmp_path_factory.mktemp("streams")
        words = (*STREAM, f"--host={server.host}", "-u=6", "-r=6", "-t=12s")
        done, found = measured(folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return found, server.log()


@pytest.mark.slow  # a benchmark: it measures milliseconds
@pytest.mark.parametrize("percent", [50, 95])
def test_time_to_first_token_is_within_2_ms_of_the_server(
    streams: tuple[record.Record, list[list[float]]], percent: int
) -> None:
    found, log = streams
    skip_on_a_busy_machine(found)
    true = quantile([moments[1] - moments[0] for moments in log], percent)
    assert found.distributions[record.TTFT].quantile(percent) == pytest.approx(true, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("percent", [50, 95])
def test_inter_token_time_is_within_2_ms_of_the_server(
    streams: tuple[record.Record, list[list[float]]], percent: int
) -> None:
    found, log = streams
    skip_on_a_busy_machine(found)
    gaps = [b - a for moments in log for a, b in itertools.pairwise(moments[1:])]
    measured_gap = found.distributions[record.INTER_TOKEN].quantile(percent)
    assert measured_gap == pytest.approx(quantile(gaps, percent), abs=0.002)


def test_counts_are_exact(streams: tuple[record.Record, list[list[float]]]) -> None:
    found, log = streams
    assert found.totals.requests == len(log) > 200
    assert found.totals.failed == found.totals.unfinished == 0
    assert found.distributions[record.TTFT].count == len(log)
    assert found.distributions[record.OUTPUT_TOKENS].count == len(log)
    assert found.distributions[record.INTER_TOKEN].count == len(log) * (TOKENS - 1)
    assert sum(second.tokens for second in found.series) == len(log) * TOKENS
    assert sum(second.passed for second in found.series) == len(log)
    assert sum(second.started for second in found.series) == len(log)
    assert found.distributions[record.PROMPT_TOKENS].quantile(50) == pytest.approx(7, rel=1e-3)


def test_the_series_has_no_gaps_and_shows_users_and_load(
    streams: tuple[record.Record, list[list[float]]],
) -> None:
    found, _ = streams
    assert [second.at for second in found.series] == list(range(len(found.series)))
    assert max(second.users for second in found.series) == 6
    assert max(second.in_flight for second in found.series) == 6
    document = json.loads(record.SCHEMA_FILE.read_text())
    jsonschema.validate(found.to_json(), document)


def test_events_of_several_tokens_are_counted_by_token(tmp_path: Path) -> None:
    # 4, 4 and 2 tokens: the first event ends the wait, the others bring 6 gaps.
    with known_server(ttft_ms=20, gap_ms=40, tokens=10, tokens_per_event=4) as server:
        done, found = measured(tmp_path, *STREAM, f"--host={server.host}", "-u=4", "-r=4", "-t=4s")
        log = server.log()
    assert done.returncode == 0, done.stdout + done.stderr
    assert {len(moments) for moments in log} == {1 + 3}
    assert found.distributions[record.TTFT].count == len(log) > 20
    assert found.distributions[record.OUTPUT_TOKENS].maximum == pytest.approx(10, rel=1e-3)
    assert found.distributions[record.INTER_TOKEN].count == len(log) * 6
    assert sum(second.tokens for second in found.series) == len(log) * 10
    # Two thirds of the gaps are a quarter of a pause each, and one third is half of one.
    pauses = [moments[2] - moments[1] for moments in log]
    halves = [moments[3] - moments[2] for moments in log]
    mean = sum(pauses + halves) / len(log) / 6
    assert found.distributions[record.INTER_TOKEN].mean == pytest.approx(mean, rel=0.1)


def test_goodput_counts_the_answers_that_met_every_limit(tmp_path: Path) -> None:
    goals = tmp_path / "goals.yaml"
    # Far apart, so that no busy machine takes one for the other.
    goals.write_text("max ttft: 1500 ms\n")
    with known_server(ttft_ms=20, gap_ms=5, tokens=5, slow_every=4, slow_ms=3000) as server:
        words = (*STREAM, f"--host={server.host}", f"--objectives={goals}", "-u=8", "-r=8")
        done, found = measured(tmp_path / "out", *words, "-t=5s")
        log = server.log()
    assert done.returncode == 1, done.stdout + done.stderr
    assert found.totals.requests == len(log) > 20
    good = found.totals.goodput * found.totals.duration
    assert good == pytest.approx(len(log) - len(log) // 4)


def test_users_who_think_are_not_stopped_in_a_request_that_they_just_began(tmp_path: Path) -> None:
    # Some of 60 users wake up at any moment, also at that of the end.
    with known_server(ttft_ms=30, gap_ms=1, tokens=1) as server:
        words = (*STREAM, f"--host={server.host}", "-u=60", "-r=60", "-t=3s", "--think-time=0.03")
        done, found = measured(tmp_path, *words)
        log = server.log()
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.totals.unfinished == 0
    assert found.totals.requests == len(log) > 100


def test_a_closed_loop_follows_its_steps(tmp_path: Path) -> None:
    with known_server(ttft_ms=20, gap_ms=5, tokens=5) as server:
        words = (*STREAM, f"--host={server.host}", "-u=2", "-r=100", "-t=12s")
        _, found = measured(tmp_path, *words, "--shape=step", "--peak=6", "--steps=3")
    plateaus = [found.series[at] for at in (2, 6, 10)]  # the middle of 4 s each
    assert [second.users for second in plateaus] == [2, 4, 6]
    assert [second.offered for second in plateaus] == [0, 0, 0]


@pytest.mark.slow
def test_an_open_loop_follows_its_ramp(tmp_path: Path) -> None:
    with known_server(ttft_ms=5, gap_ms=1, tokens=2) as server:
        words = (*STREAM, f"--host={server.host}", "--rate=5", "--arrival=constant", "-t=10s")
        _, found = measured(tmp_path, *words, "--shape=ramp", "--peak=45")
        arrivals = [moments[0] for moments in server.log()]
    assert len(arrivals) == pytest.approx(250, abs=4)  # the area under the ramp
    half = arrivals[0] + 5
    assert sum(moment < half for moment in arrivals) == pytest.approx(75, abs=8)
    assert [second.offered for second in found.series[:10]] == [7.0 + 4 * at for at in range(10)]
    assert sum(second.started for second in found.series) == len(arrivals)


def test_an_open_loop_shows_the_queue_and_not_a_lower_rate(tmp_path: Path) -> None:
    # 10 requests/s is what the server can do; 30 arrive.
    with known_server(ttft_ms=99, gap_ms=1, tokens=2, slots=1) as server:
        words = (*STREAM, f"--host={server.host}", "--rate=30", "--arrival=constant", "-t=5s")
        _, found = measured(tmp_path, *words)
        log = server.log()
    arrivals = [moments[0] for moments in log]
    assert len(log) == pytest.approx(150, abs=15)  # the end may come late, a rate may not
    assert rate(arrivals) == pytest.approx(30, rel=0.02)
    # The last that was served waited for all before it: about 10 s for 100 of them.
    assert found.distributions[record.LATENCY].maximum > 8
    assert max(second.in_flight for second in found.series) > 80
    assert found.totals.requests + found.totals.unfinished == len(log)


@pytest.mark.slow
def test_poisson_arrivals_have_the_spacing_of_poisson(tmp_path: Path) -> None:
    with known_server(ttft_ms=1, gap_ms=1, tokens=1) as server:
        words = (*STREAM, f"--host={server.host}", "--rate=80", "-u=4", "-t=8s", "--seed=5")
        _, found = measured(tmp_path, *words)
        arrivals = sorted(moments[0] for moments in server.log())
    skip_on_a_busy_machine(found)
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert found.totals.requests == len(arrivals)
    # 640 arrivals: their number has a standard deviation of 25; of a Poisson process the gaps'
    # deviation equals their mean, of a constant one it is 0.
    assert len(arrivals) == pytest.approx(640, abs=100)
    assert variance**0.5 / mean == pytest.approx(1, abs=0.2)


@pytest.fixture(scope="module")
def saturated(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, record.Record, float]:
    """One generator that 80,000 events/s wait for, several times what it can read."""
    before = os.getloadavg()[0]
    words = ("--client=stream", "--model=ticker", "--stop-timeout=10", "-u=80", "-r=80", "-t=9s")
    with ticker(gap_ms=1, tokens=200) as host:
        done, found = measured(tmp_path_factory.mktemp("saturated"), f"--host={host}", *words)
    return done.returncode, found, before


def test_a_generator_that_has_too_much_to_do_makes_the_run_invalid(
    saturated: tuple[int, record.Record, float],
) -> None:
    code, found, _ = saturated
    assert (code, found.verdict.result) == (3, "invalid")
    assert found.totals.failed == 0
    assert all(reason.startswith("the generator was ") for reason in found.verdict.reasons)


@pytest.mark.slow  # it needs a core of its own
def test_a_saturated_generator_says_so(saturated: tuple[int, record.Record, float]) -> None:
    _, found, before = saturated
    if before > (os.cpu_count() or 1) / 2:
        pytest.skip(f"the machine is too busy for a core of one's own: load average {before:.1f}")
    cpu = f"the generator was saturated: {found.workers.cpu_percent:.0f} % of a core"
    assert found.workers.cpu_percent > 80
    assert any(reason.startswith(cpu) for reason in found.verdict.reasons)
