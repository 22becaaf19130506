"""The queue and the slots of an engine: who waits, who runs, who has waited too long."""

from __future__ import annotations

import abc
import collections
import dataclasses
import heapq
import itertools
import math
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any, Generic

from triton_hf.engines.job import AnyJob, Listener
from triton_hf.errors import EngineStoppedError, OverloadedError, RequestError
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings

# Weight of the last answer in the running mean of the time that an answer holds its slot.
LAST_ANSWER = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineState:
    """A snapshot of the queue; `kv_usage` is a share from 0 to 1."""

    running: int
    waiting: int
    slots: int
    kv_usage: float


class SlotQueue(abc.ABC, Generic[AnyJob]):
    """Jobs that wait in order of arrival, and jobs that hold a slot; safe from any thread.

    At most `slots` jobs run and at most `max_queue` wait.
    """

    def __init__(self, *, settings: ModelSettings, metrics: Metrics) -> None:
        """Start empty.

        Args:
            settings: `slots`, `max_queue` and `max_queue_seconds` of the model.
            metrics: Where the queue counts.
        """
        self.settings = settings
        self._metrics = metrics
        self._changed = threading.Condition()
        self._waiting: collections.OrderedDict[int, AnyJob] = collections.OrderedDict()
        self._arrivals: list[tuple[float, int]] = []  # heap: when jobs arrived, oldest first
        self._running: list[AnyJob] = []
        self._cancelled_jobs: queue.SimpleQueue[AnyJob] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._stopping = False
        self._death: str | None = None
        self._slot_seconds = 0.0

    # For a task and its engines.

    @abc.abstractmethod
    def _make_job(self, **parts: Any) -> AnyJob:
        """Return a job of this task; `parts` are the arguments of `Job`."""

    def _accepted(self, jobs: Sequence[AnyJob]) -> None:
        """Count the jobs of a request that was accepted; holds the lock."""

    def _dropped(self, job: AnyJob) -> None:
        """Let go of a job that has left for any reason; runs on any thread, without the lock."""

    def _kv_usage(self) -> float:
        """Return the share of the KV cache in use, 0 to 1."""
        return 0.0

    # For adapters.

    @property
    def capacity(self) -> int:
        """Most jobs in flight: slots and queue together."""
        return self.settings.slots + self.settings.max_queue

    def check_room(self, rows: int, *, beside: int = 0) -> None:
        """Refuse a request that does not fit now, as `submit` would.

        Args:
            rows: Rows of the request.
            beside: Rows of other requests that are on their way to `submit`.
        """
        with self._changed:
            self._check_room(rows, beside=beside)

    def submit(
        self,
        works: Sequence[Any],
        listeners: Sequence[Listener],
        *,
        arrived: float | None = None,
    ) -> list[AnyJob]:
        """Queue all rows of a request, or none.

        Args:
            works: One for each row.
            listeners: One for each row; called on the engine's thread.
            arrived: When the request arrived, on the monotonic clock; None for now.

        Raises:
            RequestError: The request has more rows than slots and queue can ever hold.
            OverloadedError: The rows do not fit now.
            EngineStoppedError: The engine has stopped, or ended.
        """
        with self._changed:
            self._check_room(len(works))
            submitted = time.monotonic() if arrived is None else arrived
            jobs: list[AnyJob] = []
            for work, listener in zip(works, listeners, strict=True):
                job = self._make_job(
                    number=next(self._numbers),
                    work=work,
                    listener=listener,
                    submitted=submitted,
                    cancelled_jobs=self._cancelled_jobs,
                    first=jobs[0] if jobs else None,
                )
                jobs.append(job)
                self._waiting[job.number] = job
                heapq.heappush(self._arrivals, (submitted, job.number))
            self._accepted(jobs)
            self._publish()
            self._changed.notify()
        return jobs

    def wake(self) -> None:
        """Make the engine look at cancelled jobs now."""
        with self._changed:
            self._changed.notify()

    def state(self) -> EngineState:
        """Return how full the engine is."""
        with self._changed:
            return self._state()

    def _check_room(self, rows: int, *, beside: int = 0) -> None:
        if self._death is not None:
            raise EngineStoppedError(self._death)
        if self._stopping:
            raise shutting_down()
        if rows > self.capacity:
            raise RequestError(
                f"the request has {rows} rows, but this model holds at most {self.capacity} at a "
                f"time ({self.settings.slots} slots and a queue of {self.settings.max_queue}); "
                "send fewer rows per request"
            )
        in_flight = len(self._waiting) + len(self._running) + beside
        if in_flight + rows > self.capacity:
            self._metrics.rejected("queue_full", rows)
            raise OverloadedError(
                f"the queue is full: {in_flight} requests in flight and {rows} new, "
                f"{self.capacity} allowed; {self._when(in_flight + rows - self.capacity)}"
            )

    # For the engine's thread.

    def _admit(self) -> list[AnyJob]:
        """Move waiting jobs to free slots."""
        admitted = []
        with self._changed:
            now = time.monotonic()
            free = self.settings.slots - len(self._running)
            for _ in range(min(free, len(self._waiting))):
                _, job = self._waiting.popitem(last=False)
                self._running.append(job)
                admitted.append(job)
                job.admitted = now
                self._metrics.admitted(now - job.submitted)
            self._publish()
        return admitted

    def _late(self, oldest: float) -> list[AnyJob]:
        """Return the waiting jobs that arrived before a time, unless their request has begun.

        Each job is looked at once, when it is late or gone; holds the lock.
        """
        late = []
        while self._arrivals and self._arrivals[0][0] < oldest:
            _, number = heapq.heappop(self._arrivals)
            job = self._waiting.get(number)
            if job is not None and job.first.admitted is None:
                late.append(job)
        return late

    def _release(self, job: AnyJob) -> bool:
        """Free the place of a job; False if it has ended before."""
        with self._changed:
            if job.finished:
                return False
            job.finished = True
            if self._waiting.pop(job.number, None) is None:
                self._running.remove(job)
            self._publish()
        self._dropped(job)
        return True

    def _state(self) -> EngineState:
        return EngineState(
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self.settings.slots,
            kv_usage=self._kv_usage(),
        )

    def _publish(self) -> None:
        state = self._state()
        self._metrics.queue(running=state.running, waiting=state.waiting, kv_usage=state.kv_usage)

    def _note_answer(self, seconds: float) -> None:
        """Keep the mean time that an answer holds its slot."""
        mean = self._slot_seconds or seconds
        self._slot_seconds = mean + LAST_ANSWER * (seconds - mean)

    def _when(self, places: int) -> str:
        """Say in how many seconds so many places are likely to be free."""
        seconds = places * self._slot_seconds / self.settings.slots
        return f"try again in {max(1, math.ceil(seconds))} s"


def shutting_down() -> EngineStoppedError:
    """The error of a request that comes while the model stops."""
    return EngineStoppedError("the model is shutting down")
