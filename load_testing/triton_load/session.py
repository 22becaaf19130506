"""A load test inside Locust: one session in each process, from its options to the verdict.

Locust starts and stops users, moves reports from workers to the master and writes its CSV. This
module decides what is sent when, counts it, watches the generator itself, and judges at the end.
"""

from __future__ import annotations

import dataclasses
import os
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import psutil
from gevent.pool import Pool
from locust.env import Environment
from locust.runners import (
    STATE_CLEANUP,
    STATE_RUNNING,
    STATE_SPAWNING,
    MasterRunner,
    WorkerRunner,
)
from locust.shape import LoadTestShape

from triton_load import (
    arrivals,
    clients,
    data,
    objectives,
    prompts,
    record,
    replicas,
    report,
    resolver,
    terminal,
)
from triton_load.errors import LoadTestError
from triton_load.measure import Measurements, Outcome, to_next_sample
from triton_load.options import EXAMPLE, Options, read
from triton_load.schema import Model, from_metadata, read_config
from triton_load.server import Server, UnreachableError, check_tcp

_LAG_SECONDS, _CPU_SECONDS = 0.05, 2.0
_TIMER_SECONDS, _LONG_PAUSE_SECONDS = 0.0012, 0.02  # how late a timer is; when that is mended
_FINAL_SECONDS = 5.0  # how long the master waits for the last counts of workers
_EARLY_SECONDS = 1.0  # a run that ends this much before its time was interrupted
# A master answers every second; Locust itself would load the server for a minute without one.
_MASTER_SILENT_SECONDS = 8
_KEY = "triton_load"
_ACTIVE = (STATE_RUNNING, STATE_SPAWNING)


