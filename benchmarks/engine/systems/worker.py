"""A system in a process of its own, spoken to by JSON lines; for libraries without a server.

The worker's side is `serve`, ours is `running_worker`. Both clocks are the machine's monotonic one.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.engine.systems.base import Answer, Prompt, UnavailableError

Ids = list[list[int]]
Ask = Callable[[Ids, int, int], list[Answer]]
STOP_SECONDS = 15
SILENCE_SECONDS = 300


def serve(start: Callable[[], Ask]) -> None:
    """Start an engine, then answer lines of standard input until it ends."""
    # Libraries print to standard output; the answers have a descriptor of their own.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    ask = start()
    print(json.dumps({"ready": True}), file=lines, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answers = ask(asked["prompts"], asked["tokens"], asked["clients"])
        found = [
            {"start": each.start, "events": each.events, "fault": each.fault} for each in answers
        ]
        print(json.dumps({"answers": found}), file=lines, flush=True)


class RunningWorker:
    """Our side of a worker."""

    def __init__(self, *, session: int, ask: IO[bytes], answers: IO[bytes], log: Path) -> None:
        """Speak to a process over its standard input and output; `log` has its errors."""
        self._ask, self._answers, self._log = ask, answers, log
        self.session = session

    def read(self) -> dict[str, Any]:
        """Return the next line.

        Raises:
            UnavailableError: The worker has ended, and the text holds the last line of its log,
                or it says nothing.
        """
        if not select.select([self._answers], [], [], SILENCE_SECONDS)[0]:
            raise UnavailableError(f"its process said nothing for {SILENCE_SECONDS} s")
        if line := self._answers.readline():
            return dict(json.loads(line))
        told = self._log.read_text("utf-8", errors="replace").strip().splitlines() or ["nothing"]
        raise UnavailableError(f"its process ended; it last said: {told[-1][:300]}")

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, clients: int) -> list[Answer]:
        """Answer all prompts with this many tokens each, `clients` of them at any time."""
        asked = {"prompts": [prompt.ids for prompt in prompts], "tokens": tokens}
        self._ask.write(json.dumps({**asked, "clients": clients}).encode() + b"\n")
        self._ask.flush()
        return [
            Answer(
                start=each["start"],
                events=tuple((when, count) for when, count in each["events"]),
                fault=each["fault"],
            )
            for each in self.read()["answers"]
        ]


@contextlib.contextmanager
def running_worker(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningWorker]:
    """Run a worker until the block ends.

    Raises:
        UnavailableError: It does not start.
    """
    log = folder / "worker.log"
    paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, **paths, "HF_HUB_OFFLINE": "1", **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    try:
        if process.stdin and process.stdout:
            worker = RunningWorker(
                session=process.pid, ask=process.stdin, answers=process.stdout, log=log
            )
            worker.read()
            yield worker
    finally:
        try:
            process.communicate(timeout=STOP_SECONDS)  # the end of its input ends it
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
