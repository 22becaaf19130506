"""What Triton and streaming cost: the engine in process, whole answers and streams, in turn.

    python -m benchmarks.engine.overhead --out results/overhead.json

All three are ready at the same time, and one that is not asked costs nothing. A round asks each of
them for the same, one after the other and in another order each time, so that a slow stretch of the
machine meets all; what counts are the ratios within a round. The client is a process of its own on
the same cores, for the engine in process a thread. Progress goes to standard error, the table to
standard output, all numbers to --out, with the table beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.engine.systems import machine
from benchmarks.engine.systems.base import Running, UnavailableError
from benchmarks.engine.systems.measure import (
    IDLE_PROMPT,
    WARM_ANSWER,
    FailedError,
    Shape,
    check,
    requests,
    summary,
    warm_up,
)
from benchmarks.engine.systems.prompts import Prompts, prompts_for
from benchmarks.engine.systems.report import line
from benchmarks.engine.systems.triton import OurTriton
from benchmarks.engine.systems.workers import Engine
from tools.demo_model import ensure_smollm2
from triton_hf.progress import Progress

ENGINE, WHOLE, STREAMS = "engine", "whole answers", "streams"
RATIOS = ((WHOLE, ENGINE), (STREAMS, ENGINE), (STREAMS, WHOLE))

Speeds = dict[str, list[float]]  # tokens of answers per second of each round, by system


PROGRESS = Progress("overhead")
say = PROGRESS.say


class Rounds:
    """Asks systems that are ready, in turn."""

    def __init__(self, systems: dict[str, Running], *, prompts: Prompts, shape: Shape) -> None:
        """Ask these for answers of this shape."""
        self._systems, self._prompts, self._shape = systems, prompts, shape

    def warm_up(self, clients: int) -> None:
        """Ask each a little.

        Raises:
            FailedError: An answer was not whole.
        """
        for running in self._systems.values():
            warm_up(running, self._prompts, clients=clients)

    def measure(self, *, clients: int, rounds: int) -> Speeds:
        """Return the speed of each system in each round.

        Raises:
            FailedError: An answer was not whole.
        """
        names = list(self._systems)
        found: Speeds = {name: [] for name in names}
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                found[name].append(self._ask(name, clients=clients, number=number))
            texts = (f"{name} {speeds[-1]:.0f}" for name, speeds in found.items())
            say(f"c={clients}, round {number + 1} of {rounds}: {', '.join(texts)} tok/s")
        return found

    def _ask(self, name: str, *, clients: int, number: int) -> float:
        tokens = self._shape.answer
        count = requests(clients, serial=False)
        asked = self._prompts(count, self._shape.prompt, f"{name} {clients} {number}")
        answers = self._systems[name].ask(asked, tokens=tokens, clients=clients)
        check(answers, asked, tokens=tokens)
        return summary(answers, tokens=tokens).tokens_per_second


def ratios(speeds: Speeds, one: str, other: str) -> list[float]:
    """How fast one is as a part of the other, in each round."""
    return [a / b for a, b in zip(speeds[one], speeds[other], strict=True)]


def table(found: dict[int, Speeds]) -> str:
    """Medians, with the lowest and the highest, as a Markdown table."""
    heads = [f"tokens/s, {name}" for name in (ENGINE, WHOLE, STREAMS)]
    heads += [f"{one} of {other}" for one, other in RATIOS]
    lines = [line(["clients", *heads]), line(["---"] * (len(heads) + 1))]
    for clients, speeds in found.items():
        cells = [f"{statistics.median(speeds[name]):.0f}" for name in (ENGINE, WHOLE, STREAMS)]
        cells += [_percent(ratios(speeds, one, other)) for one, other in RATIOS]
        lines.append(line([str(clients), *cells]))
    return "\n".join(lines)


def _percent(values: list[float]) -> str:
    return f"{statistics.median(values):.1%} ({min(values):.0%} to {max(values):.0%})"


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", type=Shape.parse, default=Shape(prompt=64, answer=64))
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    return parser.parse_args()


def run(options: argparse.Namespace) -> dict[int, Speeds]:
    """Measure with each number of clients.

    Raises:
        FailedError: An answer was not whole.
        UnavailableError: A system does not start.
    """
    model, shape = ensure_smollm2(), options.shape
    room: dict[str, Any] = {
        "model": model,
        "clients": max(options.clients),
        "longest": max(IDLE_PROMPT + WARM_ANSWER, shape.prompt + shape.answer) + 1,
    }
    triton, engine = OurTriton(streams=False, **room), Engine(**room)
    triton.prepare(install=False)
    with (
        tempfile.TemporaryDirectory(prefix="overhead-") as name,
        triton.running(Path(name)) as whole,
        engine.running(Path(name)) as inside,
    ):
        say("all are ready")
        systems = {ENGINE: inside, WHOLE: whole, STREAMS: whole.streaming()}
        rounds = Rounds(systems, prompts=prompts_for(model.folder), shape=shape)
        rounds.warm_up(max(options.clients))
        return {
            clients: rounds.measure(clients=clients, rounds=options.rounds)
            for clients in options.clients
        }


def main() -> int:
    """Measure and print; 1 when something failed."""
    options = parse()
    try:
        found = run(options)
    except (FailedError, UnavailableError) as error:
        say(f"FAILED: {error}")
        return 1
    text = table(found)
    if out := options.out:
        document = {
            "machine": machine.describe(),
            "command": " ".join(sys.argv[1:]),
            "shape": str(options.shape),
            "tokens_per_second": found,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
