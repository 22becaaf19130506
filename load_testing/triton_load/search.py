"""Search for the highest load that keeps the objectives. Knows nothing of how a load is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

HOLDS, BREAKS, BLIND = "holds", "breaks", "blind"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One load that was tried.

    Attributes:
        level: Users, or requests per second.
        result: `holds`: every objective was kept. `breaks`: one was not. `blind`: the generator
            could not make this load, so that nothing is known.
        reasons: Why it does not hold.
        in_flight: Mean requests in flight.
        requests_per_second: Requests that ended well.
        latency: Mean seconds of a request.
    """

    level: float
    result: str
    reasons: tuple[str, ...] = ()
    in_flight: float = 0.0
    requests_per_second: float = 0.0
    latency: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        best: The highest load that held twice, or None.
        limit: The lowest load above it that did not hold, or None when none was met.
        steps: Everything that was tried, in order.
        blind: Whether the generator set the limit.
    """

    best: Step | None
    limit: Step | None
    steps: tuple[Step, ...]
    blind: bool


def search(
    attempt: Callable[[float], Step],
    *,
    low: float,
    high: float = math.inf,
    precision: float = 0.1,
    whole: bool = False,
) -> Found:
    """Double the load until it breaks, then halve the interval, then try the best once more.

    Near the limit a load may hold by luck. So the answer is a load that held twice: when the second
    attempt breaks, the next lower load that held is tried again in its place.

    Args:
        attempt: Tries a load.
        low: Where to begin, above 0.
        high: Highest load to try.
        precision: The search ends when the load that breaks is at most this much above the load
            that holds, relative to it.
        whole: Loads are whole numbers.

    Returns:
        Found; its `best` is None when the first load breaks already or nothing holds twice.
    """
    steps: list[Step] = []

    def tried(level: float) -> Step:
        steps.append(attempt(level))
        return steps[-1]

    best, limit = _rise(tried, low=low, high=high, whole=whole)
    while best is not None and limit is not None and limit.result != BLIND:
        level = _between(best.level, limit.level, whole=whole)
        if limit.level <= best.level * (1 + precision) or level in (best.level, limit.level):
            break
        step = tried(level)
        if step.result == HOLDS:
            best = step
        else:
            limit = step
    confirmed, limit = _confirmed(tried, steps, best, limit)
    blind = limit is not None and limit.result == BLIND
    return Found(best=confirmed, limit=limit, steps=tuple(steps), blind=blind)


def _rise(
    tried: Callable[[float], Step], *, low: float, high: float, whole: bool
) -> tuple[Step | None, Step | None]:
    best, level = None, low
    while True:
        step = tried(level)
        if step.result != HOLDS:
            return best, step
        best = step
        if level >= high:
            return best, None
        level = _rounded(min(2 * level, high), whole=whole)


def _confirmed(
    tried: Callable[[float], Step], steps: Sequence[Step], best: Step | None, limit: Step | None
) -> tuple[Step | None, Step | None]:
    candidates = sorted(
        {step.level for step in steps if step.result == HOLDS and best and step.level <= best.level}
    )
    while candidates:
        again = tried(candidates.pop())
        if again.result == HOLDS:
            return again, limit
        limit = again
    return None, limit


def _between(low: float, high: float, *, whole: bool) -> float:
    return _rounded(math.sqrt(low * high), whole=whole)


def _rounded(level: float, *, whole: bool) -> float:
    """Whole, or with three digits, so that a person can repeat it."""
    if whole:
        return float(round(level))
    return float(f"{level:.3g}")
