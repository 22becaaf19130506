from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.scaling import fleet, step, step_plot
from benchmarks.scaling.rounds import Plan, Round, Stage
from lib import offered_load
from lib.prometheus import Prometheus, Series
from lib.watch import Timeline
from tools import helm, place, wait


def outcome(end: float, seconds: float, fault: str = "") -> offered_load.Outcome:
    return offered_load.Outcome(start=end - seconds, end=end, fault=fault)


def steady(start: float, end: float, seconds: float) -> list[offered_load.Outcome]:
    return [outcome(start + 0.1 * i, seconds) for i in range(int((end - start) * 10))]


def test_p95_is_back_when_it_stays_under_the_objective_to_the_end() -> None:
    done = steady(0, 20, 3.0) + steady(20, 40, 1.0)
    back = step.p95_back(done, start=0, end=40, objective=2.0)
    assert back is not None
    assert 24 <= back <= 25.5


def test_p95_that_rises_again_is_not_back() -> None:
    done = steady(0, 10, 3.0) + steady(10, 20, 1.0) + steady(20, 30, 3.0)
    assert step.p95_back(done, start=0, end=30, objective=2.0) is None


def test_silence_is_not_a_good_p95() -> None:
    assert step.p95_back([], start=0, end=30, objective=2.0) is None


def test_failed_requests_do_not_make_p95_better() -> None:
    done = [outcome(1, 5.0), outcome(1, 0.01, "status 503")]
    assert step.p95(done) == 5.0


def test_summary_counts_only_rounds_in_which_it_happened() -> None:
    base: dict[str, Any] = {
        "at": 0.0, "ended": 60.0, "p95_low_seconds": 1.0, "objective_seconds": 1.5,
        "signal_crossed_seconds": 2.0, "scheduled_seconds": 5.0, "ready_seconds": 9.0,
        "all_ready_seconds": 12.0, "p95_back_seconds": 15.0, "most_replicas": 4,
        "back_seconds": 30.0, "requests": 100, "failed": 0,
    }  # fmt: skip
    rounds = [Round(decided_seconds=4.0, **base), Round(decided_seconds=None, **base)]
    assert step.summary(rounds)["decided_seconds"] == {
        "mean": 4.0, "median": 4.0, "worst": 4.0, "rounds": 1,
    }  # fmt: skip


def test_the_steps_of_a_fleet_meet_every_part_of_a_sync_once() -> None:
    found = fleet.moments(20, random.Random(1))
    assert found != sorted(found)
    parts = [int(moment / fleet.SYNC_SECONDS * 20) for moment in sorted(found)]
    assert parts == [*range(20)]


def test_a_fleet_counts_every_step_and_names_what_did_not_happen(tmp_path: Path) -> None:
    base: dict[str, Any] = {
        "at": 0.0, "ended": 60.0, "p95_low_seconds": 1.0, "objective_seconds": 1.5,
        "signal_crossed_seconds": 2.0, "scheduled_seconds": 5.0, "all_ready_seconds": 12.0,
        "p95_back_seconds": None, "most_replicas": 4, "back_seconds": 30.0, "requests": 100,
    }  # fmt: skip
    rounds = [
        Round(decided_seconds=4.0, ready_seconds=9.0, failed=0, **base),
        Round(decided_seconds=8.0, ready_seconds=None, failed=1, **base),
    ]
    found = fleet.report(rounds, ["status 503"], scaler="hpa", sync="15s", count=2)
    assert (found["requests"], found["failed"], found["rounds"]) == (200, 1, 2)
    assert found["ready_after_decided_seconds"] == [5.0]
    lines = fleet.table(found).splitlines()
    assert lines[0] == "simulated, hpa, sync 15s: 2 steps, 1 of 200 requests failed"
    assert next(line for line in lines if line.startswith("decided")).split()[1:] == [
        "6.0", "6.0", "8.0", "2",
    ]  # fmt: skip
    assert not [line for line in lines if line.startswith("p95")]
    kept = json.loads(json.dumps(found))
    again = [*(Round(**each) for each in kept["played"]), *rounds]
    both = fleet.report(again, kept["faults"], scaler="hpa", sync="15s", count=2)
    assert (both["rounds"], both["failed"]) == (2 * found["rounds"], 2 * found["failed"])
    assert both["summary"]["decided_seconds"]["mean"] == pytest.approx(
        found["summary"]["decided_seconds"]["mean"], abs=0.001
    )
    assert len(both["ready_after_decided_seconds"]) == 2 * len(found["ready_after_decided_seconds"])
    fleet.check_same(found, scaler="hpa", sync="15s")
    with pytest.raises(helm.CommandFailedError, match="same sync: it is '15s' there, and '5s' now"):
        fleet.check_same(found, scaler="hpa", sync="5s")
    step_plot.draw_all(tmp_path / "fleet.png", rounds, title="two steps")
    assert (tmp_path / "fleet.png").stat().st_size > 5_000


