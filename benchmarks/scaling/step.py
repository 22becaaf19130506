"""Step the load on a release and write down how it follows: 1x, then 4x, then nothing.

Usage: python -m benchmarks.scaling.step --namespace NS --release NAME --model MODEL --target N
       --out DIR [--rounds 20] [--factor 4] [--prometheus URL] [--objective SECONDS]

1x is as many requests in flight as the autoscaler wants in one pod (`autoscaling.target`). Writes
DIR/step.json with the times of every round and DIR/step.png with the last one. No request is sent
twice, and none that fails is forgiven.
Exit codes: 0 written, 1 the cluster or the release is not as needed, 3 requests failed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling import step_plot
from benchmarks.scaling.rounds import Plan, Round, Stage
from lib import offered_load
from lib.prometheus import Prometheus, in_cluster
from lib.watch import Watcher
from tools import helm, install, place, wait
from tools.helm import Release
from triton_hf.progress import Progress

WINDOW = 5.0  # seconds of answers that one p95 is taken over
SIGNAL = "sum(triton_hf_requests_running{{{labels}}}) + sum(triton_hf_requests_waiting{{{labels}}})"


PROGRESS = Progress("step")
say = PROGRESS.say


def p95(outcomes: Sequence[offered_load.Outcome]) -> float:
    """Return the p95 of answered requests; infinite when there is none."""
    seconds = sorted(outcome.seconds for outcome in outcomes if not outcome.fault)
    return seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else math.inf


def ended_between(
    outcomes: Sequence[offered_load.Outcome], start: float, end: float
) -> list[offered_load.Outcome]:
    """Return requests that ended in a window."""
    return [outcome for outcome in outcomes if start <= outcome.end < end]


def p95_back(
    outcomes: Sequence[offered_load.Outcome], *, start: float, end: float, objective: float
) -> float | None:
    """Return when p95 came under the objective and stayed there until `end`; None when not."""
    back: float | None = None
    at = start + WINDOW
    while at <= end:
        window = ended_between(outcomes, at - WINDOW, at)
        good = bool(window) and p95(window) <= objective
        back = (back or at) if good else None
        at += 0.5
    return back


def crossed(
    prometheus: Prometheus, labels: str, *, start: float, end: float, level: float
) -> float | None:
    """Return when the scraped signal was first above a level; None when never."""
    expression = SIGNAL.format(labels=labels)
    for series in prometheus.query_range(expression, start=start, end=end, step=0.5):
        for at, value in zip(series.times, series.values, strict=True):
            if value > level:
                return at
    return None


def run_round(stage: Stage, plan: Plan) -> Round:
    """Play 1x, the high load and the way back once."""
    driver, timeline = stage.driver, stage.timeline
    before = len(driver.record.outcomes)
    with stage.turn:
        driver.clients(plan.target)
        time.sleep(plan.low_seconds)
        quiet = p95(driver.record.outcomes[before:])
        objective = plan.objective or 1.5 * quiet
        replicas = timeline.value("ready")
        at = time.time()
        driver.clients(plan.target * plan.factor)
        _wait_for(lambda: _followed(stage, plan, at, replicas, objective), plan.high_seconds)
        time.sleep(2 * WINDOW)
        ended = time.time()
        most = timeline.value("ready")
        driver.clients(0)
    _wait_for(lambda: timeline.value("ready") <= stage.least, plan.settle_seconds)
    done = driver.record.outcomes[before:]
    decided = timeline.first("desired", at, lambda value: value > replicas)
    if decided is None:
        decided = timeline.first("wanted", at, lambda value: value > replicas)
    back = timeline.first("ready", ended, lambda value: value <= stage.least)
    level = plan.target * max(replicas, 1)

    def after(moment: float | None, zero: float = at) -> float | None:
        return None if moment is None else round(moment - zero, 3)

    return Round(
        at=at,
        ended=ended,
        p95_low_seconds=round(quiet, 4),
        objective_seconds=round(objective, 4),
        signal_crossed_seconds=after(
            crossed(stage.prometheus, stage.labels, start=at, end=ended, level=level)
        ),
        decided_seconds=after(decided),
        scheduled_seconds=after(timeline.first("scheduled", at, lambda value: value > replicas)),
        ready_seconds=after(timeline.first("ready", at, lambda value: value > replicas)),
        all_ready_seconds=after(timeline.first("ready", at, lambda value: value >= most)),
        p95_back_seconds=after(p95_back(done, start=at, end=ended, objective=objective)),
        most_replicas=most,
        back_seconds=after(back, ended),
        requests=len(done),
        failed=sum(bool(outcome.fault) for outcome in done),
    )


def _followed(stage: Stage, plan: Plan, at: float, replicas: int, objective: float) -> bool:
    """Return whether the release grew, all that it wants is ready, and p95 is back."""
    now = time.time()
    wanted = stage.timeline.value("wanted")
    ready = stage.timeline.value("ready") >= min(stage.least * plan.factor, wanted)
    start = max(at, now - 4 * WINDOW)
    done = stage.driver.record.outcomes
    back = p95_back(done, start=start, end=now, objective=objective) is not None
    return wanted > replicas and ready and back


def _wait_for(check: Callable[[], bool], seconds: float) -> None:
    """Wait at most some seconds for something that a report, not a test, is about."""
    with contextlib.suppress(TimeoutError):
        wait.until(check, seconds=seconds, every=0.25)


def summary(rounds: Sequence[Round]) -> dict[str, dict[str, float | int]]:
    """Return mean, median, worst and count of every time over all rounds."""
    found: dict[str, dict[str, float | int]] = {}
    for field in dataclasses.fields(Round):
        if not field.name.endswith("_seconds"):
            continue
        known = [value for item in rounds if (value := getattr(item, field.name)) is not None]
        if known:
            found[field.name] = {
                "mean": round(statistics.fmean(known), 3),
                "median": round(statistics.median(known), 3),
                "worst": max(known),
                "rounds": len(known),
            }
    return found


@contextlib.contextmanager
def staged(
    release: Release,
    model: str,
    *,
    prometheus: str | None,
    labels: str,
    turn: threading.Lock | None = None,
    **parameters: Any,
) -> Iterator[tuple[Stage, Watcher]]:
    """Start the load's thread, the watches and the way to Prometheus; nothing is sent yet.

    Releases with the same `turn` grow one after the other.

    Raises:
        CommandFailedError: the release has no Ingress or no Deployment.
        TimeoutError: Prometheus cannot be reached.
    """
    entrance = install.door(release.place, release)
    target = offered_load.infer(
        entrance.address, entrance.port, model, host=entrance.host, **parameters
    )
    items = helm.get(release.place, release.namespace, "deployment", "-l", release.selector())[
        "items"
    ]
    if not items:
        raise helm.CommandFailedError(f"release {release.name} has no Deployment")
    name = items[0]["metadata"]["name"]
    with contextlib.ExitStack() as stack:
        source = (
            Prometheus(url=prometheus.rstrip("/"))
            if prometheus
            else stack.enter_context(in_cluster(release.place))
        )
        watcher = stack.enter_context(
            Watcher(release.place, release.namespace, name, release.selector())
        )
        wait.until(lambda: watcher.timeline.value("ready") >= 1, seconds=120, every=0.25)
        driver = stack.enter_context(offered_load.Load([target]))
        stage = Stage(
            driver=driver,
            timeline=watcher.timeline,
            prometheus=source,
            labels=labels,
            least=watcher.timeline.value("ready"),
            turn=turn or threading.Lock(),
        )
        yield stage, watcher


def write(out: Path, plan: Plan, rounds: Sequence[Round], stage: Stage, title: str) -> None:
    """Write step.json and step.png."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes = stage.driver.record.outcomes
    report = {
        "title": title,
        "plan": dataclasses.asdict(plan),
        "requests": len(outcomes),
        "failed": len(stage.driver.record.failed),
        "faults": sorted({outcome.fault for outcome in outcomes if outcome.fault})[:10],
        "summary": summary(rounds),
        "rounds": [dataclasses.asdict(item) for item in rounds],
        "replicas": {
            what: stage.timeline.steps(what) for what in ("desired", "wanted", "scheduled", "ready")
        },
    }
    (out / "step.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    last = rounds[-1]
    signal = stage.prometheus.query_range(
        SIGNAL.format(labels=stage.labels),
        start=last.at - plan.low_seconds,
        end=last.ended + (last.back_seconds or 60.0),
        step=1.0,
    )
    step_plot.draw(
        out / "step.png",
        plan=plan,
        last=last,
        stage=stage,
        signal=signal,
        title=title,
    )


def arguments() -> argparse.Namespace:
    """Return the words of the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling.step", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--namespace", default=install.NAMESPACE)
    parser.add_argument("--release", default=install.RELEASE)
    parser.add_argument("--model", default=install.MODEL)
    parser.add_argument("--target", type=int, required=True, help="autoscaling.target")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=32, help="length of each answer")
    parser.add_argument("--low-seconds", type=float, default=20.0)
    parser.add_argument("--high-seconds", type=float, default=120.0)
    parser.add_argument("--settle-seconds", type=float, default=600.0)
    parser.add_argument("--objective", type=float, help="p95 in seconds (1.5 times that of 1x)")
    parser.add_argument("--prometheus", help="address; default: a port forward into the cluster")
    parser.add_argument("--title", default="", help="goes into the report and over the plot")
    parser.add_argument("--out", type=Path, required=True, help="folder of step.json and step.png")
    return parser.parse_args()


def main() -> int:
    """Play the rounds, write the report; return the exit code."""
    options = arguments()
    plan = Plan(
        target=options.target,
        factor=options.factor,
        low_seconds=options.low_seconds,
        high_seconds=options.high_seconds,
        settle_seconds=options.settle_seconds,
        objective=options.objective,
    )
    release = Release(place=place.current(), namespace=options.namespace, name=options.release)
    labels = f'namespace="{options.namespace}", release="{options.release}"'
    title = options.title or f"{options.release}: {options.model}"
    rounds: list[Round] = []
    try:
        with staged(
            release,
            options.model,
            prometheus=options.prometheus,
            labels=labels,
            max_tokens=options.max_tokens,
        ) as (stage, _):
            for number in range(options.rounds):
                rounds.append(run_round(stage, plan))
                say(f"round {number + 1} of {options.rounds}: {rounds[-1]}")
                write(options.out, plan, rounds, stage, title)
            failed = len(stage.driver.record.failed)
    except (helm.CommandFailedError, TimeoutError) as error:
        print(f"step: {error}", file=sys.stderr)
        return 1
    print(options.out / "step.json")
    return 3 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
