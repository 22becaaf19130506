"""Run long commands side by side and show what each does, with elapsed time.

Standard library only: `make up` starts on a bare machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

SILENCE = 8.0  # seconds after which a quiet step says that it is alive


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
    """Prints lines of all steps to stderr, each with the time since the start."""

    def __init__(self) -> None:
        """Start the clock."""
        self.start = time.monotonic()
        self.lock = threading.Lock()
        self.seconds: dict[str, float] = {}

    def say(self, step: str, line: str) -> None:
        """Print one line of a step."""
        with self.lock:
            elapsed = time.monotonic() - self.start
            print(f"[{elapsed:6.0f} s] {step:<12} {line}", file=sys.stderr, flush=True)

    def table(self) -> str:
        """Return how long each step took, longest first."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        total = time.monotonic() - self.start
        lines = [f"  {name:<14}{seconds:7.0f} s" for name, seconds in rows]
        return "\n".join([*lines, f"  {'in all':<14}{total:7.0f} s"])


def run_all(steps: Sequence[Step], board: Board, *, logs: Path) -> None:
    """Run every step as soon as those it waits for are done.

    Raises:
        StepFailedError: when one fails; those that run are ended first, none is started after.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = {step.name: step for step in steps}
    done: set[str] = set()
    running: dict[Future[None], Step] = {}
    children: dict[str, subprocess.Popen[str]] = {}
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
            for child in children.values():
                child.terminate()
            raise


def _run(step: Step, board: Board, logs: Path, children: dict[str, subprocess.Popen[str]]) -> None:
    start = time.monotonic()
    if callable(step.command):
        step.command()
    else:
        _run_command(step, board, logs / f"{step.name}.log", children)
    board.seconds[step.name] = time.monotonic() - start
    board.say(step.name, f"done in {board.seconds[step.name]:.0f} s")


def _run_command(
    step: Step, board: Board, log: Path, children: dict[str, subprocess.Popen[str]]
) -> None:
    assert not callable(step.command)  # noqa: S101
    child = subprocess.Popen(
        list(step.command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **step.environment},
    )
    children[step.name] = child
    heard = [time.monotonic()]
    started = heard[0]
    ended = threading.Event()

    def keep_alive() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - heard[0] > SILENCE:
                heard[0] = time.monotonic()
                board.say(step.name, f"... still at it, {heard[0] - started:.0f} s")

    threading.Thread(target=keep_alive, daemon=True).start()
    last: list[str] = []
    with log.open("w") as file:
        for line in child.stdout or ():
            heard[0] = time.monotonic()
            file.write(line)
            if text := line.rstrip():
                last = [*last[-14:], text]
                board.say(step.name, text)
    ended.set()
    code = child.wait()
    children.pop(step.name, None)
    if code != 0:
        raise StepFailedError(f"step {step.name} failed (exit code {code}); its whole log: {log}")
