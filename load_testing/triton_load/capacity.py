"""How much load one replica holds within the objectives, and what follows for autoscaling.

    python -m triton_load.capacity --out results/capacity --for-users 200 --think-time 20 -- \
        --host http://localhost --model smollm2-135m --client stream --objectives goals.yaml

Each step is a whole run of its own at one rate (or number of users), judged by its verdict. The
load doubles until a step fails, then the gap is halved until it is narrow. Everything after `--`
goes to Locust as it is. Exit codes: 0 found, 1 not even the first load is held, 2 bad input,
3 invalid.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triton_load import objectives, record, report
from triton_load.errors import LoadTestError
from triton_load.record import Record

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
HEADROOM = 0.8
_CHOSEN = ("--rate", "--out", "--run-time", "-t", "--users", "-u", "--headless", "--shape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One load that was tried: the load, whether it was held, and the run."""

    load: float
    held: bool
    run: Record

    def evidence(self) -> dict[str, Any]:
        """What a report shows of it."""
        found = self.run.distributions
        return {
            "load": self.load,
            "verdict": self.run.verdict.result,
            "reasons": list(self.run.verdict.reasons),
            "requests_per_second": self.run.totals.requests_per_second,
            "in_flight": in_flight(self.run),
            "objectives": {each.name: each.measured for each in self.run.objectives},
            "p95_latency_seconds": _p95(found, record.LATENCY),
            "p95_ttft_seconds": _p95(found, record.TTFT),
        }


class InvalidRunError(Exception):
    """A step proved nothing; the text says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows from the search.

    Attributes:
        load: Highest load that was held.
        failed: Lowest load that was not; infinity when the search never met one.
        rate: Requests per second at that load.
        in_flight: Requests in flight at that load, by Little's law.
        target: `autoscaling.target`: that number less the headroom, at least 1.
        replicas: For the users that were asked about; None without them.
    """

    load: float
    failed: float
    rate: float
    in_flight: float
    target: int
    replicas: int | None


def in_flight(run: Record) -> float:
    """Mean number of requests in flight: their rate times their mean latency (Little)."""
    latency = run.distributions.get(record.LATENCY)
    return run.totals.requests_per_second * latency.mean if latency else 0.0


def search(
    attempt: Callable[[float], Step], *, start: float, highest: float, precision: float, whole: bool
) -> list[Step]:
    """Try loads until the highest that is held is known to within `precision` (0.1: 10 %).

    Args:
        attempt: Runs one step.
        start: First load.
        highest: Never more than this.
        precision: Width of the last gap, relative to the load that is held.
        whole: Only whole loads: numbers of users.
    """
    steps = [attempt(start)]
    while steps[-1].held and steps[-1].load < highest:
        steps.append(attempt(min(highest, steps[-1].load * 2)))
    while True:
        good = max((step.load for step in steps if step.held), default=0.0)
        bad = min((step.load for step in steps if not step.held), default=math.inf)
        if not good or math.isinf(bad) or bad - good <= precision * good:
            return steps
        middle = (good + bad) / 2
        if whole:
            middle = float(math.floor(middle))
            if middle in (good, bad):
                return steps
        steps.append(attempt(middle))


