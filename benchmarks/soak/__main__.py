"""`make soak`: half an hour at 80 % of what a real tritonserver can do, and what it did to it.

Usage: python -m benchmarks.soak [--minutes 30] [--models simulated smollm2]
       [--no-times] [--out DIR]

One server on this machine serves the SmolLM2 model and the simulated one. Whole answers, streams,
clients that leave at the first token, and requests that must be refused come at random times, at
80 % of the rate that the server held just before; those of SmolLM2 from users who think between
two. The first fifth of the settled time is compared with the last (p99 with those between, too):
p99 at most 5 % up, that of SmolLM2 divided by the time of a fixed computation at that moment, as
other machines on the same cores slow both down; RSS at most 2 % up, /dev/shm constant, and without
load no descriptor and no thread more than before. Writes soak.json and soak.png; a run of ten
minutes or more also gets a row in the table of `python -m tools.fault_table`.

Exit codes: 0 all held; 1 something is over its limit; 2 it could not run; 3 nothing is over, but
times varied too much, answers were too few, or the load was not 80 %, to say so of each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.soak import judge
from benchmarks.soak.draw import draw
from benchmarks.soak.run import LOAD, MODELS, Soak, server, soak
from embedded_triton.fetch import TRITON_VERSION, EmbeddedError
from tools import fault_table
from tools.place import ROOT
from triton_hf.progress import Progress

LONG = 10.0  # minutes; a shorter run is a try
EXITS = {judge.HELD: 0, judge.OVER: 1, judge.UNCLEAR: 3}


def table(lines: list[judge.Line]) -> str:
    """Return the comparisons as text."""
    head = f"{'':<40}{'first':>11}{'last':>11}{'change':>9}  {'spread':<22}{'limit':<16}"
    rows = [head]
    for line in lines:
        change = f"{line.change:+.1%}" if line.spread != "idle" and ":" not in line.name else ""
        rows.append(
            f"{line.name:<40}{line.before:>11.5g}{line.after:>11.5g}{change:>9}  "
            f"{line.spread:<22}{line.limit:<16}{line.verdict}"
        )
    return "\n".join(rows)


def write(found: Soak, lines: list[judge.Line], *, minutes: float, folder: Path) -> None:
    """Write soak.json and soak.png."""
    folder.mkdir(parents=True, exist_ok=True)
    start = found.samples[0].at
    samples = [
        {
            "seconds": round(sample.at - start, 1),
            "shared": sample.shared,
            "processes": {name: asdict(held) for name, held in sample.processes.items()},
        }
        for sample in found.samples
    ]
    told = {
        "minutes": minutes,
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "cores": os.cpu_count(),
        "load_average_at_the_end": round(os.getloadavg()[0], 1),
        "capacity_per_second": found.capacity,
        "load": LOAD,
        "capacity_found_at_ms": round(1000 * found.found_at, 3),
        "answered_per_second": {name: found.rate(name) for name in found.capacity},
        "lines": [asdict(line) for line in lines],
        "samples": samples,
        "looks": [
            {"seconds": round(look.at - start, 1), "took_ms": round(1000 * look.seconds, 3)}
            for look in found.looks
        ],
    }
    (folder / "soak.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    draw(found, folder / "soak.png")


def verdict(lines: list[judge.Line]) -> str:
    """Return the worst verdict."""
    found = {line.verdict for line in lines}
    return next(word for word in (judge.OVER, judge.UNCLEAR, judge.HELD) if word in found)


def row(found: Soak, lines: list[judge.Line], *, minutes: float) -> fault_table.Row:
    """Return what the table of the faults says about a run."""
    told = {line.name: line for line in lines}
    times = [line for line in lines if line.name.startswith("p99")]
    slower = ", ".join(
        f"{line.name.removeprefix('p99 ').removesuffix(', s')} {line.change:+.1%} ({line.spread}; "
        f"{len(line.windows)} windows {min(line.windows):.2f} to {max(line.windows):.2f} s)"
        for line in times
    )
    wrong = sum(bool(one.fault) for one in found.ended)
    rates = " and ".join(
        f"{found.rate(name):.1f}/s {name}, {found.share(name):.0%}"
        for name, most in found.capacity.items()
        if most
    )
    pace = told.get("a fixed computation, ms")
    return fault_table.Row(
        name="soak",
        order="benchmarks/soak",
        fault=f"{minutes:g} min at {LOAD:.0%} of the capacity ({rates}), on a server without a "
        "cluster; answers, streams, clients that leave, refusals",
        mark=f"nothing wrong; p99 at most {judge.TIME_LIMIT:.0%} and RSS at most "
        f"{judge.MEMORY_LIMIT:.0%} up; /dev/shm constant; nothing left open"
        + ("; p99 of SmolLM2 at one pace of the machine" if pace else ""),
        measured=f"{wrong} of {len(found.ended)} wrong; p99 {slower or 'not judged'}"
        + (f"; a fixed computation {pace.change:+.1%} ({pace.spread} ms)" if pace else "")
        + "; RSS "
        f"{told['RSS of all, MiB'].change:+.2%}; /dev/shm {told['/dev/shm, MiB'].spread} MiB"
        + "".join(f"; {line.name}: {line.verdict}" for line in lines if line.verdict != judge.HELD),
        passed=verdict(lines) == judge.HELD,
        seconds=minutes * 60,
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=f"Triton {TRITON_VERSION}",
    )


def main() -> int:
    """Run, write, print; return the exit code."""
    # Ends the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the load")
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=[*MODELS])
    parser.add_argument("--no-times", action="store_true", help="do not judge times")
    parser.add_argument("--seed", type=int, default=1, help="of the random times and texts")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "soak", help="folder")
    options = parser.parse_args()

    say = Progress("soak").say

    say("starting the server")
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        try:
            with server(options.models, Path(name)) as running:
                found = soak(
                    running, options.models, minutes=options.minutes, seed=options.seed, say=say
                )
        except (EmbeddedError, TimeoutError) as reason:
            print(f"soak: {reason}", file=sys.stderr)
            return EXITS[judge.OVER] if isinstance(reason, TimeoutError) else 2
    lines = found.lines(timed=not options.no_times)
    write(found, lines, minutes=options.minutes, folder=options.out)
    if options.minutes >= LONG:
        row(found, lines, minutes=options.minutes).save()
    rates = ", ".join(f"{name} {rate:.1f}/s" for name, rate in found.capacity.items())
    print(f"capacity {rates}; load {LOAD:.0%} of it for {options.minutes:g} min")
    print(table(lines))
    print(f"{verdict(lines)}: {options.out / 'soak.json'}, {options.out / 'soak.png'}")
    return EXITS[verdict(lines)]


if __name__ == "__main__":
    raise SystemExit(main())
