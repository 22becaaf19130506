"""What both adapters share: from inputs and parameters to queued jobs, and errors to codes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence

from triton_hf.engine import Engine, Event, Job
from triton_hf.errors import EngineStoppedError, OverloadedError, RequestError, TritonHFError
from triton_hf.metrics import Metrics
from triton_hf.requests import parse_conversations, parse_sampling

Rows = Mapping[str, Sequence[bytes] | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One whole answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


def error_code(error: TritonHFError) -> str:
    """Name of the code of `pb_utils.TritonError` that stands for an error."""
    if isinstance(error, RequestError):
        return "INVALID_ARG"
    if isinstance(error, OverloadedError | EngineStoppedError):
        return "UNAVAILABLE"
    return "INTERNAL"


class Service:
    """Validates requests and queues them; the adapters only carry data to and fro."""

    def __init__(self, *, engine: Engine, metrics: Metrics) -> None:
        """Serve with a started engine."""
        self._engine = engine
        self._metrics = metrics

    def submit_stream(
        self, rows: Rows, parameters: str, listener: Callable[[Event], None]
    ) -> tuple[Job, int]:
        """Queue a request of one row; return its job and the length of its prompt in tokens.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """
        try:
            conversations = parse_conversations(rows)
            if len(conversations) != 1:
                raise RequestError("a stream carries one answer: send one row per request")
            work = self._engine.encode(
                conversations[0], parse_sampling(parameters, self._engine.settings.defaults)
            )
        except RequestError:
            self._metrics.rejected("invalid")
            raise
        return self._engine.submit([work], [listener])[0], work.prompt_tokens

    def submit_whole(
        self,
        rows: Rows,
        parameters: str,
        done: Callable[[list[Answer] | TritonHFError], None],
    ) -> list[Job]:
        """Queue all rows of a request; `done` gets all answers in order, or the first error.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """
        try:
            sampling = parse_sampling(parameters, self._engine.settings.defaults)
            works = [
                self._engine.encode(conversation, sampling)
                for conversation in parse_conversations(rows)
            ]
        except RequestError:
            self._metrics.rejected("invalid")
            raise
        collector = _Collector(prompt_tokens=[work.prompt_tokens for work in works], done=done)
        listeners = [collector.listener(index) for index in range(len(works))]
        return self._engine.submit(works, listeners)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs whose client went away."""
        for job in jobs:
            job.cancel()
        self._engine.wake()


class _Collector:
    """Joins the events of all rows of one request."""

    def __init__(
        self,
        *,
        prompt_tokens: list[int],
        done: Callable[[list[Answer] | TritonHFError], None],
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._done = done
        self._lock = threading.Lock()
        self._texts = [""] * len(prompt_tokens)
        self._answers: dict[int, Answer] = {}
        self._error: TritonHFError | None = None
        self._left = len(prompt_tokens)

    def listener(self, index: int) -> Callable[[Event], None]:
        return lambda event: self._on_event(index, event)

    def _on_event(self, index: int, event: Event) -> None:
        self._texts[index] += event.text
        if not event.last:
            return
        with self._lock:
            if event.error is not None:
                self._error = self._error or event.error
            else:
                self._answers[index] = Answer(
                    text=self._texts[index],
                    finish_reason=event.finish_reason or "",
                    prompt_tokens=self._prompt_tokens[index],
                    completion_tokens=event.completion_tokens,
                )
            self._left -= 1
            complete = self._left == 0
        if complete:
            self._done(self._error or [self._answers[row] for row in range(len(self._texts))])
