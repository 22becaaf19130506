"""What each process looks at while a test runs: load, generator, the server's pods."""

from __future__ import annotations

import time

import gevent
import psutil
from locust.runners import STATE_CLEANUP, MasterRunner, WorkerRunner

from triton_load import replicas
from triton_load.measure import to_next_sample
from triton_load.session import ACTIVE, Session

_LAG_SECONDS, _CPU_SECONDS = 0.05, 2.0


def begin(session: Session) -> None:
    """Look until the test is over."""
    runner, watched = session.environment.runner, [_cpu]
    if not isinstance(runner, MasterRunner):
        watched += [_load, _lag]
    if session.options.replicas_host and not isinstance(runner, WorkerRunner):
        watched.append(_replicas)
    for watch in watched:
        gevent.spawn(watch, session)


def _load(session: Session) -> None:
    while not session.over:
        runner = session.environment.runner
        # Not while the web page lingers after the load.
        if runner and runner.state in (*ACTIVE, STATE_CLEANUP):
            session.measurements.sample(
                users=runner.user_count, in_flight=session.in_flight, moment=time.perf_counter()
            )
        gevent.sleep(to_next_sample(time.time()))


def _lag(session: Session) -> None:
    while not session.over:
        due = time.perf_counter() + _LAG_SECONDS
        gevent.sleep(_LAG_SECONDS)
        session.measurements.probe(max(0.0, time.perf_counter() - due))


def _cpu(session: Session) -> None:
    process, before = psutil.Process(), 0.0
    master = isinstance(session.environment.runner, MasterRunner)
    place = "master_cpu_percent" if master else "cpu_percent"
    process.cpu_percent(None)
    while not session.over:
        gevent.sleep(_CPU_SECONDS)
        now = process.cpu_percent(None)
        setattr(session, place, max(getattr(session, place), min(before, now)))
        before = now


def _replicas(session: Session) -> None:
    while not session.over:
        found = replicas.count(session.options.replicas_host)
        if found is not None:
            session.replicas[int(time.time())] = found
        gevent.sleep(to_next_sample(time.time()))
