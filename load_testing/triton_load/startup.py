"""A test's way into Locust: its options, its session, and who is told of Locust's events."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import gevent
import gevent.event
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from locust.shape import LoadTestShape

from triton_load import (
    arrivals,
    locust_bridge,
    objectives,
    resolver,
    terminal,
    verdict,
    watches,
    workers,
)
from triton_load.errors import LoadTestError
from triton_load.options import Options, read
from triton_load.server import UnreachableError
from triton_load.session import Session, of, put


def start(environment: Environment) -> None:
    """Attach a session for the command line; ends the process with 2 when it cannot start."""
    parsed = environment.parsed_options
    assert parsed is not None  # noqa: S101
    attached = gevent.event.Event()

    def begin(**_: Any) -> None:
        # A worker is known to the master before it has asked the server anything: its users, and
        # with them the master's message to start them, wait until it has.
        attached.wait()
        _begin(of(environment))

    environment.events.test_start.add_listener(begin)
    try:
        attach(environment, read(parsed))
        attached.set()
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(objectives.EXIT_INPUT)


def attach(environment: Environment, options: Options) -> Session:
    """Put a session into a Locust environment.

    Raises:
        LoadTestError: The test cannot start.
    """
    resolver.install()
    session = _wait_for_server(environment, options)
    put(environment, session)
    if isinstance(environment.runner, WorkerRunner):
        workers.follow(session, environment.runner)
    else:
        _lead(session)
    return session


def _wait_for_server(environment: Environment, options: Options) -> Session:
    """Make the session; a server that does not answer yet is asked again for `--wait` seconds.

    In a cluster a pod runs before its network policy lets it out.
    """
    deadline = time.monotonic() + options.wait
    while True:
        try:
            return Session(environment, options)
        except UnreachableError:
            if time.monotonic() >= deadline:
                raise
            gevent.sleep(0.5)


def _lead(session: Session) -> None:
    """What only the master, or the one local process, does."""
    environment, options = session.environment, session.options
    runner, parsed = environment.runner, environment.parsed_options
    assert runner is not None  # noqa: S101
    assert parsed is not None  # noqa: S101
    _shape_load(session)
    locust_bridge.before_start(runner, session.note_asked)
    quit_now = locust_bridge.before_quit(runner, lambda: workers.wait_for_counts(session))
    environment.events.test_stopping.add_listener(lambda **_: verdict.note_stop(session))
    environment.events.quitting.add_listener(lambda **_: verdict.finish(session, quit_now))
    # After Locust's own tables, so that the verdict is the last thing one sees.
    # `--json` owns stdout.
    told = sys.stderr if parsed.json else sys.stdout
    environment.events.quit.add_listener(
        lambda **_: print(session.last_words, file=told, flush=True)
    )
    locust_bridge.end_csv_quietly()
    locust_bridge.on_crash(lambda: verdict.crash(session))
    if parsed.only_summary:
        gevent.spawn(terminal.show_progress, session)
    if isinstance(runner, MasterRunner):

        def too_few() -> NoReturn:
            code = verdict.conclude(session)
            quit_now()
            print(session.last_words, flush=True)
            locust_bridge.leave(code)

        workers.lead(session, runner)
        workers.expect(session, runner, too_few=too_few)
    if options.exporter_port:
        from triton_load import exporter

        exporter.serve(session.measurements, port=options.exporter_port)


def _shape_load(session: Session) -> None:
    """Tell Locust how many users there are, and workers what Locust does not know itself."""
    environment, options = session.environment, session.options
    parsed = environment.parsed_options
    assert parsed is not None  # noqa: S101
    parsed.generators = options.users
    parsed.good_limits = session.measurements.limits
    if options.open_loop:
        parsed.spawn_rate = max(float(options.users), parsed.spawn_rate or 0.0)
    elif options.shape != "constant":
        shape = _Shape(session.profile, parsed.spawn_rate or 100.0)
        shape.runner = environment.runner
        environment.shape_class = shape


class _Shape(LoadTestShape):
    """Users over time in a closed loop, for Locust."""

    def __init__(self, profile: arrivals.Profile, spawn_rate: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._profile, self._spawn_rate = profile, spawn_rate

    def tick(self) -> tuple[int, float] | None:
        at = self.get_run_time()  # type: ignore[no-untyped-call]
        if at >= self._profile.duration:
            return None
        return max(0, round(self._profile.level(at))), self._spawn_rate


def _begin(session: Session) -> None:
    """The load begins, in this process."""
    parsed = session.environment.parsed_options
    session.began = time.perf_counter()
    session.started = time.time()
    session.generators = getattr(parsed, "generators", session.options.users)
    limits: Mapping[str, float] = getattr(parsed, "good_limits", None) or {}
    session.measurements.limits = dict(limits)
    if isinstance(session.environment.runner, MasterRunner):
        gevent.spawn(workers.watch, session)
    watches.begin(session)
