"""How much load one replica holds within the objectives, and what follows for autoscaling.

    python -m triton_load.capacity --out results/capacity --for-users 200 --think-time 20 -- \
        --host http://localhost --model smollm2-135m --client stream --objectives goals.yaml

Each step is a whole run of its own at one rate (or number of users), judged by its verdict. The
load doubles until a step breaks, then the gap is halved until it is narrow, then the answer is
tried once more. Everything after `--` goes to Locust as it is.

Exit codes: 0 found, 1 the first load is too much already, 2 bad input, 3 the generator was the
limit, or the search was interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_load import record, report
from triton_load.errors import LoadTestError
from triton_load.objectives import EXIT_FAIL, EXIT_INPUT, EXIT_INVALID, EXIT_PASS
from triton_load.record import Record
from triton_load.search import BLIND, BREAKS, HOLDS, Found, Step, search

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
# What the search decides itself.
_CHOSEN = (
    *("--rate", "--out", "--run-time", "-t", "--users", "-u", "--spawn-rate", "-r", "--headless"),
    *("--shape", "--peak", "--stop-timeout", "--think-time", "--csv", "--master", "--worker"),
    *("--run-name", "--processes"),
)
# A queue that grows: requests in flight become this much more, and this many at least.
_GROWTH, _SPARE = 1.5, 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What shall be served in all, and how.

    Attributes:
        users: Users, or 0.
        rate: Requests per second, or 0.
        think: Seconds between an answer and the next request of a user.
        headroom: Part of a replica's capacity that stays free, from 0 to below 1.
        tested: Replicas that were tested together.
    """

    users: int = 0
    rate: float = 0.0
    think: float = 0.0
    headroom: float = 0.2
    tested: int = 1

    @property
    def text(self) -> str:
        """In words; empty when nothing was asked."""
        if self.users:
            pause = f" with {self.think:g} s of thought" if self.think else ""
            return f"{self.users} users{pause}"
        return f"{self.rate:g} requests/s" if self.rate else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows for one replica.

    Attributes:
        load: Highest load that was held twice, in the unit of the search.
        rate: Requests per second at that load.
        in_flight: Mean requests in flight at that load, by Little's law.
        target: `autoscaling.target` for the signal `inflight`.
        replicas: For what was asked; None when nothing was.
    """

    load: float
    rate: float
    in_flight: float
    target: int
    replicas: int | None


def answer(best: Step, wish: Wish) -> Answer:
    """What follows from the best step.

    Target and replicas leave the headroom free: an autoscaler acts only 10 % above its target, and
    a new pod needs time to load its model. A user who thinks asks once in (latency + think)
    seconds, so N of them ask N / (latency + think) times a second.
    """
    usable = 1 - wish.headroom
    rate = best.requests_per_second / wish.tested
    in_flight = best.in_flight / wish.tested
    demand = wish.users / (best.latency + wish.think) if wish.users else wish.rate
    replicas = max(1, math.ceil(demand / (rate * usable) - 1e-9)) if demand and rate else None
    return Answer(
        load=best.level / wish.tested,
        rate=rate,
        in_flight=in_flight,
        target=max(1, math.floor(in_flight * usable)),
        replicas=replicas,
    )


def step_of(run: Record, *, level: float) -> Step:
    """Judge one run of the search.

    It is blind when the generator was at fault, or nothing but the invalid run itself is known.
    Requests that found no room at the server make a single run invalid; here they are its limit.
    """
    totals, found = run.totals, run.distributions.get(record.LATENCY)
    latency = found.mean if found is not None else 0.0
    result, reasons = HOLDS, run.verdict.reasons
    if run.verdict.result == "fail" or (run.verdict.result == "invalid" and _crowded(run)):
        result = BREAKS
    elif run.verdict.result == "invalid":
        result = BLIND
    elif grows := _grows(run):
        result, reasons = BREAKS, (grows,)
    return Step(
        level=level,
        result=result,
        reasons=tuple(reasons),
        in_flight=totals.requests_per_second * latency,
        requests_per_second=totals.requests_per_second,
        latency=latency,
    )


def _crowded(run: Record) -> bool:
    """Whether the only faults are that too few requests ended or too many were in flight."""
    return all(
        "--max-in-flight" in reason or "requests ended" in reason for reason in run.verdict.reasons
    ) and any(second.in_flight for second in run.series)


def _grows(run: Record) -> str:
    """A sentence when the queue of an open loop still grows at its end, else an empty string."""
    counts = [second.in_flight for second in run.series if second.offered]
    third = len(counts) // 3
    if not third:
        return ""
    before, after = sum(counts[third : 2 * third]) / third, sum(counts[-third:]) / third
    if after <= before * _GROWTH + _SPARE:
        return ""
    return f"the queue grows: {before:.0f} requests in flight, then {after:.0f}"


class Runs:
    """Runs Locust once for each step."""

    def __init__(self, options: argparse.Namespace, words: Sequence[str]) -> None:
        """Prepare; nothing is run."""
        self._options, self._words = options, list(words)
        self._began = time.monotonic()
        self.records: list[Record] = []
        self.steps: list[Step] = []

    def warm_up(self) -> None:
        """Run the first load for a while and forget what was measured."""
        seconds = self._options.warm_up
        if seconds:
            self._say(f"warm-up for {seconds:g} s")
            self._run(self._options.start, Path(self._options.out) / "warm-up", seconds=seconds)

    def attempt(self, level: float) -> Step:
        """Run one step.

        Raises:
            LoadTestError: Locust refused its input or died; the text is what it said.
        """
        number = len(self.records) + 1
        self._say(f"step {number}: {level:g} {self._options.by}")
        folder = Path(self._options.out) / f"{number:02d}-{self._options.by}-{level:g}"
        run = self._run(level, folder, seconds=self._options.step_time)
        step = step_of(run, level=level)
        self.records.append(run)
        self.steps.append(step)
        self._say("; ".join([f"  {step.result}", *step.reasons]))
        return step

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:6.0f} s] {text}", file=sys.stderr, flush=True)

    def _run(self, level: float, folder: Path, *, seconds: float) -> Record:
        options = self._options
        load = [f"--rate={level:g}", f"--users={options.processes}", "--spawn-rate=100"]
        if options.by == "users":
            load = [f"--users={level:g}", f"--spawn-rate={level:g}"]
            load += [f"--think-time={options.think_time:g}"]
        if options.processes > 1:
            load.append(f"--processes={options.processes}")
        command = [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless"),
            *("--only-summary", f"--run-time={max(1, round(seconds))}s", f"--out={folder}"),
            *(f"--stop-timeout={options.stop_timeout:g}", *load, *self._words),
        ]
        # An earlier search's record of this step would stand for one that died.
        (folder / "run.json").unlink(missing_ok=True)
        code, said = _finished(command)
        if code == EXIT_INPUT or not (folder / "run.json").exists():
            told = [line for line in said.splitlines() if "error:" in line]
            text = (told or said.splitlines() or ["it said nothing"])[-1]
            raise LoadTestError(text.partition("error: ")[2] or text)
        return record.read(folder)


def _finished(command: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end; return its exit code and what it wrote to stderr.

    When this process is interrupted, so is the command, and its load ends before ours does.
    """
    quiet, heard = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdout=quiet, stderr=heard, text=True) as child:
        try:
            said = child.communicate()[1]
        except BaseException:
            child.terminate()
            raise
    return child.returncode, said