def conclude(steps: Sequence[Step], *, users: int | None, think_time: float) -> Answer | None:
    """What follows from the steps; None when no load was held."""
    held = [step for step in steps if step.held]
    if not held:
        return None
    best = max(held, key=lambda step: step.load)
    rate, open_requests = best.run.totals.requests_per_second, in_flight(best.run)
    replicas = None
    if users is not None:
        # A user sends one request, waits for its answer and thinks.
        latency = best.run.distributions[record.LATENCY].mean
        demand = users / (latency + think_time)
        replicas = max(1, math.ceil(demand / (rate * HEADROOM)))
    return Answer(
        load=best.load,
        failed=min((step.load for step in steps if not step.held), default=math.inf),
        rate=rate,
        in_flight=open_requests,
        target=max(1, math.floor(open_requests * HEADROOM)),
        replicas=replicas,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the search of the command line; return the exit code."""
    arguments = list(sys.argv[1:] if words is None else words)
    own, _, passed = _split(arguments)
    options = _parser().parse_args(own)
    try:
        _check(passed)
        return _run(options, passed)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return objectives.EXIT_INPUT
    except InvalidRunError as error:
        print(f"invalid: {error}", file=sys.stderr)
        return objectives.EXIT_INVALID


def _split(words: list[str]) -> tuple[list[str], str, list[str]]:
    if "--" not in words:
        return words, "", []
    at = words.index("--")
    return words[:at], "--", words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m triton_load.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, help="folder of the report and of each step's own")
    add("--by", choices=("rate", "users"), default="rate", help="requests/s, or users")
    add("--start", type=float, default=1.0, help="first load")
    add("--highest", type=float, default=10_000.0, help="never more than this")
    add("--precision", type=float, default=0.1, help="width of the last gap; 0.1 is 10 %%")
    add("--step-time", type=float, default=30.0, help="seconds of each step")
    add("--stop-timeout", type=float, default=60.0, help="seconds for the last answers of a step")
    add("--for-users", type=int, help="how many users shall be served in all")
    add("--think-time", type=float, default=0.0, help="their pause between requests, seconds")
    return parser


def _check(passed: Sequence[str]) -> None:
    taken = [word for word in passed if word.split("=")[0] in _CHOSEN]
    if taken:
        raise LoadTestError(f"{taken[0]} is chosen by the search; leave it out after '--'")
    if not any(word.startswith("--objectives") for word in passed):
        raise LoadTestError("capacity within which objectives? Give --objectives FILE after '--'")


def _run(options: argparse.Namespace, passed: Sequence[str]) -> int:
    began = time.monotonic()
    steps: list[Step] = []

    def attempt(load: float) -> Step:
        step = _attempt(options, passed, load)
        steps.append(step)
        word = "held" if step.held else "not held: " + "; ".join(step.run.verdict.reasons)
        elapsed = time.monotonic() - began
        print(f"[{elapsed:6.0f} s] {load:g} {options.by}: {word}", file=sys.stderr, flush=True)
        return step

    found = search(
        attempt,
        start=options.start,
        highest=options.highest,
        precision=options.precision,
        whole=options.by == "users",
    )
    answer = conclude(found, users=options.for_users, think_time=options.think_time)
    if answer is None:
        print(f"not even {options.start:g} {options.by} is held; see {options.out}")
        return objectives.EXIT_FAIL
    best = max((step for step in found if step.held), key=lambda step: step.load)
    final = dataclasses.replace(
        best.run,
        name=f"capacity of {best.run.config['model']}",
        notes={
            "by": options.by,
            "steps": [step.evidence() for step in sorted(found, key=lambda step: step.load)],
            "answer": {
                name: None if value == math.inf else value
                for name, value in dataclasses.asdict(answer).items()
            },
        },
    )
    folder = Path(options.out)
    record.write(final, folder)
    report.write(final, folder)
    print(_text(found, answer, options))
    return objectives.EXIT_PASS


def _attempt(options: argparse.Namespace, passed: Sequence[str], load: float) -> Step:
    folder = Path(options.out) / f"{options.by}-{load:g}"
    amount = (
        [f"--rate={load}"]
        if options.by == "rate"
        else [f"--users={load:g}", f"--spawn-rate={load:g}", f"--think-time={options.think_time}"]
    )
    command = [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *(f"--run-time={options.step_time:g}s", f"--stop-timeout={options.stop_timeout:g}"),
        *(f"--out={folder}", *amount, *passed),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == objectives.EXIT_INPUT or not (folder / "run.json").exists():
        told = [line for line in done.stderr.splitlines() if "error:" in line]
        text = (told or done.stderr.splitlines() or ["it said nothing"])[-1]
        raise LoadTestError(text.removeprefix("error: "))
    run = record.read(folder)
    if run.verdict.result == "invalid":
        raise InvalidRunError(f"at {load:g}: {'; '.join(run.verdict.reasons)}; see {folder}")
    return Step(load=load, held=run.verdict.result == "pass", run=run)


def _text(steps: Sequence[Step], answer: Answer, options: argparse.Namespace) -> str:
    unit = "requests/s" if options.by == "rate" else "users"
    lines = [f"{unit:>12} {'held':>5} {'p95 latency':>12} {'p95 TTFT':>10} {'in flight':>10}"]
    for step in sorted(steps, key=lambda step: step.load):
        seen = step.evidence()
        latency, ttft = seen["p95_latency_seconds"], seen["p95_ttft_seconds"]
        lines.append(
            f"{step.load:12.4g} {'yes' if step.held else 'no':>5} {_seconds(latency):>12} "
            f"{_seconds(ttft):>10} {seen['in_flight']:10.1f}"
        )
    lines.append("")
    lines.append(f"one replica holds {answer.load:.4g} {unit} within the objectives")
    lines.append(
        f"autoscaling.target: {answer.target}  ({HEADROOM:.0%} of {answer.in_flight:.1f} in flight)"
    )
    if answer.replicas is not None:
        lines.append(
            f"replicas for {options.for_users} users, {options.think_time:g} s of thought: "
            f"{answer.replicas}"
        )
    return "\n".join([*lines, f"report: {options.out}"])


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _p95(found: Any, name: str) -> float | None:
    distribution = found.get(name)
    return distribution.quantile(95) if distribution is not None else None


if __name__ == "__main__":
    raise SystemExit(main())
