"""The step responses as a table: `python3 -m scaling.results DIR...` (PYTHONPATH=k8s-tests).

Each DIR is one that `scaling.fleet` wrote. Its figures become rows of results.md beside this file,
and its plot is put beside the table.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling import step_plot

TABLE = Path(__file__).with_name("results.md")
# Seconds from the step to the decision: mean and worst. The sync alone costs half of itself, mean.
GOALS = {"15s": (10.0, 19.0), "5s": (5.0, None)}
SIMULATED = "simulated"
READY_GOAL = 20.0  # seconds from the decision to a new ready replica, mean


def name(found: Mapping[str, Any]) -> str:
    """Return what tells one run from the others."""
    base = f"{found['scaler']}-sync-{found['sync']}"
    return base if model(found) == SIMULATED else f"{model(found)}-{base}"


def model(found: Mapping[str, Any]) -> str:
    """Return the model of a run."""
    return str(found.get("model", SIMULATED))


def verdict(found: Mapping[str, Any]) -> str:
    """Return whether a run is within the goals, and where it is not."""
    mean, worst = GOALS.get(found["sync"], (None, None))
    decided = found["summary"].get("decided_seconds")
    ready = found["ready_after_decided_seconds"]
    misses = []
    if found["failed"]:
        misses.append("requests failed")
    if decided is None or decided["rounds"] < found["rounds"]:
        misses.append("not every step was answered")
    else:
        if mean is not None and decided["mean"] > mean:
            misses.append(f"decided in the mean after more than {mean:.0f} s")
        if worst is not None and decided["worst"] > worst:
            misses.append(f"decided at worst after more than {worst:.0f} s")
    if model(found) == SIMULATED and ready and sum(ready) / len(ready) > READY_GOAL:
        misses.append(f"ready more than {READY_GOAL:.0f} s after the decision")
    return ", ".join(misses) or "yes"


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return all runs as Markdown."""
    marks = list(step_plot.MARKS.items())
    lines = [
        "# Steps of the load: the last results",
        "",
        "Written by `make scale`: the load of a release goes from one to four times what the "
        "autoscaler wants in a pod, at random moments of its sync. The light image with a "
        "simulated model, or the full one with SmolLM2, whose servers share the cores with all "
        "else, so more of them are not faster. Scraped every 2 s, on a machine with "
        f"{runs[0]['cores']} cores. Seconds after the step: mean / worst.",
        "",
        "| model | scaler, sync | steps | " + " | ".join(label for _, label in marks) + " | ready "
        "after decided | requests failed | within the goals |",
        "|---|---|---|" + "---|" * (len(marks) + 3),
    ]
    for found in runs:
        cells = [model(found), f"{found['scaler']}, {found['sync']}", str(found["rounds"])]
        for field, _ in marks:
            known = found["summary"].get(field)
            cells.append("-" if known is None else f"{known['mean']:.1f} / {known['worst']:.1f}")
        ready = found["ready_after_decided_seconds"]
        cells.append(f"{sum(ready) / len(ready):.1f} / {max(ready):.1f}" if ready else "-")
        cells += [f"{found['failed']} of {found['requests']}", verdict(found)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Goals: decided in 10 s mean and 19 s worst at a sync of 15 s, 5 s mean at one of 5 s; a "
        f"new replica of the light image ready {READY_GOAL:.0f} s after that; no request failed.",
        "",
    ]
    lines += [f"![{name(found)}](results/{name(found)}.png)" for found in runs]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write table and plots; return the exit code."""
    folders = [Path(word) for word in sys.argv[1:]]
    if not folders:
        print("results: name the folders that scaling.fleet wrote", file=sys.stderr)
        return 2
    missing = [folder for folder in folders if not (folder / "fleet.json").is_file()]
    if missing:
        print(f"results: no fleet.json in {missing[0]}; run scaling.fleet first", file=sys.stderr)
        return 1
    plots = TABLE.with_name("results")
    plots.mkdir(exist_ok=True)
    runs = []
    for folder in folders:
        found = json.loads((folder / "fleet.json").read_text("utf-8"))
        shutil.copyfile(folder / "fleet.png", plots / f"{name(found)}.png")
        runs.append(found)
    TABLE.write_text(table(runs), encoding="utf-8")
    print(TABLE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