def sentence(found: Found, result: Answer | None, *, unit: str) -> str:
    """The answer in one sentence."""
    if found.best is None or result is None:
        step = min(found.steps, key=lambda step: step.level)
        what = "the generator cannot make" if found.blind else "one replica does not hold"
        return f"{what} {step.level:g} {unit}: {_why(step)}"
    amount = f"{result.load:.4g} {unit} within the objectives"
    if found.limit is None:
        return f"one replica holds at least {amount}; nothing above --highest was tried"
    at = f"{found.limit.level:g} {unit}"
    if found.blind:
        return (
            f"one replica holds at least {amount}; the generator cannot make {at}: "
            f"{_why(found.limit)}"
        )
    return f"one replica holds {amount}; at {at} it breaks: {_why(found.limit)}"


def _why(step: Step) -> str:
    return step.reasons[0] if step.reasons else "it did not hold a second time"


def main(words: Sequence[str] | None = None) -> int:
    """Run the search of the command line; return the exit code."""
    arguments = list(sys.argv[1:] if words is None else words)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, passed = _parser().parse_args(arguments[:at]), arguments[at + 1 :]
    try:
        _check(options, passed)
        return _run(options, passed)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_INPUT


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
    add("--warm-up", type=float, default=5.0, help="seconds of load that are not measured")
    add("--stop-timeout", type=float, default=60.0, help="seconds for the last answers of a step")
    add("--processes", type=int, default=1, help="generators; each uses a core")
    add("--replicas", type=int, default=1, help="replicas behind the host")
    add("--headroom", type=float, default=0.2, help="part of the capacity that stays free")
    add("--for-users", type=int, default=0, help="how many users shall be served in all")
    add("--for-rate", type=float, default=0.0, help="how many requests/s shall be served in all")
    add("--think-time", type=float, default=0.0, help="a user's pause between requests, seconds")
    add("--run-name", default="", help="name of the search in its report")
    add("--json", action="store_true", help="print the answer as JSON")
    return parser


