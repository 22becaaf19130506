"""The thread of an engine: admit, advance, end; faults, death and the heartbeat.

An adapter calls `submit`; events come back to each job's listener on the engine's thread. A task
(`engines.text`) says what a job and an event are. An engine says how the running jobs advance.
"""

from __future__ import annotations

import abc
import queue
import threading
import time
from collections.abc import Callable, Sequence

from triton_hf.engines.job import AnyJob, Event
from triton_hf.engines.queue import SlotQueue, shutting_down
from triton_hf.errors import (
    EngineError,
    EngineStoppedError,
    OverloadedError,
    TritonHFError,
    in_short,
)
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import log, log_fault

IDLE_WAIT_SECONDS = 0.5
# After so many faults without a result in between, the engine tests itself without a request.
FAULTS_BEFORE_PROOF = 3


class Engine(SlotQueue[AnyJob]):
    """A queue and the thread that works on it.

    Promises:
    - A submitted job gets its events in order, and exactly one last event.
    - No job waits longer than `max_queue_seconds` for its slot.
    - An exception in `_advance` fails the running jobs; the engine goes on with the next ones. A
      listener that raises loses only its own job.
    - An engine that cannot go on fails all jobs, refuses new ones, and calls `on_death` once.
    """

    def __init__(
        self,
        *,
        settings: ModelSettings,
        metrics: Metrics,
        heartbeat: Heartbeat,
        on_death: Callable[[str], None] | None = None,
    ) -> None:
        """Make an engine that is not started.

        Args:
            settings: The settings of its model.
            metrics: Where it counts.
            heartbeat: Where it shows progress, or why there is none.
            on_death: Called once on the engine's thread with the reason, if the engine ends
                although nobody stopped it.
        """
        super().__init__(settings=settings, metrics=metrics)
        self._heartbeat = heartbeat
        self._on_death = on_death
        self._faults = 0
        self._last_fault = ""
        self._prepares = False  # there is more to prepare
        self._progressed = False  # since the last heartbeat
        self._was_busy = False
        self._thread: threading.Thread | None = None

    # For a task and its engines.

    @abc.abstractmethod
    def _load(self) -> None:
        """Get ready to answer; runs once, before the engine's thread starts."""

    @abc.abstractmethod
    def _advance(self, admitted: Sequence[AnyJob]) -> bool:
        """Work on the running jobs for a moment; `admitted` are those that are new.

        Handles the faults of single jobs (`_note_fault`, `_fail`). Calls `_sweep` between results
        if one call makes many. Returns whether there was progress: an engine that only waited for
        another process returns False, and its silence shows in the heartbeat.
        """

    @abc.abstractmethod
    def _prove(self) -> None:
        """Compute something without a request; raises if the engine cannot do that any more."""

    @abc.abstractmethod
    def _end_cancelled(self, job: AnyJob) -> None:
        """Release a cancelled job and send its last event."""

    @abc.abstractmethod
    def _error_event(self, job: AnyJob, error: TritonHFError) -> Event:
        """Return the last event of a job that failed."""

    def _look(self) -> None:
        """Raise if the engine cannot go on; called at least every 0.5 s, busy or idle."""

    def _prepare(self) -> bool:
        """Do some milliseconds of work that no request waits for; False if nothing is left."""
        return False

    # For adapters.

    def start(self) -> None:
        """Load, then start to answer. Blocks until the engine is ready."""
        self._heartbeat.beat(state="loading", running=0, waiting=0)
        self._load()
        self._metrics.ready(slots=self.settings.slots)
        self._heartbeat.beat(state="serving", running=0, waiting=0)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; jobs that are still there fail. Safe to call twice."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._heartbeat.remove()

    # The engine's thread.

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # whatever it is, this engine computes nothing any more
            self._die(error)
        else:
            self._fail_all(shutting_down())

    def _loop(self) -> None:
        while self._wait_for_work():
            self._look()
            try:
                self._turn()
            except Exception as error:
                self._note_fault(error)
                self._fail_running(EngineError("the engine failed on this request"))
            if self._faults >= FAULTS_BEFORE_PROOF:
                self._test_itself()

    def _wait_for_work(self) -> bool:
        """Wait while there is nothing to do, but not for long; False when the engine stops."""
        with self._changed:
            if not (self._running or self._waiting or self._stopping):
                self._changed.wait(0 if self._prepares else IDLE_WAIT_SECONDS)
            return not self._stopping

    def _turn(self) -> None:
        self._expire()
        admitted = self._admit()
        self._sweep()
        if self._running:
            self._progressed |= self._advance([job for job in admitted if not job.finished])
        self._prepares = not self._running and self._prepare()

    def _sweep(self) -> None:
        """End cancelled jobs, and those that waited too long; keep heartbeat and gauges fresh."""
        while True:
            try:
                job = self._cancelled_jobs.get_nowait()
            except queue.Empty:
                break
            self._end_cancelled(job)
        self._expire()
        self._beat()

    def _expire(self) -> None:
        """Refuse the requests that have waited longer than `max_queue_seconds`.

        Once the first row of a request has begun, its other rows wait for their slots.
        """
        limit = self.settings.max_queue_seconds
        if not limit:
            return
        with self._changed:
            late = self._late(time.monotonic() - limit)
            when = self._when(len(self._waiting))
        for job in late:
            if self._release(job):
                self._metrics.rejected("queue_deadline")
                text = f"no slot became free within {limit:g} s ('max_queue_seconds'); {when}"
                self._tell(job, self._error_event(job, OverloadedError(text)))

    def _test_itself(self) -> None:
        """Go on if the requests were at fault, raise if the engine is.

        Raises:
            EngineError: The engine also fails without a request.
        """
        try:
            self._sweep()
            self._prove()
        except Exception as error:
            raise EngineError(
                f"{self._faults} faults without a token in between, and none can be made without "
                f"a request either; the last one was {self._last_fault}"
            ) from error
        self._faults = 0

    def _note_fault(self, error: Exception) -> None:
        """Log a fault, and count it until the next result."""
        self._faults += 1
        self._last_fault = in_short(error)
        log_fault(error)

    def _note_result(self) -> None:
        """A job got a result, so the engine works."""
        self._faults = 0
        self._progressed = True

    def _die(self, error: BaseException) -> None:
        """Take no more work, fail all jobs, and say why."""
        reason = f"the engine has ended: {in_short(error)}"
        with self._changed:
            self._death = reason
        try:
            log_fault(error)
            self._heartbeat.fail(reason)
            self._fail_all(EngineStoppedError(reason))
        finally:
            if self._on_death is not None:
                self._on_death(reason)

    def _beat(self) -> None:
        """Show progress, or that there is nothing to do; the start of work shows at once."""
        with self._changed:
            running, waiting = len(self._running), len(self._waiting)
        busy = running + waiting > 0
        if self._progressed or not busy or not self._was_busy:
            self._heartbeat.beat(state="serving", running=running, waiting=waiting)
            self._progressed = False
        self._was_busy = busy

    # How a job ends.

    def _fail(self, job: AnyJob, error: TritonHFError) -> None:
        if self._release(job):
            self._metrics.failed()
            self._tell(job, self._error_event(job, error))

    def _fail_running(self, error: TritonHFError) -> None:
        for job in list(self._running):
            self._fail(job, error)

    def _fail_all(self, error: TritonHFError) -> None:
        for job in [*self._running, *self._waiting.values()]:
            self._fail(job, error)

    def _tell(self, job: AnyJob, event: Event) -> None:
        """Send news of a job; a listener that raises loses only this job."""
        try:
            job.listener(event)
        except Exception as error:
            log("an answer could not be passed on; its request is dropped")
            log_fault(error)
            if not event.last:
                self._fail(job, EngineError("the server could not pass on this answer"))
