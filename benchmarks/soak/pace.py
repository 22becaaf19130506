"""How fast this machine computes from moment to moment, whoever else uses its cores.

Another virtual machine on the same cores or caches slows a computation down, and often no counter
of the kernel tells of it. So a fixed computation of some milliseconds is timed again and again
beside the server, in CPU seconds of its own thread, with the share of the cores' time that the
hypervisor says it took on top. Waiting for a core is not in it.
"""

from __future__ import annotations

import bisect
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.soak import process_watch

AROUND = 6.0  # seconds before and after a moment whose looks make its pace
_CACHED = 1 << 14  # numbers of an array that stays in the cache of a core
_TIMES = 150
_STREAMED = 1 << 23  # numbers of one that comes from memory


@dataclass(frozen=True, kw_only=True)
class Look:
    """One timing; `at` in monotonic seconds, `seconds` that the computation took."""

    at: float
    seconds: float


class Pace:
    """Times the computation; half of it works in a core's cache, half on memory."""

    def __init__(self) -> None:
        """Make the arrays; nothing is timed."""
        self.looks: list[Look] = []
        self._cached = np.full((3, _CACHED), 0.5, dtype=np.float32)
        self._streamed = np.ones(_STREAMED, dtype=np.float32)
        self._spent = process_watch.cpu_seconds()

    def look(self) -> None:
        """Time it once."""
        start = time.thread_time()
        for _ in range(_TIMES):
            np.multiply(self._cached[0], self._cached[1], out=self._cached[2])
        self._streamed.sum()
        took = time.thread_time() - start
        spent = process_watch.cpu_seconds()
        all_of_it, stolen = (b - a for a, b in zip(self._spent, spent, strict=True))
        self._spent = spent
        kept = 1 - stolen / all_of_it if all_of_it > 0 else 1.0
        self.looks.append(Look(at=time.monotonic(), seconds=took / max(kept, 0.1)))


def around(looks: Sequence[Look], at: float) -> float:
    """Return the median of the looks around a moment, of the nearest ones where there are none."""
    left, right = (
        bisect.bisect(looks, end, key=lambda look: look.at) for end in (at - AROUND, at + AROUND)
    )
    chosen = looks[left:right] or looks[max(0, left - 1) : left + 1]
    return statistics.median(look.seconds for look in chosen)


def within(looks: Sequence[Look], window: tuple[float, float]) -> float:
    """Return the median of the looks in a window."""
    return statistics.median(look.seconds for look in looks if window[0] <= look.at < window[1])
