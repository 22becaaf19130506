"""The engine interface, and the queue and slots that every engine shares.

An adapter calls `encode` and `submit`; tokens come back as `Event`s on the engine's own thread.
A subclass decides only how the running jobs make their next tokens (`_advance`), so another way
of batching replaces one method and nothing that a client or a dashboard sees.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

from triton_hf.errors import (
    EngineError,
    EngineStoppedError,
    OverloadedError,
    RequestError,
    TritonHFError,
)
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.requests import Conversation, Sampling
from triton_hf.runtime import log, log_fault
from triton_hf.settings import ModelSettings

IDLE_WAIT_SECONDS = 0.5
# So many faults without a token in between, and the engine tries itself with no request to blame.
FAULTS_BEFORE_PROOF = 3
# Weight of the last answer in the mean time that an answer holds its slot.
LAST_ANSWER = 1 / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One validated row: what `encode` makes and `submit` takes.

    Attributes:
        token_ids: The prompt after the chat template; empty where the engine has no tokenizer.
        prompt_tokens: Length of the prompt in tokens.
        max_tokens: Most tokens of the answer; prompt and answer fit `max_total_tokens`.
    """

    conversation: Conversation
    token_ids: tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """News of one job.

    Attributes:
        text: Text since the last event; may be empty.
        completion_tokens: Tokens made so far, in all.
        finish_reason: `stop`, `length` or `cancelled` on the last event, else None.
        error: Set on the last event of a job that failed; `finish_reason` is None then.
    """

    text: str
    completion_tokens: int
    finish_reason: str | None = None
    error: TritonHFError | None = None

    @property
    def last(self) -> bool:
        """Whether no event follows."""
        return self.finish_reason is not None or self.error is not None


Listener = Callable[[Event], None]


