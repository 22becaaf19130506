"""The signal and the step responses as tables.

Usage: python -m benchmarks.scaling.results_page [DIR|FILE]...

`benchmarks.scaling.fleet` wrote each DIR, `benchmarks.scaling.signal_accuracy` each FILE. They are
copied to results/ beside this file, and results.md is written from all files there, so that each
figure has its file.
Exit codes: 0 written, 1 a folder or file is not what it should be.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling import step_plot

TABLE = Path(__file__).with_name("results.md")
KEPT = TABLE.with_name("results")
SIGNAL = "signal.json"
# Seconds from the step to the decision: mean and worst. The sync alone costs half of itself, mean.
GOALS = {"15s": (10.0, 19.0), "5s": (5.0, None)}
SIMULATED = "simulated"
READY_GOAL = 20.0  # seconds from the decision to a new ready replica of the light image
STEPS_GOAL = 20
ERROR_GOAL = 0.05
R_SQUARED_GOAL = 0.98

Run = Mapping[str, Any]


class ResultsError(Exception):
    """What was named is no result; the text says what to do."""


def name(found: Run) -> str:
    """Return what tells one run from the others."""
    base = f"{found['scaler']}-sync-{found['sync']}"
    return base if model(found) == SIMULATED else f"{model(found)}-{base}"


def model(found: Run) -> str:
    """Return the model of a run."""
    return str(found.get("model", SIMULATED))


def misses(found: Run) -> list[str]:
    """Return where a run is outside the goals; a value that is not there is outside, too."""
    rounds = found["rounds"]
    said = []
    if rounds < STEPS_GOAL:
        said.append(f"fewer than {STEPS_GOAL} steps")
    if found["failed"]:
        said.append("requests failed")
    for field, label in step_plot.MARKS.items():
        count = _count(found, field)
        if count < rounds:
            said.append(f"{label} in {count} of {rounds} steps only")
    return [*said, *_late_decisions(found), *_late_replicas(found)]


def _count(found: Run, field: str) -> int:
    return int(found["summary"].get(field, {"rounds": 0})["rounds"])


def _late_decisions(found: Run) -> list[str]:
    if found["sync"] not in GOALS:
        return [f"no goal for a sync of {found['sync']}"]
    mean, worst = GOALS[found["sync"]]
    decided = found["summary"].get("decided_seconds")
    if decided is None:
        return []
    said = []
    if decided["mean"] > mean:
        said.append(f"decided in the mean after more than {mean:.0f} s")
    if worst is not None and decided["worst"] > worst:
        said.append(f"decided at worst after more than {worst:.0f} s")
    return said


def _late_replicas(found: Run) -> list[str]:
    """Judge the time to a new replica by its mean and by its worst, where it has a goal."""
    ready = found["ready_after_decided_seconds"]
    if model(found) != SIMULATED:
        return []
    if not ready:
        return ["no new replica was ready"]
    mean, worst = statistics.fmean(ready) <= READY_GOAL, max(ready) <= READY_GOAL
    if mean and worst:
        return []
    return [f"ready after decided: mean {_met(mean)}, worst {_met(worst)}"]


def _met(good: bool) -> str:
    return "met" if good else "missed"


def verdict(found: Run) -> str:
    """Return whether a run is within the goals, and where it is not."""
    return "; ".join(misses(found)) or "yes"


def row(found: Run) -> str:
    """Return one run as a line of the table."""
    rounds = found["rounds"]
    cells = [model(found), f"{found['scaler']}, {found['sync']}", str(found["day"]), str(rounds)]
    for field in step_plot.MARKS:
        known = found["summary"].get(field)
        text = "-" if known is None else f"{known['mean']:.1f} / {known['worst']:.1f}"
        count = _count(found, field)
        cells.append(text if count == rounds else f"{text} ({count} of {rounds})")
    ready = found["ready_after_decided_seconds"]
    if ready:
        quick = sum(seconds <= READY_GOAL for seconds in ready)
        text = f"{statistics.fmean(ready):.1f} / {max(ready):.1f}"
        cells.append(f"{text}, {quick} of {rounds} <= {READY_GOAL:.0f} s")
    else:
        cells.append("-")
    cells += [f"{found['failed']} of {found['requests']}", verdict(found)]
    return "| " + " | ".join(cells) + " |"


def table(runs: Sequence[Run], kept: Path = KEPT) -> list[str]:
    """Return the step responses as lines of Markdown."""
    labels = " | ".join(step_plot.MARKS.values())
    cores = sorted({found["cores"] for found in runs})
    lines = [
        "## Steps of the load",
        "",
        "The load of a release goes from one to four times what the autoscaler wants in a pod, at "
        "random moments of its sync; one release at a time has load. The light image with a "
        "simulated model, or the full one with SmolLM2, whose servers share the "
        "cores with all else, so more of them are not faster. Scraped every 2 s, on a machine "
        f"with {', '.join(map(str, cores))} cores. Seconds after the step: mean / worst.",
        "",
        f"| model | scaler, sync | run | steps | {labels} | ready after decided | requests failed "
        "| within the goals |",
        "|---|---|---|---|" + "---|" * (len(step_plot.MARKS) + 3),
        *map(row, runs),
        "",
        "Goals: every step seen through; decided in 10 s mean and 19 s worst at a sync of 15 s, "
        f"5 s mean at one of 5 s; a new replica of the light image ready {READY_GOAL:.0f} s after "
        f"that, each; no request failed; {STEPS_GOAL} steps.",
        "",
    ]
    for found in runs:
        plots = [kept / f"{name(found)}{end}.png" for end in ("", "-step")]
        lines += [f"![{plot.stem}](results/{plot.name})" for plot in plots if plot.is_file()]
    return [*lines, ""]


def signal_verdict(found: Mapping[str, Any]) -> str:
    """Return whether the signal is within its goals, and where it is not."""
    linear, reaction = found["linearity"], found["reaction"]
    said = [
        f"{case['rate']:g} requests/s: error above {ERROR_GOAL:.0%}"
        for case in found["accuracy"]
        if not case["error"] <= ERROR_GOAL
    ]
    if not linear["r_squared"] >= R_SQUARED_GOAL:
        said.append(f"R² below {R_SQUARED_GOAL}")
    if reaction["answered"] or not reaction["seconds"] < reaction["request_seconds"]:
        said.append("seen only after a request had ended")
    if linear["failed"] or any(case["failed"] for case in found["accuracy"]):
        said.append("requests failed")
    return "; ".join(said) or "yes"


def signal_table(found: Mapping[str, Any]) -> list[str]:
    """Return how true the signal is as lines of Markdown."""
    linear, reaction = found["linearity"], found["reaction"]
    lines = [
        "## The signal",
        "",
        "What the rendered query of KEDA answers, beside what was in flight at the same scrape: a "
        "real Triton with simulated models and a real Prometheus that scrapes every second, on a "
        f"machine with {found['cores']} cores, {found['day']} "
        "(`python -m benchmarks.scaling.signal_accuracy`).",
        "",
        "| requests/s | models | requests | in flight, mean | signal, mean | error |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {case['rate']:g} | {case['models']} | {case['requests']} | "
        f"{case['true_in_flight']:.2f} | {case['signal']:.2f} | {case['error']:.2%} |"
        for case in found["accuracy"]
    ]
    return [
        *lines,
        "",
        f"From 0 to {max(linear['offered'])} clients, four times the slots: slope "
        f"{linear['slope']:.3f}, R² {linear['r_squared']:.4f}. {reaction['requests']} requests of "
        f"{reaction['request_seconds']:.0f} s were all seen after {reaction['seconds']:.1f} s, "
        f"when {reaction['answered']} of them had ended.",
        "",
        f"Within the goals (error {ERROR_GOAL:.0%}, R² {R_SQUARED_GOAL}, seen while the first "
        f"request still runs): {signal_verdict(found)}.",
        "",
    ]


def keep(source: Path, kept: Path = KEPT) -> None:
    """Copy one result to where the tables are made from.

    Raises:
        ResultsError: it is none.
    """
    kept.mkdir(exist_ok=True)
    if source.is_file() and source.name == SIGNAL:
        shutil.copyfile(source, kept / SIGNAL)
        return
    if not (source / "fleet.json").is_file():
        raise ResultsError(f"no fleet.json in {source}; run benchmarks.scaling.fleet first")
    found = json.loads((source / "fleet.json").read_text("utf-8"))
    for file, end in (("fleet.json", ".json"), ("fleet.png", ".png"), ("step.png", "-step.png")):
        shutil.copyfile(source / file, kept / f"{name(found)}{end}")


def page(kept: Path = KEPT) -> str:
    """Return everything that was kept as Markdown."""
    lines = [
        "# How well it scales: the last results",
        "",
        "Written by `python -m benchmarks.scaling.results_page` from runs of "
        "`benchmarks.scaling.fleet`, all of which `make scale` makes.",
        "",
    ]
    if (kept / SIGNAL).is_file():
        lines += signal_table(json.loads((kept / SIGNAL).read_text("utf-8")))
    loaded = [json.loads(file.read_text("utf-8")) for file in sorted(kept.glob("*-sync-*.json"))]
    if loaded:
        lines += table(sorted(loaded, key=lambda found: model(found) != SIMULATED), kept)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Keep what is named, write the page; return the exit code."""
    try:
        for word in sys.argv[1:]:
            keep(Path(word))
    except ResultsError as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    TABLE.write_text(page(), encoding="utf-8")
    print(TABLE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
