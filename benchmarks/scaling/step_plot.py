"""Draw one round of a step response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.scaling.rounds import Plan, Round, Stage
from lib.prometheus import Series

MARKS = {
    "signal_crossed_seconds": "signal crossed",
    "decided_seconds": "decided",
    "scheduled_seconds": "scheduled",
    "ready_seconds": "ready",
    "p95_back_seconds": "p95 back",
}


def draw(
    path: Path, *, plan: Plan, last: Round, stage: Stage, signal: Sequence[Series], title: str
) -> None:
    """Write a PNG: requests in flight, replicas, and the duration of requests; 0 s is the step."""
    start, end = -plan.low_seconds, last.ended - last.at + (last.back_seconds or 60.0)
    figure, (top, middle, bottom) = pyplot.subplots(
        3, 1, figsize=(11, 9), sharex=True, layout="constrained"
    )
    figure.suptitle(title, fontsize=12)
    _in_flight(top, plan, last, stage, signal, start, end)
    _replicas(middle, last, stage, end)
    _durations(bottom, last, stage, start, end)
    for axes in (top, middle, bottom):
        axes.grid(color="0.92")
        axes.set_ylim(bottom=0)
        for name in MARKS:
            moment = getattr(last, name)
            if moment is not None:
                axes.axvline(moment, color="0.6", linewidth=0.8, linestyle=":")
    top.set_xlim(start, end)
    top.set_ylim(top=1.6 * top.get_ylim()[1])  # room for the words
    bottom.set_xlabel("seconds after the step")
    for number, (name, text) in enumerate(MARKS.items()):
        moment = getattr(last, name)
        if moment is not None:
            top.annotate(
                f"{text} {moment:.1f} s",
                xy=(moment, top.get_ylim()[1] * (0.94 - 0.08 * number)),
                fontsize=8,
            )
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _in_flight(
    axes: Any,
    plan: Plan,
    last: Round,
    stage: Stage,
    signal: Sequence[Series],
    start: float,
    end: float,
) -> None:
    times = [start + 0.25 * index for index in range(int((end - start) * 4))]
    truth = [stage.driver.record.in_flight(last.at + at) for at in times]
    axes.plot(times, truth, color="0.7", linewidth=1, label="in flight, as sent")
    for series in signal:
        axes.plot([at - last.at for at in series.times], series.values, label="signal, as scraped")
    axes.axhline(plan.target, color="tab:red", linewidth=0.8, label="target of one pod")
    axes.set_ylabel("requests")
    axes.legend(fontsize=8, loc="upper right")


def _replicas(axes: Any, last: Round, stage: Stage, end: float) -> None:
    for what in ("desired", "wanted", "scheduled", "ready"):
        steps = stage.timeline.steps(what)
        if steps:
            times = [at - last.at for at, _ in steps]
            values = [value for _, value in steps]
            axes.step([*times, end], [*values, values[-1]], where="post", label=what)
    axes.set_ylabel("pods")
    axes.legend(fontsize=8, loc="center right")


def _durations(axes: Any, last: Round, stage: Stage, start: float, end: float) -> None:
    shown = [
        outcome for outcome in stage.driver.record.outcomes if start <= outcome.end - last.at <= end
    ]
    good = [outcome for outcome in shown if not outcome.fault]
    bad = [outcome for outcome in shown if outcome.fault]
    for outcomes, colour, text in ((good, "tab:blue", "answered"), (bad, "tab:red", "failed")):
        axes.scatter(
            [outcome.end - last.at for outcome in outcomes],
            [outcome.seconds for outcome in outcomes],
            s=5,
            color=colour,
            label=f"{text}: {len(outcomes)}",
        )
    axes.axhline(last.objective_seconds, color="tab:red", linewidth=0.8, label="objective of p95")
    axes.set_ylabel("duration, s")
    axes.legend(fontsize=8, loc="upper right")


def draw_all(path: Path, rounds: Sequence[Round], *, title: str) -> None:
    """Write a PNG with every time of every round as a rising curve: so many steps by then."""
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    for name, text in MARKS.items():
        known = sorted(value for each in rounds if (value := getattr(each, name)) is not None)
        if known:
            share = [100 * (index + 1) / len(rounds) for index in range(len(known))]
            axes.step([0, *known], [0, *share], where="post", marker="o", markersize=3, label=text)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("seconds after the step")
    axes.set_ylabel("% of the steps")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 102)
    axes.grid(color="0.92")
    axes.legend(fontsize=9, loc="lower right")
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
