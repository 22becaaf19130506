"""Whether the last window of a soak differs from the first one.

A time is compared by its 99th percentile, with the 95 % interval of the change. It has drifted
when the whole interval lies above the limit, and it has not when the change is within the limit.
Between the two the machine was too noisy to say; so it was when the time rose above the limit and
came back before the last window, because all windows get the same load. Times of a model that
computes are in those of a fixed computation beside it. Memory is compared by medians.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.soak import pace
from benchmarks.soak.drive import ANSWERED, Ended
from benchmarks.soak.pace import Look
from benchmarks.soak.process_watch import Sample
from triton_load.report import resample

TIME_LIMIT = 0.05
MEMORY_LIMIT = 0.02
MEMORY_FLOOR = 1 << 20  # bytes; 2 % of a stub without a model is less than one of malloc's steps
STOLEN_LIMIT = 0.05  # of the cores' time, taken by a hypervisor for other machines
LOAD_LIMIT = 0.1  # of the capacity
WINDOWS = 5
LEAST = 300  # answers in a window, below which its 99th percentile says nothing
HELD, OVER, UNCLEAR = "held", "over", "unclear"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One comparison.

    Attributes:
        name: what is compared.
        before: in the first window; seconds, bytes or a count.
        after: in the last one.
        spread: how much it varies: the interval of the change, or least and most of the samples.
        limit: what is allowed, in words.
        verdict: held, over, or unclear.
        windows: the value in each window, where that was looked at.
    """

    name: str
    before: float
    after: float
    spread: str
    limit: str
    verdict: str
    windows: tuple[float, ...] = ()

    @property
    def change(self) -> float:
        """From the first to the last window; 0.1 is 10 % more."""
        return self.after / self.before - 1 if self.before else float(self.after != 0)


@dataclass(frozen=True, kw_only=True)
class Span:
    """From one monotonic time to another, in windows of equal length."""

    start: float
    end: float

    def windows(self) -> list[tuple[float, float]]:
        """Return start and end of every window."""
        return [self.window(index) for index in range(WINDOWS)]

    def window(self, index: int) -> tuple[float, float]:
        """Return start and end of a window; -1 is the last."""
        length = (self.end - self.start) / WINDOWS
        start = self.start + (index % WINDOWS) * length
        return start, start + length


