"""One step of a search for the capacity: a whole run of Locust, and how its record is judged."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from triton_load import record
from triton_load.errors import LoadTestError
from triton_load.objectives import EXIT_INPUT
from triton_load.record import Record
from triton_load.search import BLIND, BREAKS, HOLDS, Step

LOCUSTFILE = Path(__file__).parents[1] / "locustfile.py"
# A queue that grows: requests in flight become this much more, and this many at least.
_GROWTH, _SPARE = 1.5, 3.0


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
