"""What a run reports is what happened, against a server whose own times are known."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonschema
import pytest
from running import Known, known_server, measured, start_locust

from triton_load import record

Process = subprocess.Popen[str]
TOKENS = 20
CALM_SECONDS = 0.001
STREAM = ("--client=stream", "--model=known", "--stop-timeout=20")


def quantile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * len(ordered)))]


def skip_on_a_busy_machine(found: record.Record) -> None:
    """Milliseconds can be told apart only where a planned pause ends on time."""
    lag = found.distributions[record.LAG].quantile(95)
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


def test_an_open_loop_shows_the_queue_and_not_a_lower_rate(tmp_path: Path) -> None:
    # 10 requests/s is what the server can do; 30 arrive.
    with known_server(ttft_ms=99, gap_ms=1, tokens=2, slots=1) as server:
        words = (*STREAM, f"--host={server.host}", "--rate=30", "--arrival=constant", "-t=5s")
        _, found = measured(tmp_path, *words)
        log = server.log()
    arrivals = [moments[0] for moments in log]
    assert len(log) == pytest.approx(150, abs=3)
    assert arrivals[-1] - arrivals[0] == pytest.approx(5, abs=0.2)
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


def finish(name: str, process: Process) -> str:
    text, _ = process.communicate(timeout=90)
    return f"== {name}\n{text}"


@contextlib.contextmanager
def crew(
    server: Known, folder: Path, *, workers: int, expected: int, port: int
) -> Iterator[tuple[Process, list[Process]]]:
    """Run a master and workers; what still runs at the end is killed."""
    words = (*STREAM, f"--host={server.host}")
    names = [f"--master-port={port}", "--master-host=127.0.0.1", "--exit-code-on-error=0"]
    crowd = [start_locust("--worker", *names, *words) for _ in range(workers)]
    master = start_locust(
        *("--master", f"--master-bind-port={port}", "--master-bind-host=127.0.0.1"),
        *(f"--expect-workers={expected}", "--expect-workers-max-wait=8", "--headless"),
        *("--only-summary", "-u=8", "-r=8", "-t=9s", f"--out={folder}", *words),
    )
    try:
        yield master, crowd
    finally:
        for process in (master, *crowd):
            if process.poll() is None:
                process.kill()
                process.communicate()


def distributed(
    server: Known, folder: Path, *, workers: int, expected: int, port: int, lose: bool = False
) -> tuple[int, str]:
    """Run a master and workers to their end; with `lose`, kill one worker in the middle."""
    numbers = {"workers": workers, "expected": expected, "port": port}
    with crew(server, folder, **numbers) as (master, crowd):
        if lose:
            assert start_of_load(master)
            crowd[0].kill()
        text = finish("master", master)
        text += "".join(finish("worker", worker) for worker in crowd)
        return master.returncode, text


def start_of_load(master: Process) -> bool:
    """Wait until the master says that all users run."""
    return any("All users spawned" in line for line in master.stdout or ())


def test_workers_counts_merge_to_what_the_server_saw(tmp_path: Path) -> None:
    with known_server(ttft_ms=20, gap_ms=5, tokens=TOKENS) as server:
        code, text = distributed(server, tmp_path, workers=2, expected=2, port=5871)
        log = server.log()
    found = record.read(tmp_path)
    assert code == 0, text
    assert found.totals.requests == len(log), text
    assert found.distributions[record.INTER_TOKEN].count == len(log) * (TOKENS - 1)
    assert max(second.users for second in found.series) == 8
    assert (found.workers.expected, found.workers.seen, found.workers.lost) == (2, 2, 0)


def test_a_lost_worker_makes_the_run_invalid(tmp_path: Path) -> None:
    with known_server(ttft_ms=20, gap_ms=5, tokens=TOKENS) as server:
        code, text = distributed(server, tmp_path, workers=2, expected=2, port=5872, lose=True)
    assert code == 3, text
    assert record.read(tmp_path).verdict.result == "invalid"
    assert "1 of 2 workers were lost" in text


def test_too_few_workers_make_the_run_invalid_and_no_request_is_sent(tmp_path: Path) -> None:
    with known_server() as server:
        code, text = distributed(server, tmp_path, workers=1, expected=2, port=5873)
        log = server.log()
    assert code == 3, text
    assert log == []
    assert "only 1 of 2 workers came" in record.read(tmp_path).verdict.reasons[0]


def test_workers_end_within_15_s_of_their_masters_death(tmp_path: Path) -> None:
    with (
        # An answer takes a minute: a worker must not wait for it.
        known_server(ttft_ms=20, gap_ms=3000, tokens=TOKENS) as server,
        crew(server, tmp_path, workers=2, expected=2, port=5874) as (master, crowd),
    ):
        assert start_of_load(master)
        killed = time.monotonic()
        master.kill()
        for worker in crowd:
            text = finish("worker", worker)
            assert worker.returncode == 3, text
            assert "the master has been silent for 8 s" in text
        assert time.monotonic() - killed <= 15