class Session:
    """What one process knows of the test."""

    def __init__(self, environment: Environment, options: Options) -> None:
        """Read everything that the options name, and ask the server what it serves.

        Raises:
            LoadTestError: Something cannot be used; nothing has been sent to a model.
        """
        self.environment, self.options = environment, options
        self.profile = options.profile()
        self.goals = objectives.read_goals(Path(options.objectives)) if options.objectives else ()
        self.client = options.client or "infer"
        self.target = self._target()
        self.cases = self._cases()
        if self.client == "stream":
            for case in self.cases:
                case.fields()
        self.measurements = Measurements(objectives.limits(self.goals))
        self.generators = options.users
        self.in_flight = 0
        self.cut = 0
        self.cpu_percent, self.master_cpu_percent = 0.0, 0.0
        self.grace = float(environment.stop_timeout or 0)
        self.started = 0.0
        self.asked, self.began = 0.0, 0.0
        self.interrupted, self.ending, self.quitting = False, False, False
        # Workers by their ids: those that took part, those that are done, those that went away.
        self.workers: set[str] = set()
        self.finals: set[str] = set()
        self.lost: set[str] = set()
        self.last_words = ""
        self.replicas: dict[int, int] = {}
        self._made = 0
        self._finished = False

    def _target(self) -> clients.Target:
        options = self.options
        server = Server(options.host, headers=options.headers, insecure=options.insecure)
        model = read_config(Path(options.schema)) if options.schema else None
        name = options.model or (model.name if model else "")
        if not name:
            raise LoadTestError("which model? Give --schema FILE or --model NAME")
        metadata = server.metadata(name)
        if model is None:
            model = from_metadata(name, metadata)
        stream = f"{name}_stream"
        if self.client == "stream" and not server.ready(stream):
            stream = name
        target = clients.Target(
            host=options.host,
            grpc=options.grpc_host,
            model=dataclasses.replace(model, name=name),
            stream=stream,
            timeout=options.request_timeout,
            keep_alive=options.keep_alive,
            insecure=options.insecure,
            headers=options.headers,
        )
        if self.client == "grpc":
            check_tcp(options.grpc_host)
            clients.check_grpc(target)
        return target

    def _cases(self) -> tuple[data.Case, ...]:
        model, options = self.target.model, self.options
        if options.prompt_tokens:
            source = random.Random(options.seed)  # noqa: S311
            return (prompts.generated(options.prompt_tokens, model=model, source=source),)
        if not options.data and not model.is_text_model:
            raise LoadTestError(f"{model.name} is no text model; give what to send with --data")
        found = data.read_cases(Path(options.data or EXAMPLE), model)
        return tuple(self._with_parameters(case) for case in found)

    def _with_parameters(self, case: data.Case) -> data.Case:
        return dataclasses.replace(case, parameters={**case.parameters, **self.options.parameters})

    @property
    def over(self) -> bool:
        """Whether it has been judged."""
        return self._finished

    @property
    def owing(self) -> set[str]:
        """The workers whose last counts are still to come."""
        return self.workers - self.finals - self.lost

    def source(self) -> random.Random:
        """A source of randomness of its own for each user, repeatable by --seed."""
        self._made += 1
        worker = getattr(self.environment.runner, "worker_index", 0)
        return random.Random(f"{self.options.seed}/{worker}/{self._made}")  # noqa: S311

    def next_case(self, source: random.Random) -> data.Case:
        """What to send next."""
        if not self.options.prompt_tokens:
            return data.choose(self.cases, source)
        case = prompts.generated(self.options.prompt_tokens, model=self.target.model, source=source)
        return self._with_parameters(case)

    def ask(
        self, client: clients.Client, source: random.Random, *, scheduled: float | None = None
    ) -> Outcome:
        """Send one request, count it and tell Locust; never raises for what a server does."""
        case = self.next_case(source)
        now = time.perf_counter()
        outcome = Outcome(case=case.name, scheduled=scheduled, started=now)
        self.measurements.start(now)
        self.in_flight += 1
        try:
            client.send(case, outcome)
        finally:
            self.in_flight -= 1
        self.measurements.finish(outcome)
        self._tell(outcome)
        return outcome

    def _tell(self, outcome: Outcome) -> None:
        failure = None if outcome.error is None else RuntimeError(": ".join(outcome.error))
        self.environment.events.request.fire(
            request_type=self.client,
            name=f"{self.target.model.name} {outcome.case}",
            response_time=outcome.latency * 1000,
            response_length=outcome.text_bytes,
            exception=failure,
            context={},
        )
        self.environment.events.llm_request.fire(outcome=outcome)  # type: ignore[attr-defined]

    def repeat(self, user: Any, client: clients.Client, source: random.Random) -> None:
        """Send requests one after the other, with pauses, until Locust stops the user.

        Users begin somewhere in a pause, or they would all ask at once and wait for each other.
        """
        self._pause(user, until=time.perf_counter() + source.random() * self.options.think_time)
        while not user.is_stopping:
            self.ask(client, source)
            self._pause(user, until=time.perf_counter() + self.options.think_time)

    @staticmethod
    def _pause(user: Any, *, until: float, exact: bool = False) -> None:
        """Let others run until a moment, or until Locust stops the user.

        gevent's timers are a millisecond late. At the end of an exact pause that is much longer, it
        is spent in turns with the others instead; after shorter ones that would cost too much.
        """
        gevent.sleep(0)
        exact = exact and until - time.perf_counter() > _LONG_PAUSE_SECONDS
        early = _TIMER_SECONDS if exact else 0.0
        while not user.is_stopping and (ahead := until - time.perf_counter()) > 0:
            gevent.sleep(min(max(0.0, ahead - early), 0.1))

    def arrive(self, user: Any, client: clients.Client) -> None:
        """Send requests at the open-loop rate until Locust stops the user; then let them end."""
        pool, source = Pool(), self.source()
        plan = arrivals.moments(
            self.profile,
            arrival=self.options.arrival,
            share=1.0 / max(1, self.generators),
            source=source,
        )
        for at in plan:
            due = self.began + at
            if due > time.perf_counter():
                self._pause(user, until=due, exact=True)
            if user.is_stopping:
                break
            if self.in_flight >= self.options.max_in_flight:
                self.cut += 1
                continue
            pool.spawn(self.ask, client, source, scheduled=due)
        pool.join()

    def config(self) -> dict[str, Any]:
        """What was asked for, for the record; headers may hold keys and are left out."""
        hidden = ("headers", "exporter_port", "out", "run_name", "parameters", "wait")
        plain = {
            field.name: getattr(self.options, field.name)
            for field in dataclasses.fields(self.options)
            if field.name not in hidden
        }
        return plain | {
            "model": self.target.model.name,
            "client": self.client,
            "users": self.generators,
            "parameters": dict(self.options.parameters),
            "cases": [case.name for case in self.cases],
        }


def attach(environment: Environment, options: Options) -> Session:
    """Put a session into a Locust environment.

    Raises:
        LoadTestError: The test cannot start.
    """
    resolver.install()
    session = _wait_for_server(environment, options)
    runner = environment.runner
    setattr(environment, _KEY, session)
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(
            lambda data, **_: data.update({_KEY: _report(session)})
        )
        environment.events.test_stop.add_listener(lambda **_: _worker_ends(session, runner))
        environment.events.quitting.add_listener(lambda **_: _worker_quits(environment, runner))
        gevent.spawn(_watch_master, environment, runner)
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


