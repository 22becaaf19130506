"""How much load there is when: levels over time, and moments of arrival in an open loop."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from triton_load.errors import LoadTestError

SHAPES = ("constant", "ramp", "step", "spike", "soak")
ARRIVALS = ("constant", "poisson")
_RESOLUTION = 0.05  # seconds; while the level is 0, how often to look whether it still is
_SOAK_RISE = 0.05
_SPIKE = (0.4, 0.6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Load over time, in users (closed loop) or requests per second (open loop).

    Attributes:
        shape: constant: `base`. ramp: from `base` to `peak` in a straight line. step: from `base`
            to `peak` in `steps` equal plateaus. spike: `base`, with `peak` in the middle fifth.
            soak: from 0 to `base` in the first twentieth, then `base`.
        base: Level at the start, above 0.
        peak: Highest level; unused by constant and soak.
        duration: Seconds; 0 means without end, which only constant can have.
        steps: Plateaus of `step`, at least 2.
    """

    shape: str
    base: float
    peak: float = 0.0
    duration: float = 0.0
    steps: int = 4

    def __post_init__(self) -> None:
        """Check that the parts agree.

        Raises:
            LoadTestError: They do not.
        """
        if self.shape not in SHAPES:
            raise LoadTestError(f"--shape must be one of {', '.join(SHAPES)}, not '{self.shape}'")
        if self.base <= 0:
            raise LoadTestError("the load must be above 0; check --users or --rate")
        if self.shape != "constant" and self.duration <= 0:
            raise LoadTestError(f"--shape {self.shape} needs an end; give --run-time")
        if self.shape in ("ramp", "step", "spike") and self.peak <= 0:
            raise LoadTestError(f"--shape {self.shape} needs --peak, the highest load")
        if self.shape == "step" and self.steps < 2:
            raise LoadTestError(f"--steps must be at least 2, not {self.steps}")

    def level(self, at: float) -> float:
        """The load `at` seconds after the start."""
        done = at / self.duration if self.duration else 0.0
        rise = self.peak - self.base
        if self.shape == "ramp":
            return self.base + rise * min(done, 1.0)
        if self.shape == "step":
            return self.base + rise * min(int(done * self.steps), self.steps - 1) / (self.steps - 1)
        if self.shape == "spike":
            return self.peak if _SPIKE[0] <= done < _SPIKE[1] else self.base
        if self.shape == "soak":
            return self.base * min(done / _SOAK_RISE, 1.0)
        return self.base


def moments(
    profile: Profile, *, arrival: str, share: float, source: random.Random
) -> Iterator[float]:
    """Moments of arrival in seconds after the start, rising, without end.

    A rate that changes is followed by scaling time: each arrival uses up one unit (constant) or an
    exponential amount (Poisson) of the integral of the rate.

    Args:
        profile: Requests per second over time, of all generators together.
        arrival: `constant` or `poisson`.
        share: This generator's part of the rate.
        source: Where randomness comes from. A constant arrival starts at a random phase, so that
            several generators do not fire at the same moments.
    """
    at = 0.0
    due = source.expovariate(1.0) if arrival == "poisson" else source.random()
    fixed = profile.shape == "constant"
    while True:
        rate = profile.level(at) * share
        step = due / rate if rate > 0 else _RESOLUTION
        if fixed or step <= _RESOLUTION:
            at += step
            if rate > 0:
                yield at
                due = source.expovariate(1.0) if arrival == "poisson" else 1.0
        else:
            at += _RESOLUTION
            due -= rate * _RESOLUTION
