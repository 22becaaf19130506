"""What a run shows in a terminal: a line now and then, and the verdict as the last words."""

from __future__ import annotations

import sys
import time
from typing import Any

import gevent

from triton_load import record
from triton_load.measure import Measurements
from triton_load.report.svg import clock, milliseconds, number

PROGRESS_SECONDS = 5.0


def progress_line(
    counts: Measurements, *, seconds: float, users: int, rates: tuple[float, float]
) -> str:
    """Return one line on a run that goes on.

    Args:
        counts: everything so far.
        seconds: since the start of the load.
        users: that run now.
        rates: requests and tokens per second since the last line.
    """
    words = [
        f"load: {clock(seconds):>7}",
        f"{users} users",
        f"{counts.passed + counts.failed} requests ({number(rates[0])}/s)",
        f"{counts.failed} failed",
    ]
    if counts.tokens:
        words.append(f"{number(rates[1])} tokens/s")
    ttft = counts.distributions[record.TTFT]
    shown, name = (
        (ttft, "ttft") if ttft.count else (counts.distributions[record.LATENCY], "latency")
    )
    if shown.count:
        words.append(f"{name} p95 {milliseconds(1000 * shown.quantile(95))}")
    return "  ".join(words)


def show_progress(session: Any) -> None:
    """Print a line on stderr now and then, from the start of the load to its end."""
    before, then = (0, 0), time.monotonic()
    while not session.over:
        gevent.sleep(PROGRESS_SECONDS)
        counts, now = session.measurements, time.monotonic()
        if not session.began or session.over:
            continue
        ended = (counts.passed + counts.failed, counts.tokens)
        rates = tuple((b - a) / (now - then) for a, b in zip(before, ended, strict=True))
        runner = session.environment.runner
        line = progress_line(
            counts,
            seconds=time.time() - session.started,
            users=runner.user_count if runner else 0,
            rates=(rates[0], rates[1]),
        )
        print(line, file=sys.stderr, flush=True)
        before, then = ended, now