def p99(seconds: Sequence[float]) -> float:
    """Return the 99th percentile."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def times(ended: Sequence[Ended], span: Span) -> list[Line]:
    """Compare the times of each model's answers.

    Whole and streamed ones are judged together: they take as long, come in the same proportion in
    all windows, and the interval of a 99th percentile is narrower the more there are.
    """
    lines = []
    for model in sorted({one.model for one in ended}):
        chosen = [one for one in ended if one.model == model and one.kind in ANSWERED]
        windows = [within(chosen, window) for window in span.windows()]
        lines.append(_time(f"p99 {model}, s", windows))
    return lines


def kinds(ended: Sequence[Ended], span: Span) -> list[Line]:
    """Compare the times of each kind of answer alone, which may only tell that one has drifted.

    They are too few to show that none has, but a drift of one kind is half as large among all.
    """
    lines = []
    for model, kind in sorted({(one.model, one.kind) for one in ended if one.kind in ANSWERED}):
        chosen = [one for one in ended if (one.model, one.kind) == (model, kind)]
        line = _time(f"{kind}: p99 {model}, s", [within(chosen, w) for w in span.windows()])
        verdict = OVER if line.verdict == OVER else HELD
        lines.append(replace(line, limit=f"not surely {TIME_LIMIT:.0%} more", verdict=verdict))
    return lines


def within(ended: Sequence[Ended], window: tuple[float, float]) -> list[float]:
    """Return the seconds of the requests that began in a window."""
    return [one.seconds for one in ended if window[0] <= one.at < window[1]]


def _time(name: str, windows: Sequence[list[float]]) -> Line:
    limit = f"{TIME_LIMIT:.0%} more"
    first, last = windows[0], windows[-1]
    slowest = [p99(each) if each else 0.0 for each in windows]
    if min(len(first), len(last)) < LEAST:
        spread, verdict = f"only {min(len(first), len(last))} answers", UNCLEAR
    else:
        draws = [
            resample.percentile_draws([(value, 1) for value in sorted(each)], 99, seed=seed)
            for seed, each in enumerate((first, last), start=resample.SEED)
        ]
        found = resample.change(slowest[0], slowest[-1], draws[0], draws[1])
        spread = f"{found.low:+.1%} to {found.high:+.1%}"
        verdict = HELD if found.value <= TIME_LIMIT else OVER if found.low > TIME_LIMIT else UNCLEAR
        if verdict == OVER and came_back(slowest[:-1]):
            verdict = UNCLEAR
    return Line(
        name=name,
        before=slowest[0],
        after=slowest[-1],
        spread=spread,
        limit=limit,
        verdict=verdict,
        windows=tuple(slowest),
    )


def came_back(times: Sequence[float]) -> bool:
    """Whether a time rose above the limit and was within it later."""
    above = [time > (1 + TIME_LIMIT) * times[0] for time in times]
    return (True, False) in itertools.pairwise(above)


def memory(samples: Sequence[Sample], span: Span) -> list[Line]:
    """Compare the memory of each process, and all of it."""
    windows = [chosen(samples, span.window(index)) for index in (0, -1)]
    names = sorted(windows[0][0].processes)
    lines = []
    for name in names:
        pair = [[s.processes[name].rss for s in w if name in s.processes] for w in windows]
        lines.append(_memory(f"RSS {name}, MiB", pair, floor=MEMORY_FLOOR))
    pair = [[sum(held.rss for held in s.processes.values()) for s in w] for w in windows]
    lines.append(_memory("RSS of all, MiB", pair, floor=0))
    return lines


def _memory(name: str, pair: list[list[int]], *, floor: int) -> Line:
    before, after = (statistics.median(values) for values in pair)
    allowed = max(before * MEMORY_LIMIT, floor)
    least, most = min(map(min, pair)) / 2**20, max(map(max, pair)) / 2**20
    return Line(
        name=name,
        before=before / 2**20,
        after=after / 2**20,
        spread=f"{least:.1f} to {most:.1f}",
        limit=f"{allowed / 2**20:.1f} MiB more",
        verdict=HELD if after - before <= allowed else OVER,
    )


def chosen(samples: Sequence[Sample], window: tuple[float, float]) -> list[Sample]:
    """Return the samples of a window."""
    return [sample for sample in samples if window[0] <= sample.at <= window[1]]


def shared(samples: Sequence[Sample], span: Span) -> Line:
    """Check that /dev/shm is the same from the first window on."""
    values = [sample.shared for sample in chosen(samples, (span.start, span.end))]
    least, most = min(values) / 2**20, max(values) / 2**20
    return Line(
        name="/dev/shm, MiB",
        before=values[0] / 2**20,
        after=values[-1] / 2**20,
        spread=f"{least:.1f} to {most:.1f}",
        limit="constant",
        verdict=HELD if least == most else OVER,
    )


def idle(before: Sample, after: Sample) -> list[Line]:
    """Compare what the server holds without any request, before the load and after it."""
    lines = []
    for name, first in before.processes.items():
        last = after.processes.get(name)
        same = last is not None and last.pid == first.pid
        lines.append(_count(f"process {name}", first.pid, last.pid if last else 0, same=same))
        if last is None:
            continue
        opened = last.descriptors - first.descriptors
        started = last.threads - first.threads
        descriptors, threads = (first.descriptors, last.descriptors), (first.threads, last.threads)
        lines.append(_count(f"descriptors of {name}", *descriptors, same=opened <= 0))
        lines.append(_count(f"threads of {name}", *threads, same=started <= 0))
    return lines


def _count(name: str, before: int, after: int, *, same: bool) -> Line:
    return Line(
        name=name,
        before=before,
        after=after,
        spread="idle",
        limit="no more" if "process" not in name else "the same",
        verdict=HELD if same else OVER,
    )


def stolen(share: float, lines: Sequence[Line]) -> list[Line]:
    """Say how much time the host took; above the limit answers say nothing of the server.

    The load was chosen for a faster machine then, so refusals and slower times are unclear. What
    held nevertheless holds.
    """
    doubtful = share > STOLEN_LIMIT and any(each.verdict == OVER for each in lines)
    line = Line(
        name="CPU time taken by the host, %",
        before=0.0,
        after=100 * share,
        spread="",
        limit=f"{STOLEN_LIMIT:.0%}",
        verdict=UNCLEAR if doubtful else HELD,
    )
    judged = [
        replace(each, verdict=UNCLEAR) if doubtful and each.verdict == OVER else each
        for each in lines
    ]
    return [*judged, line]


def load(model: str, share: float, wanted: float) -> Line:
    """Check that a model was loaded as much as was wanted of what it can do.

    On a machine that was slower while the capacity was found, the load was lower than it seems.
    """
    return Line(
        name=f"load of {model}, % of its capacity",
        before=100 * wanted,
        after=100 * share,
        spread="",
        limit=f"{LOAD_LIMIT:.0%} off",
        verdict=HELD if abs(share - wanted) <= LOAD_LIMIT else UNCLEAR,
    )


def paces(looks: Sequence[Look], span: Span) -> list[Line]:
    """Tell how long a fixed computation took in each window, by which times were divided."""
    windows = tuple(1000 * pace.within(looks, window) for window in span.windows())
    return [
        Line(
            name="a fixed computation, ms",
            before=windows[0],
            after=windows[-1],
            spread=f"{min(windows):.1f} to {max(windows):.1f}",
            limit="none",
            verdict=HELD,
            windows=windows,
        )
    ]


def faults(ended: Sequence[Ended]) -> list[Line]:
    """Count what went wrong, by kind of request; nothing may."""
    lines = []
    for kind in sorted({one.kind for one in ended}):
        sent = [one for one in ended if one.kind == kind]
        wrong = [one.fault for one in sent if one.fault]
        lines.append(
            Line(
                name=f"{kind}: sent and wrong",
                before=len(sent),
                after=len(wrong),
                spread=wrong[0][:60] if wrong else "",
                limit="none wrong",
                verdict=OVER if wrong else HELD,
            )
        )
    return lines
