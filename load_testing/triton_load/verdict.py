"""The end of a test: was it interrupted, what was measured, and what follows from it?"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from locust.runners import MasterRunner

from triton_load import locust_bridge, objectives, record, report
from triton_load.session import ACTIVE, Session
from triton_load.workers import note_lost

_EARLY_SECONDS = 1.0  # a run that ends this much before its time was interrupted


def note_stop(session: Session) -> None:
    """Locust begins to stop: at its time, because somebody wants it, or without any worker left."""
    note_lost(session)
    session.ending = True
    early = time.perf_counter() - session.asked < session.options.run_time - _EARLY_SECONDS
    if session.asked and early and not session.lost:
        session.interrupted = True


def finish(session: Session, quit_now: Callable[[], None]) -> None:
    """Judge once, when the process ends."""
    if session.over:
        return
    runner = session.environment.runner
    assert runner is not None  # noqa: S101
    if runner.state in ACTIVE:
        session.interrupted = True
        quit_now()
    session.environment.process_exit_code = conclude(session)


def conclude(session: Session) -> int:
    """Judge, write what was asked for, and return the exit code; the last words are said later."""
    session.over = True
    finished, options = _record(session), session.options
    if not options.out:
        session.last_words = f"\n{report.summarize(finished)}"
        return finished.verdict.exit_code
    folder = Path(options.out)
    try:
        text = report.write(finished, folder)
        record.write(finished, folder)  # last: who finds it finds the rest
    except OSError as error:
        session.last_words = _unwritten(finished, folder, error)
        return objectives.EXIT_INVALID
    session.last_words = f"\n{text}\nreport: {folder}"
    return finished.verdict.exit_code


def crash(session: Session) -> NoReturn:
    """End with the code of an invalid run: Python's own, 1, would blame the server.

    Locust's files are written after the verdict, and a full volume ends it there.
    """
    print(session.last_words)
    print("\nlocust died before its end, so the run is invalid", flush=True)
    locust_bridge.leave(objectives.EXIT_INVALID)


def _unwritten(finished: record.Record, folder: Path, error: OSError) -> str:
    """The last words of a run whose report cannot be kept: nobody could look at its evidence."""
    reason = f"the report could not be written to {folder}: {error.strerror or error}"
    reasons = (reason, *finished.verdict.reasons)
    verdict = record.Verdict(result="invalid", reasons=reasons, exit_code=objectives.EXIT_INVALID)
    return f"\n{report.summarize(dataclasses.replace(finished, verdict=verdict))}"


def _record(session: Session) -> record.Record:
    options, counts = session.options, session.measurements
    totals = counts.totals()
    master = isinstance(session.environment.runner, MasterRunner)
    parsed = session.environment.parsed_options
    workers = record.Workers(
        expected=parsed.expect_workers if master and parsed else 1,
        seen=len(session.workers) if master else 1,
        lost=len(session.lost),
        cpu_percent=session.cpu_percent,
        master_cpu_percent=session.master_cpu_percent,
        lag_seconds=counts.lag(95),
    )
    found = objectives.evaluate(session.goals, totals, counts.distributions)
    least = [goal.limit for goal in session.goals if goal.name == "min requests"]
    validity = objectives.Validity(
        min_requests=int(max(least, default=1)),
        max_lag=options.max_lag,
        interrupted=session.interrupted,
        cut=session.cut,
        grace=session.grace,
    )
    started = session.started or time.time()
    errors = counts.error_classes()
    return record.Record(
        name=options.run_name or session.target.model.name,
        started=started,
        config=session.config(),
        totals=totals,
        distributions={name: d for name, d in counts.distributions.items() if d.count},
        series=_series(session, started),
        errors=errors,
        workers=workers,
        objectives=found,
        verdict=objectives.judge(found, totals, workers, validity, errors),
    )


def _series(session: Session, started: float) -> tuple[record.Second, ...]:
    first = int(started)
    return tuple(
        dataclasses.replace(
            second,
            offered=_offered(session, second.at),
            replicas=session.replicas.get(first + second.at),
        )
        for second in session.measurements.series(started=started)
    )


def _offered(session: Session, at: int) -> float:
    if not session.options.open_loop or at >= (session.options.run_time or at + 1):
        return 0.0
    return session.profile.level(at + 0.5)