def test_the_sync_period_of_a_cluster_that_is_not_ours_stays_as_it_is() -> None:
    theirs = place.Place(kubeconfig=Path("/nowhere"), push="", pull="", embedded=False)
    with fleet.hpa_sync(theirs, None) as period:
        assert period == "unknown"
    with pytest.raises(helm.CommandFailedError, match="KUBECONFIG"), fleet.hpa_sync(theirs, 5):
        pass


def test_a_timeline_keeps_changes_and_forgets_repetitions() -> None:
    line = Timeline()
    for value in (1, 1, 4, 4, 1):
        line.add("ready", value)
    assert [value for _, value in line.steps("ready")] == [1, 4, 1]
    assert line.value("ready") == 1
    assert line.first("ready", 0.0, lambda value: value > 1) == line.changes[1].at
    assert line.first("ready", time.time() + 1, lambda value: value > 1) is None


class Slow(http.server.BaseHTTPRequestHandler):
    """Answers after 0.2 s; /broken ends a stream before its last event; /busy is refused."""

    protocol_version = "HTTP/1.1"
    received: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(self.path)
        time.sleep(0.2)
        if self.path == "/busy":
            return self.answer(503, b"{}")
        if self.path == "/broken":
            return self.answer(200, b'data: {"finish_reason": ""}\n\n')
        if self.path == "/whole":
            return self.answer(200, b'data: {"finish_reason": "length"}\n\n')
        return self.answer(200, b"{}")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Slow.received.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def target(port: int, path: str, *, stream: bool = False) -> offered_load.Target:
    return offered_load.Target(address="127.0.0.1", port=port, path=path, body=b"{}", stream=stream)


def test_clients_keep_exactly_so_many_requests_in_flight(port: int) -> None:
    with offered_load.Load([target(port, "/")]) as driver:
        driver.clients(5)
        wait.until(lambda: len(driver.record.outcomes) >= 25, seconds=60, every=0.05)
        now = time.time()
        driver.clients(0)
    start = driver.record.outcomes[0].end
    assert driver.record.mean_in_flight(start, now) == pytest.approx(5, abs=0.5)
    assert driver.record.failed == []
    assert driver.record.in_flight(time.time()) == 0


@pytest.mark.parametrize(
    ("path", "stream", "fault"),
    [
        ("/busy", False, "status 503: {}"),
        ("/broken", True, "the stream broke before its last event"),
        ("/whole", True, ""),
    ],
)
def test_a_request_is_sent_once_and_its_fault_told(
    port: int, path: str, stream: bool, fault: str
) -> None:
    with offered_load.Load([target(port, path, stream=stream)]) as driver:
        driver.clients(1)
        wait.until(lambda: bool(Slow.received), seconds=60, every=0.01)
        driver.clients(0)
    assert {outcome.fault for outcome in driver.record.outcomes} == {fault}
    assert len(driver.record.outcomes) == len(Slow.received)


def test_nobody_listening_is_a_failed_request() -> None:
    with offered_load.Load([target(1, "/")]) as driver:
        driver.clients(1)
        wait.until(lambda: bool(driver.record.outcomes), seconds=60, every=0.01)
    assert "refused" in driver.record.failed[0].fault.lower()


def test_the_report_and_its_plot_hold_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = time.time() - 100
    line = Timeline()
    line.add("ready", 1)
    driver = offered_load.Load([target(1, "/")])
    driver.record.outcomes += [outcome(at + 1, 0.5), outcome(at + 2, 0.5, "status 503: busy")]
    found = Round(
        at=at, ended=at + 60, p95_low_seconds=0.5, objective_seconds=0.75,
        signal_crossed_seconds=1.0, decided_seconds=3.0, scheduled_seconds=4.0, ready_seconds=9.0,
        all_ready_seconds=11.0, p95_back_seconds=15.0, most_replicas=4, back_seconds=30.0,
        requests=2, failed=1,
    )  # fmt: skip
    series = Series(labels={}, times=(at, at + 1), values=(3.0, 12.0))
    monkeypatch.setattr(Prometheus, "query_range", lambda *_, **__: [series])
    stage = Stage(driver=driver, timeline=line, prometheus=Prometheus(url=""), labels="", least=1)
    step.write(tmp_path, Plan(target=3), [found], stage, "a title")
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["requests"] == 2
    assert report["failed"] == 1
    assert report["faults"] == ["status 503: busy"]
    assert report["rounds"][0]["decided_seconds"] == 3.0
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    assert set(step_plot.MARKS) <= {name for name in report["rounds"][0]}
