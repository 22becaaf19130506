"""One system's numbers: speed by shape and clients, first tokens, memory, start."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

from benchmarks.engine.systems.base import Answer, Prompt, Running
from benchmarks.engine.systems.prompts import Prompts

SERIAL_REQUESTS = 2
REQUESTS_A_CLIENT = 4
IDLE_PROMPT, IDLE_RUNS = 128, 8
WARM_ANSWER = 4
PREFILL_PROMPT, PREFILL_RUNS = 1000, 3


class FailedError(Exception):
    """An answer was not whole; the text says how."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Tokens of each prompt and of each answer."""

    prompt: int
    answer: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read `64/64`."""
        prompt, _, answer = text.partition("/")
        return cls(prompt=int(prompt), answer=int(answer))

    def __str__(self) -> str:
        """As it is written on the command line."""
        return f"{self.prompt}/{self.answer}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run; seconds, and tokens of answers per second."""

    tokens_per_second: float
    first_token_p50: float
    inter_token_p50: float | None
    inter_token_p99: float | None


def requests(clients: int, *, serial: bool) -> int:
    """How many requests a run sends: several of each client, so that most come under load.

    A serial system gets few: its speed does not depend on how many wait.
    """
    return SERIAL_REQUESTS if serial else REQUESTS_A_CLIENT * clients


def check(answers: Sequence[Answer], prompts: Sequence[Prompt], *, tokens: int) -> None:
    """Check that each answer has as many tokens as were asked for.

    Raises:
        FailedError: One has not, or its prompt was another.
    """
    for answer, prompt in zip(answers, prompts, strict=True):
        if answer.fault:
            raise FailedError(answer.fault)
        made = answer.events[-1][1] if answer.events else 0
        if made != tokens:
            raise FailedError(f"an answer has {made} tokens instead of {tokens}")
        if answer.prompt_tokens not in (None, len(prompt.ids)):
            raise FailedError(
                f"a prompt of {len(prompt.ids)} tokens was read as {answer.prompt_tokens}"
            )


def summary(answers: Sequence[Answer], *, tokens: int) -> Run:
    """Numbers of a run whose answers were checked."""
    end = max(answer.events[-1][0] for answer in answers)
    wall = end - min(answer.start for answer in answers)
    gaps = [
        after - before
        for answer in answers
        for (before, _), (after, _) in zip(answer.events, answer.events[1:], strict=False)
    ]
    return Run(
        tokens_per_second=len(answers) * tokens / wall,
        first_token_p50=statistics.median(a.events[0][0] - a.start for a in answers),
        inter_token_p50=statistics.median(gaps) if len(gaps) > 1 else None,
        inter_token_p99=statistics.quantiles(gaps, n=100)[98] if len(gaps) > 1 else None,
    )


def measure(
    running: Running,
    prompts: Prompts,
    shape: Shape,
    *,
    clients: int,
    serial: bool,
    runs: int,
    seconds: float,
    between: Callable[[], None] | None = None,
) -> list[Run]:
    """Measure one shape with this many clients; no further run begins after some seconds.

    `between` is called before each run and after the last one.

    Raises:
        FailedError: An answer was not whole.
    """
    found: list[Run] = []
    end = time.monotonic() + seconds
    for run in range(runs):
        if found and time.monotonic() > end:
            break
        if between:
            between()
        count = requests(clients, serial=serial)
        asked = prompts(count, shape.prompt, f"{shape} {clients} {run}")
        answers = running.ask(asked, tokens=shape.answer, clients=clients)
        check(answers, asked, tokens=shape.answer)
        found.append(summary(answers, tokens=shape.answer))
    if between:
        between()
    return found


def warm_up(running: Running, prompts: Prompts, *, clients: int) -> None:
    """Ask a little, alone and together.

    Raises:
        FailedError: An answer was not whole.
    """
    for count in sorted({1, clients}):
        asked = prompts(count, IDLE_PROMPT, f"warm {count}")
        check(running.ask(asked, tokens=WARM_ANSWER, clients=count), asked, tokens=WARM_ANSWER)


def idle_seconds(running: Running, prompts: Prompts, *, length: int, runs: int) -> list[float]:
    """Seconds from sending to the first token, of prompts sent one after another.

    Raises:
        FailedError: An answer was not whole.
    """
    asked = prompts(runs, length, f"idle {length}")
    answers = running.ask(asked, tokens=1, clients=1)
    check(answers, asked, tokens=1)
    return [answer.events[0][0] - answer.start for answer in answers]