def _check(options: argparse.Namespace, passed: Sequence[str]) -> None:
    taken = [word for word in passed if word.split("=")[0] in _CHOSEN]
    if taken:
        raise LoadTestError(f"{taken[0]} is chosen by the search; leave it out after '--'")
    if not any(word.split("=")[0] == "--objectives" for word in passed):
        raise LoadTestError("capacity within which objectives? Give --objectives FILE after '--'")
    if not 0 < options.start <= options.highest:
        raise LoadTestError("--start must be above 0 and at most --highest")
    if options.by == "users" and options.start != round(options.start):
        raise LoadTestError(f"--start must be a whole number of users, not {options.start:g}")
    if not 0 <= options.headroom < 1:
        raise LoadTestError(f"--headroom must be from 0 to below 1, not {options.headroom:g}")
    if min(options.replicas, options.processes, options.step_time) < 1:
        raise LoadTestError("--replicas, --processes and --step-time must be at least 1")
    if options.precision < 0:
        raise LoadTestError(f"--precision must be at least 0, not {options.precision:g}")
    if options.for_users and options.for_rate:
        raise LoadTestError("--for-users and --for-rate exclude each other; give one")


def _run(options: argparse.Namespace, passed: Sequence[str]) -> int:
    runs = Runs(options, passed)
    unit = "requests/s" if options.by == "rate" else "users"
    try:
        runs.warm_up()
        found = search(
            runs.attempt,
            low=options.start,
            high=options.highest,
            precision=options.precision,
            whole=options.by == "users",
        )
    except KeyboardInterrupt:
        if not runs.steps:
            print("stopped before the first step had ended", file=sys.stderr)
            return EXIT_INVALID
        found = Found(best=None, limit=None, steps=tuple(runs.steps), blind=True)
        return _conclude(found, runs, None, text=_cut_short(found, unit), options=options)
    wish = Wish(
        users=options.for_users,
        rate=options.for_rate,
        think=options.think_time,
        headroom=options.headroom,
        tested=options.replicas,
    )
    result = answer(found.best, wish) if found.best else None
    text = sentence(found, result, unit=unit)
    lines = _follows(result, wish) if result else []
    return _conclude(found, runs, result, text=text, follows=lines, options=options)


def _cut_short(found: Found, unit: str) -> str:
    held = [step.level for step in found.steps if step.result == HOLDS]
    known = f"{max(held):g} {unit} held once" if held else "no load held"
    return f"the search was interrupted before its end; {known}"


def _follows(result: Answer, wish: Wish) -> list[str]:
    """What follows from the answer, a line each."""
    lines = [
        f"autoscaling.target: {result.target}  "
        f"({1 - wish.headroom:.0%} of {result.in_flight:.1f} in flight)"
    ]
    if result.replicas is not None:
        lines.append(f"replicas for {wish.text}: {result.replicas}")
    return lines


def _conclude(
    found: Found,
    runs: Runs,
    result: Answer | None,
    *,
    text: str,
    options: argparse.Namespace,
    follows: Sequence[str] = (),
) -> int:
    """Write the best run's record, or the last one's, with the search as evidence; print it all."""
    code = EXIT_INVALID if found.blind else EXIT_PASS if found.best else EXIT_FAIL
    pairs = list(zip(found.steps, runs.records, strict=True))
    run = next((run for step, run in pairs if step is found.best), runs.records[-1])
    word = {EXIT_PASS: "pass", EXIT_FAIL: "fail", EXIT_INVALID: "invalid"}[code]
    reasons = () if code == EXIT_PASS else (text,)
    known = dataclasses.asdict(result) if result else {}
    steps = [_evidence(*pair) for pair in pairs]
    final = dataclasses.replace(
        run,
        name=options.run_name or f"capacity of {run.config['model']}",
        verdict=record.Verdict(result=word, reasons=reasons, exit_code=code),
        notes={
            "capacity": text,
            "follows": list(follows),
            "unit": "requests/s" if options.by == "rate" else "users",
            "answer": known,
            "steps": steps,
        },
    )
    try:
        summary = report.write(final, Path(options.out))
        record.write(final, Path(options.out))
    except OSError as error:
        print(f"\n{report.summarize(final)}")
        reason = error.strerror or error
        print(f"error: cannot write the report to {options.out}: {reason}", file=sys.stderr)
        return EXIT_INVALID
    told = {"exit_code": code, "capacity": text, "answer": known or None, "steps": steps}
    print(json.dumps(told) if options.json else f"{summary}\nreport: {options.out}")
    return code


def _evidence(step: Step, run: Record) -> dict[str, Any]:
    """What a report shows of a step."""
    return {
        "load": step.level,
        "result": step.result,
        "reasons": list(step.reasons),
        "requests_per_second": step.requests_per_second,
        "in_flight": step.in_flight,
        "objectives": {each.name: each.measured for each in run.objectives},
        "p95_latency_seconds": _p95(run, record.LATENCY),
        "p95_ttft_seconds": _p95(run, record.TTFT),
    }


def _p95(run: Record, name: str) -> float | None:
    found = run.distributions.get(name)
    return found.quantile(95) if found is not None and found.count else None


if __name__ == "__main__":
    # A pod that is evicted gets a SIGTERM, which a process with the id 1 does not even notice.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    raise SystemExit(main())
