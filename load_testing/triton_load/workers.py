"""A master and its workers: counts on their way to the master, and who was lost on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from triton_load import objectives
from triton_load.session import ACTIVE, KEY, Session

_FINAL_SECONDS = 5.0  # how long the master waits for the last counts of workers
# A master answers every second; Locust itself would load the server for a minute without one.
_MASTER_SILENT_SECONDS = 8


def follow(session: Session, runner: WorkerRunner) -> None:
    """What a worker does: hand over its counts, and end with its master."""
    environment = session.environment
    environment.events.report_to_master.add_listener(
        lambda data, **_: data.update({KEY: _report(session)})
    )
    environment.events.test_stop.add_listener(lambda **_: _end(session, runner))
    environment.events.quitting.add_listener(lambda **_: _quit(session, runner))
    gevent.spawn(_watch_master, environment, runner)


def _report(session: Session) -> dict[str, Any]:
    cut, session.cut = session.cut, 0
    return {
        "measurements": session.measurements.drain(),
        "cpu": session.cpu_percent,
        "cut": cut,
    }


def _end(session: Session, runner: WorkerRunner) -> None:
    # Locust sleeps for the stop timeout once more before it reads the next message.
    session.environment.stop_timeout = 0.0
    runner.send_message(KEY, _report(session))


def _quit(session: Session, runner: WorkerRunner) -> None:
    """A worker that is ended before its test is over, or without one, must not look done.

    So a Job whose other workers never found a place fails with it, instead of waiting for them.
    """
    if runner.state in ACTIVE or not session.began:
        session.environment.process_exit_code = objectives.EXIT_INVALID


def _watch_master(environment: Environment, runner: WorkerRunner) -> None:
    """End a worker whose master is gone, and with it the load that nobody counts any more.

    Only seconds in which this process itself ran are counted: one that was stopped for a while must
    not take its own silence for the master's.
    """
    heard, silent = runner.last_heartbeat_timestamp, 0
    while silent < _MASTER_SILENT_SECONDS:
        gevent.sleep(1.0)
        known, heard = heard, runner.last_heartbeat_timestamp
        silent = silent + 1 if heard is not None and heard == known else 0
    text = f"load: the master has been silent for {silent} s, so this worker ends"
    print(text, file=sys.stderr, flush=True)
    environment.process_exit_code = objectives.EXIT_INVALID
    environment.stop_timeout = 0.0  # nobody waits for the last answers
    runner.quit()


def lead(session: Session, runner: MasterRunner) -> None:
    """What a master does: take the counts of its workers, until the test is judged."""
    session.environment.events.worker_report.add_listener(
        lambda client_id, data, **_: _take(session, data.get(KEY))
    )
    runner.register_message(KEY, lambda environment, msg: _take_last(session, msg))


def _take(session: Session, found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    session.measurements.merge(found["measurements"])
    session.cpu_percent = max(session.cpu_percent, found["cpu"])
    session.cut += found["cut"]


def _take_last(session: Session, message: Any) -> None:
    """Take a worker's last counts; from one that ends before it was told to, they are no end."""
    _take(session, message.data)
    if session.ending:
        session.finals.add(message.node_id)


def expect(session: Session, runner: MasterRunner, *, too_few: Callable[[], None]) -> None:
    """Call `too_few` when workers have not come within --expect-workers-max-wait.

    Too few workers make the run invalid; Locust itself would end with 1, as for a bad server.
    """
    parsed = session.environment.parsed_options
    assert parsed is not None  # noqa: S101
    longest, parsed.expect_workers_max_wait = parsed.expect_workers_max_wait, 0

    def watch() -> None:
        gevent.sleep(longest)
        if not session.began:
            session.workers = _present(runner)
            too_few()

    if longest:
        gevent.spawn(watch)


def watch(session: Session) -> None:
    """Note which workers there are until the test is over, and end one that has lost any."""
    runner = session.environment.runner
    assert isinstance(runner, MasterRunner)  # noqa: S101
    while not session.over:
        if runner.state in ACTIVE:
            session.workers |= _present(runner)
        note_lost(session)
        if session.lost and not session.quitting:
            _give_up(session, runner)
            return
        gevent.sleep(0.5)


def _present(runner: MasterRunner) -> set[str]:
    clients = runner.clients
    return {client.id for client in (*clients.ready, *clients.spawning, *clients.running)}


def note_lost(session: Session) -> None:
    """Whoever is gone and still owes its last counts is lost, though it may come back."""
    runner = session.environment.runner
    if isinstance(runner, MasterRunner):
        session.lost |= session.owing - _present(runner)


def _give_up(session: Session, runner: MasterRunner) -> None:
    """End a run that cannot become valid again, instead of loading the server for nothing."""
    print(
        "load: a worker was lost, so the run is invalid; it ends now", file=sys.stderr, flush=True
    )
    runner.quit()
    if session.environment.web_ui:
        session.environment.web_ui.stop()


def wait_for_counts(session: Session) -> None:
    """Let users finish within the stop timeout and workers hand over their counts.

    A worker that does not hand them over is lost, since nobody knows what it did.
    """
    runner = session.environment.runner
    if not isinstance(runner, MasterRunner) or session.over:
        return
    session.quitting = True
    runner.stop()
    note_lost(session)
    end = time.monotonic() + _FINAL_SECONDS
    while session.owing and time.monotonic() < end:
        gevent.sleep(0.1)
    session.lost |= session.owing