def of(environment: Environment) -> Session:
    """The session of an environment."""
    found = getattr(environment, _KEY)
    assert isinstance(found, Session)  # noqa: S101
    return found


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


def _lead(session: Session) -> None:
    """What only the master, or the one local process, does."""
    environment, options = session.environment, session.options
    runner, parsed = environment.runner, environment.parsed_options
    assert runner is not None  # noqa: S101
    assert parsed is not None  # noqa: S101
    # Workers take over what Locust does not know itself.
    parsed.generators = options.users
    parsed.good_limits = session.measurements.limits
    if options.open_loop:
        parsed.spawn_rate = max(float(options.users), parsed.spawn_rate or 0.0)
    elif options.shape != "constant":
        shape = _Shape(session.profile, parsed.spawn_rate or 100.0)
        shape.runner = runner
        environment.shape_class = shape
    start_now, quit_now = runner.start, runner.quit

    def start(*words: Any, **named: Any) -> None:
        # Locust's clock runs from here; listeners of test_start may take their time.
        session.asked = session.asked or time.perf_counter()
        start_now(*words, **named)

    runner.start = start  # type: ignore[method-assign]
    runner.quit = lambda: _quit(session, quit_now)  # type: ignore[method-assign]
    environment.events.test_stopping.add_listener(lambda **_: _stops(session))
    environment.events.quitting.add_listener(lambda **_: _finish(session, quit_now))
    # After Locust's own tables, so that the verdict is the last thing one sees.
    environment.events.quit.add_listener(lambda **_: print(session.last_words, flush=True))
    terminal.end_csv_quietly()
    sys.excepthook = lambda *found: _crash(session, *found)
    if parsed.only_summary:
        gevent.spawn(terminal.show_progress, session)
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(
            lambda client_id, data, **_: _take(session, data.get(_KEY))
        )
        runner.register_message(_KEY, lambda environment, msg: _take_last(session, msg))
        _wait_for_workers(session, quit_now)
    if options.exporter_port:
        from triton_load import exporter

        exporter.serve(session.measurements, port=options.exporter_port)


def _begin(session: Session) -> None:
    parsed = session.environment.parsed_options
    session.began = time.perf_counter()
    session.started = time.time()
    session.generators = getattr(parsed, "generators", session.options.users)
    limits: Mapping[str, float] = getattr(parsed, "good_limits", None) or {}
    session.measurements.limits = dict(limits)
    master = isinstance(session.environment.runner, MasterRunner)
    watches = (_watch_workers,) if master else (_watch_load, _watch_lag)
    for watch in (*watches, _watch_cpu):
        gevent.spawn(watch, session)
    if session.options.replicas_host and not isinstance(session.environment.runner, WorkerRunner):
        gevent.spawn(_watch_replicas, session)


def _running(session: Session) -> bool:
    return not session._finished


def _watch_load(session: Session) -> None:
    while _running(session):
        runner = session.environment.runner
        # Not while the web page lingers after the load.
        if runner and runner.state in (*_ACTIVE, STATE_CLEANUP):
            session.measurements.sample(
                users=runner.user_count, in_flight=session.in_flight, moment=time.perf_counter()
            )
        gevent.sleep(to_next_sample(time.time()))


def _watch_lag(session: Session) -> None:
    while _running(session):
        due = time.perf_counter() + _LAG_SECONDS
        gevent.sleep(_LAG_SECONDS)
        session.measurements.probe(max(0.0, time.perf_counter() - due))


def _watch_cpu(session: Session) -> None:
    process, before = psutil.Process(), 0.0
    master = isinstance(session.environment.runner, MasterRunner)
    place = "master_cpu_percent" if master else "cpu_percent"
    process.cpu_percent(None)
    while _running(session):
        gevent.sleep(_CPU_SECONDS)
        now = process.cpu_percent(None)
        setattr(session, place, max(getattr(session, place), min(before, now)))
        before = now


def _watch_workers(session: Session) -> None:
    runner = session.environment.runner
    assert isinstance(runner, MasterRunner)  # noqa: S101
    while _running(session):
        if runner.state in _ACTIVE:
            session.workers |= _present(runner)
        _note_lost(session, runner)
        if session.lost and not session.quitting:
            _give_up(session, runner)
            return
        gevent.sleep(0.5)


