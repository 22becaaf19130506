"""Run long commands side by side and show what each does, with elapsed time.

Standard library only: `make up` starts on a bare machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SILENCE = 8.0  # seconds after which a quiet step says that it is alive
GRACE = 10.0  # seconds that steps have to end after one of them failed


class StepFailedError(Exception):
    """A step ended with an error; the text says which and what it said last."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One piece of work.

    Attributes:
        name: word in front of each line of its output.
        command: words of the command, or a function without arguments.
        after: names of the steps that must have ended well before this one starts.
        environment: variables on top of this process's own.
    """

    name: str
    command: Sequence[str] | Callable[[], object]
    after: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Board:
    """Prints lines of all steps to stderr, each with the time since the start.

    Attributes:
        silence: seconds after which a quiet step says that it is alive.
        seconds: how long each step took.
        silences: longest time in seconds that each step said nothing.
    """

    def __init__(self, *, silence: float = SILENCE) -> None:
        """Start the clock."""
        self.start = time.monotonic()
        self.silence = silence
        self.seconds: dict[str, float] = {}
        self.silences: dict[str, float] = {}
        self._lock = threading.Lock()
        self._heard: dict[str, float] = {}

    def say(self, step: str, line: str) -> None:
        """Print one line of a step."""
        with self._lock:
            self._hear(step)
            elapsed = time.monotonic() - self.start
            print(f"[{elapsed:6.0f} s] {step:<12} {line}", file=sys.stderr, flush=True)

    @contextmanager
    def running(self, step: str) -> Iterator[None]:
        """Keep the time of a step, and speak for it when it is quiet for long."""
        start = time.monotonic()
        ended = threading.Event()
        with self._lock:
            self._heard[step] = start
            self.silences[step] = 0.0

        def keep_alive() -> None:
            while not ended.wait(self.silence / 8):
                if time.monotonic() - self._heard[step] > self.silence:
                    self.say(step, f"... still at it, {time.monotonic() - start:.0f} s")

        threading.Thread(target=keep_alive, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            with self._lock:
                self._hear(step)
                self.seconds[step] = time.monotonic() - start

    def table(self) -> str:
        """Return how long each step took and was silent at most, longest first."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        total = time.monotonic() - self.start
        lines = [_row(name, seconds, self.silences[name]) for name, seconds in rows]
        longest = max(self.silences.values(), default=0.0)
        head = f"  {'step':<14}{'took':>9}{'longest silence':>18}"
        return "\n".join([head, *lines, _row("in all", total, longest)])

    def record(self, file: Path) -> None:
        """Write what the table shows as JSON: seconds, of each step and in all."""
        steps = {
            name: {"seconds": round(seconds, 1), "longest_silence": round(self.silences[name], 1)}
            for name, seconds in self.seconds.items()
        }
        total = {
            "seconds": round(time.monotonic() - self.start, 1),
            "longest_silence": round(max(self.silences.values(), default=0.0), 1),
        }
        file.write_text(json.dumps({**total, "steps": steps}, indent=2) + "\n")

    def _hear(self, step: str) -> None:
        now = time.monotonic()
        quiet = now - self._heard.get(step, now)
        self.silences[step] = max(self.silences.get(step, 0.0), quiet)
        self._heard[step] = now


def _row(name: str, seconds: float, silence: float) -> str:
    return f"  {name:<14}{seconds:7.0f} s{silence:16.1f} s"


class _Children:
    """The processes of steps; each leads a session, so that what it started ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._over = False

    def start(self, step: Step) -> subprocess.Popen[str]:
        assert not callable(step.command)  # noqa: S101
        with self._lock:
            if self._over:
                raise StepFailedError(f"step {step.name} was not started, because another failed")
            child = subprocess.Popen(
                list(step.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, **step.environment},
                start_new_session=True,
            )
            self._running.append(child)
        return child

    def end(self) -> None:
        """End all of them: SIGTERM, and SIGKILL for what is left when the grace is over."""
        with self._lock:
            self._over = True
        left = [child.pid for child in self._running if _send(child.pid, signal.SIGTERM)]
        deadline = time.monotonic() + GRACE
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = [group for group in left if _send(group, 0)]
        for group in left:
            _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether there is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def run_all(steps: Sequence[Step], board: Board, *, logs: Path) -> None:
    """Run every step as soon as those it waits for are done.

    Raises:
        StepFailedError: when one fails; those that run are ended first, none is started after.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = {step.name: step for step in steps}
    done: set[str] = set()
    running: dict[Future[None], Step] = {}
    children = _Children()
    with ThreadPoolExecutor(max_workers=len(steps)) as pool:
        try:
            while waiting or running:
                for step in [s for s in waiting.values() if done.issuperset(s.after)]:
                    del waiting[step.name]
                    running[pool.submit(_run, step, board, logs, children)] = step
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    step = running.pop(future)
                    future.result()
                    done.add(step.name)
        except BaseException:
            children.end()
            raise


def _run(step: Step, board: Board, logs: Path, children: _Children) -> None:
    with board.running(step.name):
        if callable(step.command):
            step.command()
        else:
            _run_command(step, board, logs / f"{step.name}.log", children)
    board.say(step.name, f"done in {board.seconds[step.name]:.0f} s")


def _run_command(step: Step, board: Board, log: Path, children: _Children) -> None:
    child = children.start(step)
    with log.open("w") as file:
        for line in child.stdout or ():
            file.write(line)
            if text := line.rstrip():
                board.say(step.name, text)
    code = child.wait()
    if code != 0:
        raise StepFailedError(f"step {step.name} failed (exit code {code}); its whole log: {log}")
