"""A master and its workers: one measurement together, and none when one of them is missing."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lib.locust_runs import (
    SPAWNED,
    STREAM,
    TOKENS,
    Known,
    Process,
    finish,
    free_port,
    known_server,
    rate,
    says,
    start_locust,
)
from triton_load import record


@contextlib.contextmanager
def crew(
    server: Known, folder: Path, *load: str, workers: int, expected: int, port: int
) -> Iterator[tuple[Process, list[Process]]]:
    """Run a master and workers; what still runs at the end is killed."""
    words = (*STREAM, f"--host={server.host}", *load)
    names = [f"--master-port={port}", "--master-host=127.0.0.1", "--exit-code-on-error=0"]
    crowd = [start_locust("--worker", *names, *words) for _ in range(workers)]
    master = start_locust(
        *("--master", f"--master-bind-port={port}", "--master-bind-host=127.0.0.1"),
        *(f"--expect-workers={expected}", "--expect-workers-max-wait=8", "--headless"),
        *("--only-summary", "-u=8", "-r=8", "-t=6s", f"--out={folder}", *words),
    )
    try:
        yield master, crowd
    finally:
        for process in (master, *crowd):
            if process.poll() is None:
                process.kill()
                process.communicate()


def distributed(
    server: Known,
    folder: Path,
    *load: str,
    workers: int,
    expected: int,
    port: int,
    lose: int = 0,
    when: Sequence[str] = SPAWNED,
) -> tuple[int, str]:
    """Run a master and workers to their end; kill the first `lose` when the master says so."""
    numbers = {"workers": workers, "expected": expected, "port": port}
    with crew(server, folder, *load, **numbers) as (master, crowd):
        if lose:
            assert says(master, *when)
            for worker in crowd[:lose]:
                worker.kill()
        text = finish("master", master)
        text += "".join(finish("worker", worker) for worker in crowd)
        return master.returncode, text


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


@pytest.mark.parametrize(("lost", "workers"), [(1, 2), (1, 1), (2, 2)])
def test_lost_workers_make_the_run_invalid_even_the_last_ones(
    tmp_path: Path, lost: int, workers: int
) -> None:
    numbers = {"workers": workers, "expected": workers, "port": 5872}
    with known_server(ttft_ms=20, gap_ms=5, tokens=TOKENS) as server:
        # Nobody waits for the end of a run that nothing can make valid again.
        code, text = distributed(server, tmp_path, "-t=100s", **numbers, lose=lost)
    assert code == 3, text
    found = record.read(tmp_path)
    assert (found.workers.seen, found.workers.lost) == (workers, lost)
    assert found.verdict.reasons[0] == f"{lost} of {workers} workers were lost during the run"


def test_a_worker_lost_while_the_last_answers_come_makes_the_run_invalid(tmp_path: Path) -> None:
    numbers = {"workers": 2, "expected": 2, "port": 5875}
    with known_server(ttft_ms=20, gap_ms=300, tokens=TOKENS) as server:
        code, text = distributed(
            server, tmp_path, "-t=2s", **numbers, lose=1, when=["--run-time limit reached"]
        )
    assert code == 3, text
    found = record.read(tmp_path)
    assert (found.workers.seen, found.workers.lost) == (2, 1)
    assert found.totals.requests >= 4, text  # those of the other were waited for


def test_a_run_that_the_web_page_stops_early_is_invalid(tmp_path: Path) -> None:
    port = free_port()
    with known_server(ttft_ms=20, gap_ms=5, tokens=TOKENS) as server:
        page = (f"--web-port={port}", "--web-host=127.0.0.1", "--autostart", "--autoquit=0")
        words = (*STREAM, f"--host={server.host}", "-u=2", "-r=2", "-t=6s", f"--out={tmp_path}")
        process = start_locust("--only-summary", *page, *words)
        try:
            assert says(process, *SPAWNED)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/stop", method="POST")
            urllib.request.urlopen(request, timeout=10).read()
            text = finish("locust", process)
        finally:
            process.kill()
    assert process.returncode == 3, text
    found = record.read(tmp_path)
    assert found.totals.failed == found.totals.unfinished == 0
    assert found.verdict.reasons == ("the run was interrupted before its end",)


def test_workers_share_the_rate_of_an_open_loop(tmp_path: Path) -> None:
    words = ("--rate=30", "--arrival=constant", "-u=2")
    with known_server(ttft_ms=20, gap_ms=1, tokens=2) as server:
        code, text = distributed(server, tmp_path, *words, workers=2, expected=2, port=5876)
        arrivals = sorted(moments[0] for moments in server.log())
    found = record.read(tmp_path)
    assert code == 0, text
    assert found.totals.requests == len(arrivals) > 100, text
    # Workers begin one after the other; from then on two streams of 15/s make 30/s.
    assert rate(arrivals[30:-15]) == pytest.approx(30, rel=0.03)
    assert (found.workers.seen, found.workers.lost) == (2, 0)
    assert max(second.users for second in found.series) == 2


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
        assert says(master, *SPAWNED)
        killed = time.monotonic()
        master.kill()
        for worker in crowd:
            text = finish("worker", worker)
            assert worker.returncode == 3, text
            assert "the master has been silent for 8 s" in text
        assert time.monotonic() - killed <= 15
