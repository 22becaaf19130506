"""From inputs and parameters to queued jobs, for whole answers and for streams."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triton_hf.contract import Conversation, Sampling
from triton_hf.engines.job import Job
from triton_hf.engines.text import TextEngine, TextEvent, TextJob
from triton_hf.errors import RequestError, TritonHFError
from triton_hf.metrics import Metrics
from triton_hf.serving.tokenizing import LONG_CHARACTERS, TokenizerThreads
from triton_hf.serving.validation import parse_conversations, parse_sampling

Rows = Mapping[str, Sequence[bytes] | None]
Listener = Callable[[TextEvent], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One whole answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Ticket:
    """One request, from its submission to its last event; safe from any thread."""

    def __init__(self, *, rows: int, wake: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._wake = wake
        self._jobs: Sequence[Job[Any]] = ()
        self._left = rows
        self._cancelled = False

    @property
    def finished(self) -> bool:
        """Whether every row has had its last event."""
        return self._left <= 0

    def cancel(self) -> None:
        """End the rows that still run or wait."""
        with self._lock:
            self._cancelled = True
            jobs = self._jobs
        for job in jobs:
            job.cancel()
        if jobs:
            self._wake()

    def follow(self, jobs: Sequence[Job[Any]]) -> None:
        """Take the jobs of the rows; they are cancelled if the ticket already is."""
        with self._lock:
            self._jobs = jobs
            cancelled = self._cancelled
        if cancelled:
            self.cancel()

    def row_ended(self) -> bool:
        """Count a row that has ended; True if it was the last one."""
        with self._lock:
            self._left -= 1
            return self._left == 0


class Service:
    """Validates requests and queues them; the adapters only carry data to and fro."""

    def __init__(self, *, engine: TextEngine, metrics: Metrics) -> None:
        """Serve with a started engine."""
        self._engine = engine
        self._metrics = metrics
        self._threads = TokenizerThreads(engine)

    def submit_stream(self, rows: Rows, parameters: str, listener: Listener) -> Ticket:
        """Queue a request of one row; `listener` gets its events, an error among them.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """
        conversations, sampling = self._parse(rows, parameters)
        if len(conversations) != 1:
            self._metrics.rejected("invalid")
            raise RequestError("a stream carries one answer: send one row per request")
        ticket = Ticket(rows=1, wake=self._engine.wake)

        def listen(event: TextEvent) -> None:
            if event.last:
                ticket.row_ended()
            listener(event)

        self._queue(conversations, sampling, [listen], ticket)
        return ticket

    def submit_whole(
        self,
        rows: Rows,
        parameters: str,
        done: Callable[[list[Answer] | TritonHFError], None],
    ) -> Ticket:
        """Queue all rows of a request; `done` gets all answers in order, or the first error.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """
        conversations, sampling = self._parse(rows, parameters)
        ticket = Ticket(rows=len(conversations), wake=self._engine.wake)
        collector = _Collector(rows=len(conversations), ticket=ticket, done=done)
        listeners = [collector.listener(index) for index in range(len(conversations))]
        self._queue(conversations, sampling, listeners, ticket)
        return ticket

    def stop(self) -> None:
        """End the tokenizing threads; requests that are in them are queued first."""
        self._threads.stop()

    def _parse(self, rows: Rows, parameters: str) -> tuple[list[Conversation], Sampling]:
        try:
            sampling = parse_sampling(parameters, self._engine.settings.defaults)
            return parse_conversations(rows), sampling
        except RequestError:
            self._metrics.rejected("invalid")
            raise

    def _queue(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        listeners: Sequence[Listener],
        ticket: Ticket,
    ) -> None:
        """Tokenize and submit: here if that is quick, else in a thread that reports faults."""
        arrived = time.monotonic()

        def run() -> None:
            ticket.follow(self._submit(conversations, sampling, listeners, arrived))

        characters = sum(len(turn.content) for turns in conversations for turn in turns)
        # Compiling a grammar may take long, too.
        if characters <= LONG_CHARACTERS and sampling.guide is None and sampling.tools is None:
            run()
            return
        self._threads.run(
            run, rows=len(conversations), failed=lambda error: _tell_all(listeners, error)
        )

    def _submit(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        listeners: Sequence[Listener],
        arrived: float,
    ) -> Sequence[TextJob]:
        try:
            works = [self._engine.encode(turns, sampling) for turns in conversations]
            return self._engine.submit(works, listeners, arrived=arrived)
        except RequestError:
            self._metrics.rejected("invalid")
            raise


def _tell_all(listeners: Sequence[Listener], error: TritonHFError) -> None:
    for listener in listeners:
        listener(TextEvent(text="", prompt_tokens=0, completion_tokens=0, error=error))


class _Collector:
    """Joins the events of all rows of one request; the first error cancels the other rows."""

    def __init__(
        self,
        *,
        rows: int,
        ticket: Ticket,
        done: Callable[[list[Answer] | TritonHFError], None],
    ) -> None:
        self._ticket = ticket
        self._done = done
        self._texts = [""] * rows
        self._answers: dict[int, Answer] = {}
        self._error: TritonHFError | None = None

    def listener(self, index: int) -> Listener:
        return lambda event: self._on_event(index, event)

    def _on_event(self, index: int, event: TextEvent) -> None:
        self._texts[index] += event.text
        if not event.last:
            return
        if event.error is not None:
            if self._error is None:
                self._error = event.error
                self._ticket.cancel()
        else:
            self._answers[index] = Answer(
                text=self._texts[index],
                finish_reason=event.finish_reason or "",
                prompt_tokens=event.prompt_tokens,
                completion_tokens=event.completion_tokens,
            )
        if self._ticket.row_ended():
            self._done(self._error or [self._answers[row] for row in range(len(self._texts))])
