"""A load test inside one process: what is sent when, to whom, and what is known of it so far.

Locust starts and stops users; `startup` puts a session into its environment, `workers` joins the
sessions of several processes, `watches` looks at the load and at the generator itself, and
`verdict` judges at the end.
"""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import gevent
from gevent.pool import Pool
from locust.env import Environment
from locust.runners import STATE_RUNNING, STATE_SPAWNING

from triton_load import arrivals, clients, data, objectives, prompts
from triton_load.errors import LoadTestError
from triton_load.measure import Measurements, Outcome
from triton_load.options import EXAMPLE, Options
from triton_load.schema import Model, from_metadata, of_openai, read_config
from triton_load.server import Server, check_tcp

# A request that failed sooner is not repeated before: a user would ask again as fast as it is
# refused, and the generator would end as what limits the run.
_FAILED_SECONDS = 1.0
_TIMER_SECONDS, _LONG_PAUSE_SECONDS = 0.0012, 0.02  # how late a timer is; when that is mended
KEY = "triton_load"  # of the session in an environment, and of its reports between processes
ACTIVE = (STATE_RUNNING, STATE_SPAWNING)


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
        clients.check(self.client, self.cases)
        self.measurements = Measurements(objectives.limits(self.goals))
        self.generators = options.users
        self.in_flight = 0
        self.cut = 0
        self.cpu_percent, self.master_cpu_percent = 0.0, 0.0
        self.grace = float(environment.stop_timeout or 0)
        self.started = 0.0
        self.asked, self.began = 0.0, 0.0
        self.interrupted, self.ending, self.quitting = False, False, False
        self.over = False  # whether it has been judged
        # Workers by their ids: those that took part, those that are done, those that went away.
        self.workers: set[str] = set()
        self.finals: set[str] = set()
        self.lost: set[str] = set()
        self.last_words = ""
        self.replicas: dict[int, int] = {}
        self._made = 0

    def _target(self) -> clients.Target:
        options = self.options
        server = Server(options.host, headers=options.headers, insecure=options.insecure)
        model = read_config(Path(options.schema)) if options.schema else None
        name = options.model or (model.name if model else "")
        if not name:
            raise LoadTestError("which model? Give --schema FILE or --model NAME")
        if self.client == "openai":
            server.check_openai(clients.base_path(options.host), name)
            return self._target_of(of_openai(name), stream=name)
        metadata = server.metadata(name)
        if model is None or not model.inputs:
            model = from_metadata(name, metadata, server.config(name))
        stream = f"{name}_stream"
        if self.client == "stream" and not server.ready(stream):
            stream = name
        target = self._target_of(dataclasses.replace(model, name=name), stream=stream)
        if self.client == "grpc":
            check_tcp(options.grpc_host)
            clients.check_grpc(target)
        return target

    def _target_of(self, model: Model, *, stream: str) -> clients.Target:
        options = self.options
        return clients.Target(
            host=options.host,
            grpc=options.grpc_host,
            model=model,
            stream=stream,
            timeout=options.request_timeout,
            keep_alive=options.keep_alive,
            insecure=options.insecure,
            headers=options.headers,
        )

    def _cases(self) -> tuple[data.Case, ...]:
        model, options = self.target.model, self.options
        if options.prompt_tokens:
            source = random.Random(options.seed)  # noqa: S311
            return (prompts.generated(options.prompt_tokens, model=model, source=source),)
        if not options.data and not model.is_text_model:
            raise LoadTestError(f"{model.name} is no text model; give what to send with --data")
        file, bodies = Path(options.data or EXAMPLE), self.client == "openai"
        found = data.read_cases(file, model, bodies=bodies)
        return tuple(self._with_parameters(case) for case in found)

    def _with_parameters(self, case: data.Case) -> data.Case:
        return dataclasses.replace(case, parameters={**case.parameters, **self.options.parameters})

    @property
    def owing(self) -> set[str]:
        """The workers whose last counts are still to come."""
        return self.workers - self.finals - self.lost

    def note_asked(self) -> None:
        """Locust was asked to start the load: its clock runs from here."""
        self.asked = self.asked or time.perf_counter()

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

        Users begin somewhere in a pause, or they would all ask at once and wait for each other. One
        whose request failed at once does not ask again before a second has passed.
        """
        self._pause(user, until=time.perf_counter() + source.random() * self.options.think_time)
        while not user.is_stopping:
            outcome = self.ask(client, source)
            until = outcome.ended + self.options.think_time
            if outcome.error is not None:
                until = max(until, outcome.started + _FAILED_SECONDS)
            self._pause(user, until=until)

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


def put(environment: Environment, session: Session) -> None:
    """Let an environment know its session."""
    setattr(environment, KEY, session)


def of(environment: Environment) -> Session:
    """The session of an environment."""
    found = getattr(environment, KEY)
    assert isinstance(found, Session)  # noqa: S101
    return found
