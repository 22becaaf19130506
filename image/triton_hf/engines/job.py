"""A job: one row of a request inside an engine, and the news that its client gets."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from triton_hf.errors import TritonHFError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """News of one job; a task adds its results.

    Attributes:
        error: Set on the last event of a job that failed.
    """

    error: TritonHFError | None = None

    @property
    def last(self) -> bool:
        """Whether no event follows."""
        return self.error is not None


Listener = Callable[[Any], None]
Work = TypeVar("Work")


class Job(Generic[Work]):
    """One row of a request inside the engine: its work, its state and the way back to the client.

    Attributes:
        first: The job of the request's first row.
        submitted: When the request arrived, on the monotonic clock in seconds.
        admitted: When the job got its slot, or None.
    """

    def __init__(
        self,
        *,
        number: int,
        work: Work,
        listener: Listener,
        submitted: float,
        cancelled_jobs: queue.SimpleQueue[Any],
        first: Any = None,
    ) -> None:
        self.first = first or self
        self.number = number
        self.work = work
        self.listener = listener
        self.submitted = submitted
        self.admitted: float | None = None
        self.finished = False
        self._cancelled_jobs = cancelled_jobs
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to end it."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask the engine to end this job; safe from any thread, at any time, more than once."""
        if not self._cancelled:
            self._cancelled = True
            self._cancelled_jobs.put(self)


AnyJob = TypeVar("AnyJob", bound=Job[Any])
