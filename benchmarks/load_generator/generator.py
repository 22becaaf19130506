"""How much load the generator itself can make: stream events per second and worker core.

    python -m benchmarks.load_generator.generator --workers 1 2 4 8 --out generator.json

For each number of workers, streams of a server that costs little (ticker.py) are read by more and
more users until the run calls itself invalid: a worker over 80 % of its core, or late. Writes JSON
and, beside it, a plot. Give the machine a core for each worker, one for the master and one for each
two workers' servers; with fewer, they share, and lag alone is the machine's limit and no worker's.
A run that fails (answers that came too late) is the limit of the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.load_generator.conditions import conditions
from tools.place import ROOT
from triton_hf.progress import Progress

HERE = Path(__file__).parent
LOCUSTFILE = ROOT / "load_testing" / "locustfile.py"
GAP_MS, TOKENS = 10, 200


PROGRESS = Progress("generator")
say = PROGRESS.say


@contextlib.contextmanager
def tickers(count: int) -> Iterator[list[str]]:
    """Run servers; give their URLs."""
    words = [sys.executable, str(HERE / "ticker.py"), f"--gap-ms={GAP_MS}", f"--tokens={TOKENS}"]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield [f"http://127.0.0.1:{int(p.stdout.readline())}" for p in running if p.stdout]
    finally:
        for process in running:
            process.kill()
            process.wait()


def cores_wanted(workers: int) -> int:
    """A core for each worker, one for the master, and one for the servers of each two workers."""
    return workers + 1 + (workers + 1) // 2


def limit_of(verdict: str, reasons: tuple[str, ...], *, workers: int) -> str:
    """Return whose limit a run met: `generator`, `server`, `machine`, or nobody's."""
    if verdict != "invalid":
        return "server" if verdict == "fail" else ""
    late = all("late" in reason for reason in reasons)
    return "machine" if late and cores_wanted(workers) > (os.cpu_count() or 1) else "generator"


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    hosts: list[str], folder: Path, *, workers: int, users: int, options: argparse.Namespace
) -> Any:
    """Run master and workers; return the record. Workers are spread over the servers."""
    from triton_load import record

    port = free_port()
    base = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--loglevel=WARNING"]
    test = ["--model=ticker", "--client=stream", "--stop-timeout=10"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    crowd = [
        subprocess.Popen(
            [*base, "--worker", f"--master-port={port}", *test, f"--host={hosts[n % len(hosts)]}"],
            **quiet,
        )
        for n in range(workers)
    ]
    master = [
        *(*base, "--master", f"--master-bind-port={port}", "--master-bind-host=127.0.0.1"),
        *(f"--expect-workers={workers}", "--expect-workers-max-wait=60", "--headless"),
        *("--only-summary", f"-u={users}", f"-r={max(10, users // 2)}", f"-t={options.seconds}s"),
        *(f"--out={folder}", f"--max-lag={options.max_lag}", *test, f"--host={hosts[0]}"),
    ]
    try:
        subprocess.run(master, timeout=options.seconds + 120, check=False, **quiet)
        for worker in crowd:
            worker.wait(timeout=30)
    finally:
        for worker in crowd:
            worker.kill()
    return record.read(folder)


def measure(workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Find the highest load of some workers that is still valid."""
    from triton_load.search import BREAKS, HOLDS, Step, search

    runs: list[dict[str, Any]] = []

    def attempt(level: float) -> Step:
        with tempfile.TemporaryDirectory() as folder:
            found = run(hosts, Path(folder), workers=workers, users=int(level), options=options)
        events, verdict = found.totals.output_tokens_per_second, found.verdict
        seen = {
            "users": int(level),
            "events_per_second": round(events),
            "cpu_percent": round(found.workers.cpu_percent),
            "cpu_us_per_event": round(
                1e4 * found.workers.cpu_percent * workers / max(1.0, events), 1
            ),
            "lag_p95_ms": round(1000 * found.workers.lag_seconds, 1),
            "verdict": verdict.result,
            "limit": limit_of(verdict.result, verdict.reasons, workers=workers),
            "reasons": list(verdict.reasons),
        }
        runs.append(seen)
        say(f"{workers} workers, {json.dumps(seen)}")
        result = HOLDS if verdict.result == "pass" else BREAKS
        return Step(level=level, result=result, reasons=verdict.reasons)

    with tickers(workers) as hosts:
        found = search(attempt, low=options.users, precision=options.precision, whole=True)
    best = [each for each in runs if found.best and each["users"] == found.best.level][-1:]
    over = [each for each in runs if found.limit and each["users"] == found.limit.level]
    events = best[0]["events_per_second"] if best else 0
    return {
        "workers": workers,
        "events_per_second": events,
        "events_per_second_and_worker": round(events / workers),
        "users": best[0]["users"] if best else 0,
        "limit": over[-1]["limit"] if over else "",
        "limit_reasons": list(found.limit.reasons) if found.limit else [],
        "cores_wanted": cores_wanted(workers),
        "runs": runs,
    }


def draw(document: dict[str, Any], file: Path) -> None:
    """Draw the highest valid load of each number of workers, and where runs became invalid."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "generator"  # the same numbers give the same file
    results, cores = document["results"], document["machine"]["cores"]
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = [each["workers"] for each in results]
    left.plot(counts, [each["events_per_second"] for each in results], "o-", label="measured")
    one = results[0]["events_per_second_and_worker"]
    left.plot(counts, [one * n for n in counts], "--", color="grey", label="one worker, times n")
    left.set(title="Highest valid load", xlabel="workers", ylabel="stream events/s")
    left.set(xticks=counts, ylim=(0, None))
    shared = [each for each in results if each["limit"] == "machine"]
    left.plot(
        [each["workers"] for each in shared],
        [each["events_per_second"] for each in shared],
        *("o",),
        **{"color": "white", "markeredgecolor": "C0", "zorder": 3},
        label=f"machine's limit: {cores} cores for all",
    )
    left.legend(loc="lower right", frameon=False)
    for each in results:
        runs = sorted(each["runs"], key=lambda run: run["users"])
        events = [run["events_per_second"] for run in runs]
        (line,) = right.plot(events, [run["cpu_percent"] for run in runs], "-", lw=0.8)
        for run in runs:
            right.plot(
                *(run["events_per_second"], run["cpu_percent"]),
                *({"pass": "o", "fail": "+"}.get(run["verdict"], "x"),),
                color=line.get_color(),
            )
        right.plot([], [], "o-", color=line.get_color(), label=f"workers: {each['workers']}")
    right.axhline(80, ls=":", color="grey")
    right.set(title="Each run (x: invalid, +: servers late)", xlabel="stream events/s in all")
    right.set(ylabel="busiest worker, % of a core", ylim=(0, 105))
    right.legend(frameon=False, fontsize="small")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=int, default=8, help="length of each run")
    parser.add_argument("--users", type=int, default=40, help="users in all to begin with")
    parser.add_argument("--precision", type=float, default=0.25, help="width of the last gap")
    parser.add_argument("--max-lag", type=float, default=20, help="as of the load test, in ms")
    parser.add_argument("--out", type=Path, default=Path("generator.json"))
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    results: list[dict[str, Any]] = []
    document = {
        **conditions(os.getloadavg()[0]),
        "stream": {"gap_ms": GAP_MS, "tokens": TOKENS},
        "results": results,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for workers in options.workers:
        results.append(measure(workers, options))
        options.out.write_text(json.dumps(document, indent=1) + "\n")  # kept if it ends early
    draw(document, options.out.with_suffix(".svg"))
    for each in results:
        wanted = each["cores_wanted"]
        enough = "" if cores >= wanted else f"  (machine's limit: wants {wanted} cores of {cores})"
        print(
            f"{each['workers']} workers: {each['events_per_second']} events/s, "
            f"{each['events_per_second_and_worker']} a worker{enough}"
        )


if __name__ == "__main__":
    main()