class TextAssembler:
    """Joins pieces of text and cuts at the first stop string.

    Text that may be the start of a stop string is held back until it is known not to be one, so
    a client never sees half of a stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Watch for these strings."""
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add a piece; return the text that may be shown now."""
        if self.stopped:
            return ""
        text = self._held + piece
        hits = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if hits:
            self.stopped, self._held = True, ""
            return text[: min(hits)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that starts `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


class Job:
    """One row of a request inside the engine: its work, its state and the way back to the client.

    Attributes:
        first: The job of the request's first row.
        starved: It has a slot and cannot begin: there is no memory for its keys and values yet.
    """

    def __init__(
        self, *, number: int, work: Work, listener: Listener, first: Job | None = None
    ) -> None:
        """Remember the work; the clock of the request starts here."""
        self.first = first or self
        self.number = number
        self.work = work
        self.listener = listener
        self.submitted = time.monotonic()
        self.admitted: float | None = None
        self.last_token: float | None = None
        self.completion_tokens = 0
        self.cancelled = threading.Event()
        self.finished = False
        self.starved = False
        self.assembler = TextAssembler(work.sampling.stop)

    def cancel(self) -> None:
        """Ask the engine to end this job; safe from any thread, at any time, more than once."""
        self.cancelled.set()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineState:
    """A snapshot of the queue."""

    running: int
    waiting: int
    slots: int
    kv_usage: float


class Engine(abc.ABC):
    """A queue, slots and the thread that works on them.

    Promises: a submitted job gets events in order and exactly one last one; the number of
    running jobs never exceeds `slots`, that of waiting ones never `max_queue`, and none waits
    longer than `max_queue_seconds`; an exception in a step fails the jobs of that step and the
    engine goes on with the next; a listener that raises loses its own job only. An engine that
    cannot go on fails all jobs, refuses new ones and says so once, to `on_death`.
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
            settings: Of its model.
            metrics: Where it counts.
            heartbeat: Where it shows that it is alive, or why it is not.
            on_death: Called once on the engine's thread, with the reason, when the engine has
                ended although nobody stopped it.
        """
        self.settings = settings
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._on_death = on_death
        self._changed = threading.Condition()
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._numbers = itertools.count()
        self._stopping = False
        self._death: str | None = None
        self._faults = 0
        self._last_fault = ""
        self._slot_seconds = 0.0
        self._prepares = False  # there is more to prepare
        self._thread: threading.Thread | None = None

    # What a subclass says.

    @abc.abstractmethod
    def _load(self) -> None:
        """Get ready to answer; runs once, before the engine's thread starts."""

    @abc.abstractmethod
    def _tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        """Return the prompt's token ids (may be empty) and its length in tokens."""

    @abc.abstractmethod
    def _advance(self, admitted: Sequence[Job]) -> None:
        """Make the next tokens of all running jobs.

        `admitted` are the running jobs that are new. For each token call `_emit`; end a job with
        `_finish`; call `_sweep` between tokens when one call makes many. A fault that is handled
        here goes to `_note_fault`.
        """

    @abc.abstractmethod
    def _prove(self) -> None:
        """Make a token without a request; raises when that cannot be done any more."""

    def _prepare(self) -> bool:
        """Do some milliseconds of work that no request waits for; False when nothing is left."""
        return False

    def _free_slots(self) -> int:
        return self.settings.slots - len(self._running)

    # What an adapter calls.

    def start(self) -> None:
        """Load, then start to answer. Blocks until the engine is ready."""
        self._heartbeat.beat(state="loading", running=0, waiting=0)
        self._load()
        self._metrics.ready(slots=self.settings.slots)
        self._heartbeat.beat(state="serving", running=0, waiting=0)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def encode(self, conversation: Conversation, sampling: Sampling) -> Work:
        """Check a conversation against the limits of the model.

        Raises:
            RequestError: The prompt is too long, or prompt and `max_tokens` do not fit together.
        """
        token_ids, length = self._tokenize(conversation)
        limits = self.settings
        if length > limits.max_prompt_tokens:
            raise RequestError(
                f"the prompt has {length} tokens after the chat template; "
                f"this model takes at most {limits.max_prompt_tokens}"
            )
        room = limits.max_total_tokens - length
        if sampling.max_tokens is not None and sampling.max_tokens > room:
            raise RequestError(
                f"parameter 'max_tokens' must be a whole number from 1 to {room} for this prompt "
                f"of {length} tokens ({limits.max_total_tokens} in all), got {sampling.max_tokens}"
            )
        return Work(
            conversation=conversation,
            token_ids=token_ids,
            prompt_tokens=length,
            max_tokens=sampling.max_tokens or min(sampling.default_max_tokens, room),
            sampling=sampling,
        )

    def submit(self, works: Sequence[Work], listeners: Sequence[Listener]) -> list[Job]:
        """Queue all rows of a request, or none.

        Raises:
            OverloadedError: They do not fit into the free slots and the queue.
            EngineStoppedError: The engine has stopped, or ended.
        """
        with self._changed:
            if self._death is not None:
                raise EngineStoppedError(self._death)
            if self._stopping:
                raise _shutting_down()
            in_flight = len(self._waiting) + len(self._running)
            limit = self.settings.slots + self.settings.max_queue
            if in_flight + len(works) > limit:
                self._metrics.rejected("queue_full", len(works))
                raise OverloadedError(
                    f"the queue is full: {in_flight} requests in flight and {len(works)} new, "
                    f"{limit} allowed; {self._when(in_flight + len(works) - limit)}"
                )
            jobs: list[Job] = []
            for work, listener in zip(works, listeners, strict=True):
                first = jobs[0] if jobs else None
                number = next(self._numbers)
                jobs.append(Job(number=number, work=work, listener=listener, first=first))
            self._waiting.extend(jobs)
            self._metrics.prompt(sum(work.prompt_tokens for work in works))
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
        except BaseException as error:  # whatever it is, this engine makes no more tokens
            self._die(error)
        else:
            self._fail_all(_shutting_down())

    def _loop(self) -> None:
        while self._wait_for_work():
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
        admitted = self._admit()
        self._sweep()
        if self._running:
            self._advance([job for job in admitted if not job.finished])
        self._prepares = not self._running and self._prepare()

    def _admit(self) -> list[Job]:
        """Move waiting jobs to free slots."""
        self._expire()
        admitted = []
        with self._changed:
            now = time.monotonic()
            for _ in range(min(self._free_slots(), len(self._waiting))):
                job = self._waiting.popleft()
                self._running.append(job)
                admitted.append(job)
                job.admitted = now
                self._metrics.admitted(now - job.submitted)
            self._publish()
        return admitted

    def _sweep(self) -> None:
        """End cancelled jobs, and those that waited too long; keep heartbeat and gauges fresh."""
        with self._changed:
            gone = [job for job in (*self._running, *self._waiting) if job.cancelled.is_set()]
        for job in gone:
            self._finish(job, "cancelled")
        self._expire()
        self._beat()

    def _expire(self) -> None:
        """Refuse the requests that have waited longer than `max_queue_seconds`.

        One whose first row has begun is begun, and its other rows wait for their slots and memory.
        """
        limit = self.settings.max_queue_seconds
        if not limit:
            return
        with self._changed:
            oldest = time.monotonic() - limit
            late = [
                job
                for job in (*self._waiting, *(job for job in self._running if job.starved))
                if job.submitted < oldest and (job.first.admitted is None or job.first.starved)
            ]
            when = self._when(len(self._waiting))
        for job in late:
            what = "memory for its keys and values" if job.starved else "slot"
            text = f"no {what} became free within {limit:g} s ('max_queue_seconds'); {when}"
            self._refuse(job, OverloadedError(text))

    def _test_itself(self) -> None:
        """Go on when what failed was the requests, raise when it is the engine.

        Raises:
            EngineError: The engine fails without a request, too.
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
        """Write a fault to the log, and count it until a token is made."""
        self._faults += 1
        self._last_fault = _in_short(error)
        log_fault(error)

    def _die(self, error: BaseException) -> None:
        """Take no more work, fail what is there, and say why."""
        reason = f"the engine has ended: {_in_short(error)}"
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
        with self._changed:
            running, waiting = len(self._running), len(self._waiting)
        self._heartbeat.beat(state="serving", running=running, waiting=waiting)

    def _emit(self, job: Job, piece: str) -> None:
        """Pass on one new token; ends the job when a stop string or its length is reached."""
        if job.finished:
            return
        now = time.monotonic()
        job.completion_tokens += 1
        if job.last_token is None:
            self._metrics.first_token(now - job.submitted)
        else:
            self._metrics.next_token(now - job.last_token)
        job.last_token = now
        self._faults = 0
        shown = job.assembler.push(piece)
        if job.assembler.stopped:
            self._finish(job, "stop", text=shown)
        elif job.completion_tokens >= job.work.max_tokens:
            self._finish(job, "length", text=shown + job.assembler.flush())
        elif shown:
            self._tell(job, Event(text=shown, completion_tokens=job.completion_tokens))

    def _finish(self, job: Job, reason: str, *, text: str = "") -> None:
        """Free the job's place, then send its last event."""
        if not self._release(job):
            return
        now = time.monotonic()
        if reason != "cancelled":
            self._faults = 0
            self._note_answer(now - (job.admitted or now))
        if reason == "stop" and not job.assembler.stopped:
            text += job.assembler.flush()
        self._metrics.finished(
            reason,
            duration=now - job.submitted,
            prompt_tokens=job.work.prompt_tokens,
            completion_tokens=job.completion_tokens,
        )
        self._tell(
            job, Event(text=text, completion_tokens=job.completion_tokens, finish_reason=reason)
        )

    def _fail(self, job: Job, error: TritonHFError) -> None:
        if self._release(job):
            self._metrics.failed(completion_tokens=job.completion_tokens)
            self._tell_error(job, error)

    def _refuse(self, job: Job, error: OverloadedError) -> None:
        """End a job that never began."""
        if self._release(job):
            self._metrics.rejected("queue_deadline")
            self._tell_error(job, error)

    def _tell_error(self, job: Job, error: TritonHFError) -> None:
        self._tell(job, Event(text="", completion_tokens=job.completion_tokens, error=error))

    def _tell(self, job: Job, event: Event) -> None:
        """Send news of a job; a listener that raises loses this job, and no other one knows."""
        try:
            job.listener(event)
        except Exception as error:
            log("an answer could not be passed on; its request is dropped")
            log_fault(error)
            if not event.last:
                self._fail(job, EngineError("the server could not pass on this answer"))

    def _release(self, job: Job) -> bool:
        with self._changed:
            if job.finished:
                return False
            job.finished = True
            if job in self._running:
                self._running.remove(job)
            else:
                self._waiting.remove(job)
            self._publish()
        return True

    def _fail_running(self, error: TritonHFError) -> None:
        for job in list(self._running):
            self._fail(job, error)

    def _fail_all(self, error: TritonHFError) -> None:
        for job in [*self._running, *self._waiting]:
            self._fail(job, error)

    def _state(self) -> EngineState:
        return EngineState(
            running=len(self._running),
            waiting=len(self._waiting),
            slots=self.settings.slots,
            kv_usage=self._kv_usage(),
        )

    def _kv_usage(self) -> float:
        """Return the share of the memory for keys and values that running requests have."""
        used = sum(job.work.prompt_tokens + job.completion_tokens for job in self._running)
        return used / (self.settings.slots * self.settings.max_total_tokens)

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


def _shutting_down() -> EngineStoppedError:
    return EngineStoppedError("the model is shutting down")


def _in_short(error: BaseException) -> str:
    """Kind and first line of an error that may have many."""
    first = next(iter(str(error).strip().splitlines()), "")
    if isinstance(error, TritonHFError):
        return first
    return f"{type(error).__name__}: {first:.300}" if first else type(error).__name__