def _present(runner: MasterRunner) -> set[str]:
    clients = runner.clients
    return {client.id for client in (*clients.ready, *clients.spawning, *clients.running)}


def _note_lost(session: Session, runner: MasterRunner) -> None:
    """Whoever is gone and still owes its last counts is lost, though it may come back."""
    session.lost |= session.owing - _present(runner)


def _stops(session: Session) -> None:
    """Locust begins to stop: at its time, because somebody wants it, or without any worker left."""
    runner = session.environment.runner
    if isinstance(runner, MasterRunner):
        _note_lost(session, runner)
    session.ending = True
    early = time.perf_counter() - session.asked < session.options.run_time - _EARLY_SECONDS
    if session.asked and early and not session.lost:
        session.interrupted = True


def _give_up(session: Session, runner: MasterRunner) -> None:
    """End a run that cannot become valid again, instead of loading the server for nothing."""
    print(
        "load: a worker was lost, so the run is invalid; it ends now", file=sys.stderr, flush=True
    )
    runner.quit()
    if session.environment.web_ui:
        session.environment.web_ui.stop()


def _watch_replicas(session: Session) -> None:
    while _running(session):
        found = replicas.count(session.options.replicas_host)
        if found is not None:
            session.replicas[int(time.time())] = found
        gevent.sleep(to_next_sample(time.time()))


def _report(session: Session) -> dict[str, Any]:
    cut, session.cut = session.cut, 0
    return {
        "measurements": session.measurements.drain(),
        "cpu": session.cpu_percent,
        "cut": cut,
    }


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


def _worker_ends(session: Session, runner: WorkerRunner) -> None:
    # Locust sleeps for the stop timeout once more before it reads the next message.
    session.environment.stop_timeout = 0.0
    runner.send_message(_KEY, _report(session))


def _worker_quits(environment: Environment, runner: WorkerRunner) -> None:
    """A worker that is ended before its test is over must not look like one that is done."""
    if runner.state in _ACTIVE:
        environment.process_exit_code = objectives.EXIT_INVALID


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


def _wait_for_workers(session: Session, quit_now: Any) -> None:
    """Too few workers make the run invalid; Locust itself would end with 1, as for a bad server."""
    parsed, runner = session.environment.parsed_options, session.environment.runner
    assert isinstance(runner, MasterRunner)  # noqa: S101
    assert parsed is not None  # noqa: S101
    longest, parsed.expect_workers_max_wait = parsed.expect_workers_max_wait, 0
    if not longest:
        return

    def watch() -> None:
        gevent.sleep(longest)
        if session.began:
            return
        session.workers = _present(runner)
        code = _conclude(session)
        quit_now()
        print(session.last_words, flush=True)
        os._exit(code)

    gevent.spawn(watch)


def _quit(session: Session, quit_now: Any) -> None:
    """Let users finish within the stop timeout and workers hand over their counts, then quit.

    A worker that does not hand them over is lost, since nobody knows what it did.
    """
    runner = session.environment.runner
    assert runner is not None  # noqa: S101
    if isinstance(runner, MasterRunner) and not session._finished:
        session.quitting = True
        runner.stop()
        _note_lost(session, runner)
        end = time.monotonic() + _FINAL_SECONDS
        while session.owing and time.monotonic() < end:
            gevent.sleep(0.1)
        session.lost |= session.owing
    quit_now()


def _finish(session: Session, quit_now: Any) -> None:
    """Judge once, when the process ends."""
    if session._finished:
        return
    runner = session.environment.runner
    assert runner is not None  # noqa: S101
    if runner.state in _ACTIVE:
        session.interrupted = True
        quit_now()
    session.environment.process_exit_code = _conclude(session)


def _conclude(session: Session) -> int:
    session._finished = True
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


def _crash(session: Session, *found: Any) -> None:
    """End with the code of an invalid run: Python's own, 1, would blame the server.

    Locust's files are written after the verdict, and a full volume ends it there.
    """
    sys.__excepthook__(*found)
    print(session.last_words)
    print("\nlocust died before its end, so the run is invalid", flush=True)
    os._exit(objectives.EXIT_INVALID)


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
    return record.Record(
        name=options.run_name or session.target.model.name,
        started=started,
        config=session.config(),
        totals=totals,
        distributions={name: d for name, d in counts.distributions.items() if d.count},
        series=_series(session, started),
        errors=counts.error_classes(),
        workers=workers,
        objectives=found,
        verdict=objectives.judge(found, totals, workers, validity),
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


def model_of(environment: Environment) -> Model:
    """The model under test."""
    return of(environment).target.model
