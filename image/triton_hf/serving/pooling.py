"""From inputs and parameters to queued texts, and from their events to the rows of an answer."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from triton_hf.engines.pooling import PoolingEngine
from triton_hf.engines.pooling_job import Options, PoolingEvent, PoolingJob
from triton_hf.errors import EngineError, RequestError, TritonHFError
from triton_hf.metrics import Metrics
from triton_hf.models.registry import CLASSIFY, EMBED, RANK, Task
from triton_hf.serving.service import Ticket
from triton_hf.serving.tokenizing import LONG_CHARACTERS, TokenizerThreads
from triton_hf.serving.validation import TRANSPORT_PARAMETERS, required_text, utf8

Inputs = Mapping[str, Sequence[bytes] | None]
Done = Callable[["list[PoolingRow] | TritonHFError"], None]
_EITHER = {
    EMBED.name: "input 'text' is missing (or send 'tokens', a JSON list of token ids)",
    RANK.name: "inputs 'query' and 'text' are needed, one row for each pair",
    CLASSIFY.name: "input 'text' is missing",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingRow:
    """The result for one row: an embedding, a score, or the scores of the labels."""

    values: tuple[float, ...]
    labels: tuple[str, ...]
    prompt_tokens: int


class PoolingService:
    """Validates requests and queues them; the adapter only carries data to and fro."""

    def __init__(self, *, engine: PoolingEngine, metrics: Metrics) -> None:
        """Serve with a started engine."""
        self._engine = engine
        self._metrics = metrics
        self._task = engine.settings.kind.task
        self._threads = TokenizerThreads(engine)

    def submit(self, inputs: Inputs, parameters: str, done: Done) -> Ticket:
        """Queue all rows of a request; `done` gets all results in order, or the first error.

        A request with much text is tokenized in a thread, as for text models.

        Raises:
            TritonHFError: The request is not valid, or there is no room for it.
        """
        arrived = time.monotonic()
        try:
            options = parse_options(parameters, self._task, self._engine.settings.pooling)
            self._engine.check(options)
            rows = parse_rows(inputs, self._task)
        except RequestError:
            self._metrics.rejected("invalid")
            raise
        ticket = Ticket(rows=len(rows), wake=self._engine.wake)
        collector = _Collector(rows=len(rows), ticket=ticket, done=done)

        def run() -> None:
            ticket.follow(self._queue(rows, options, collector, arrived))

        if sum(len(value) for row in rows for value in row.values()) <= LONG_CHARACTERS:
            run()
        else:
            self._threads.run(run, rows=len(rows), failed=done)
        return ticket

    def stop(self) -> None:
        """End the tokenizing threads; requests that are in them are queued first."""
        self._threads.stop()

    def _queue(
        self,
        rows: Sequence[Mapping[str, Any]],
        options: Options,
        collector: _Collector,
        arrived: float,
    ) -> Sequence[PoolingJob]:
        listeners = [collector.listener(index) for index in range(len(rows))]
        try:
            works = [self._engine.encode(row, options) for row in rows]
            return self._engine.submit(works, listeners, arrived=arrived)
        except RequestError:
            self._metrics.rejected("invalid")
            raise


def parse_options(parameters: str | bytes, task: Task, defaults: Options) -> Options:
    """Turn Triton's request parameters (a JSON object) into the options of a task.

    Raises:
        RequestError: A parameter is unknown, or its value has the wrong type or range.
    """
    given = json.loads(parameters) if parameters else {}
    values = {}
    for name, value in given.items():
        if name in TRANSPORT_PARAMETERS:
            continue
        parameter = task.parameters.get(name)
        if parameter is None or not parameter.request:
            known = ", ".join(
                sorted(item.name for item in task.parameters.values() if item.request)
            )
            raise RequestError(f"unknown parameter '{name}'; this model knows {known}")
        values[name] = parameter.read_json(value)
    return dataclasses.replace(defaults, **values)


def parse_rows(inputs: Inputs, task: Task) -> list[dict[str, Any]]:
    """Turn the input tensors into one mapping from input to value for each row.

    Raises:
        RequestError: An input is missing, in excess, not UTF-8, empty or no list of token ids.
    """
    given = {name: rows for name in task.inputs if (rows := inputs.get(name)) is not None}
    if task is EMBED and len(given) > 1:
        raise RequestError("send input 'text' or input 'tokens', not both")
    needed = {"tokens"} if "tokens" in given else {"query", "text"} if task is RANK else {"text"}
    if not needed <= given.keys():
        raise RequestError(_EITHER[task.name])
    columns = {name: [_value(name, raw, task) for raw in rows] for name, rows in given.items()}
    count = len(next(iter(columns.values())))
    return [{name: rows[index] for name, rows in columns.items()} for index in range(count)]


def _value(name: str, raw: bytes, task: Task) -> Any:
    if name == "tokens":
        return _token_ids(raw)
    # One half of a pair may be empty: a document without text has a score, too.
    second = name == "text_pair" or (name == "text" and task is RANK)
    return utf8(name, raw) if second else required_text(name, raw)


def _token_ids(raw: bytes) -> list[int]:
    try:
        ids = json.loads(utf8("tokens", raw))
    except (ValueError, RecursionError):
        ids = None
    if not isinstance(ids, list) or any(type(token) is not int for token in ids):
        raise RequestError("input 'tokens' must be a JSON list of token ids, such as [101, 102]")
    return ids


class _Collector:
    """Joins the events of all rows of one request; the first error cancels the other rows."""

    def __init__(self, *, rows: int, ticket: Ticket, done: Done) -> None:
        self._ticket = ticket
        self._done = done
        self._rows: list[PoolingRow | None] = [None] * rows
        self._error: TritonHFError | None = None

    def listener(self, index: int) -> Callable[[PoolingEvent], None]:
        return lambda event: self._on_event(index, event)

    def _on_event(self, index: int, event: PoolingEvent) -> None:
        if event.error is not None and self._error is None:
            self._error = event.error
            self._ticket.cancel()
        elif not event.values and self._error is None:
            self._error = EngineError("the request was cancelled")
        self._rows[index] = PoolingRow(
            values=event.values, labels=event.labels, prompt_tokens=event.prompt_tokens
        )
        if self._ticket.row_ended():
            self._done(self._error or [row for row in self._rows if row is not None])
