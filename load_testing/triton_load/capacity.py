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
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_load import record, report
from triton_load.errors import LoadTestError
from triton_load.objectives import EXIT_FAIL, EXIT_INPUT, EXIT_INVALID, EXIT_PASS
from triton_load.record import Record
from triton_load.search import Found, Step, search
from triton_load.sizing import Answer, Wish, answer, cut_short, follows, sentence
from triton_load.steps import Runs

# What the search decides itself.
_CHOSEN = (
    *("--rate", "--out", "--run-time", "-t", "--users", "-u", "--spawn-rate", "-r", "--headless"),
    *("--shape", "--peak", "--stop-timeout", "--think-time", "--csv", "--master", "--worker"),
    *("--run-name", "--processes"),
)


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
        return _conclude(found, runs, None, text=cut_short(found, unit), options=options)
    wish = Wish(
        users=options.for_users,
        rate=options.for_rate,
        think=options.think_time,
        headroom=options.headroom,
        tested=options.replicas,
    )
    result = answer(found.best, wish) if found.best else None
    text = sentence(found, result, unit=unit)
    lines = follows(result, wish) if result else []
    return _conclude(found, runs, result, text=text, follows=lines, options=options)


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
