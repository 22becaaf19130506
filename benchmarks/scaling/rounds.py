"""What a step response plays, and the times that come of it."""

from __future__ import annotations

import dataclasses
import threading

from lib import offered_load
from lib.prometheus import Prometheus
from lib.watch import Timeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one round does.

    Attributes:
        target: requests in flight that the autoscaler wants in a pod; the load at 1x.
        factor: how much more the high load is.
        low_seconds: how long 1x is held before the step.
        high_seconds: longest time at the high load; it ends sooner when all is ready and quick.
        settle_seconds: longest time for the way back after the load ended.
        objective: p95 in seconds that the answers must keep; None takes 1.5 times that of 1x.
    """

    target: int
    factor: int = 4
    low_seconds: float = 20.0
    high_seconds: float = 120.0
    settle_seconds: float = 600.0
    objective: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """Times of one round, in seconds after the step up (or, for `back_seconds`, after the end).

    None means: did not happen in the time allowed.
    """

    at: float
    ended: float
    p95_low_seconds: float
    objective_seconds: float
    signal_crossed_seconds: float | None
    decided_seconds: float | None
    scheduled_seconds: float | None
    ready_seconds: float | None
    all_ready_seconds: float | None
    p95_back_seconds: float | None
    most_replicas: int
    back_seconds: float | None
    requests: int
    failed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """The parts that a round plays with.

    Attributes:
        turn: held while there is load. Releases that share it grow one after the other, so that
            none waits for cores on which another's pods start.
    """

    driver: offered_load.Load
    timeline: Timeline
    prometheus: Prometheus
    labels: str
    least: int
    turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
