"""What follows from the capacity of one replica: its target, and how many replicas are needed."""

from __future__ import annotations

import dataclasses
import math

from triton_load.search import HOLDS, Found, Step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What shall be served in all, and how.

    Attributes:
        users: Users, or 0.
        rate: Requests per second, or 0.
        think: Seconds between an answer and the next request of a user.
        headroom: Part of a replica's capacity that stays free, from 0 to below 1.
        tested: Replicas that were tested together.
    """

    users: int = 0
    rate: float = 0.0
    think: float = 0.0
    headroom: float = 0.2
    tested: int = 1

    @property
    def text(self) -> str:
        """In words; empty when nothing was asked."""
        if self.users:
            pause = f" with {self.think:g} s of thought" if self.think else ""
            return f"{self.users} users{pause}"
        return f"{self.rate:g} requests/s" if self.rate else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What follows for one replica.

    Attributes:
        load: Highest load that was held twice, in the unit of the search.
        rate: Requests per second at that load.
        in_flight: Mean requests in flight at that load, by Little's law.
        target: `autoscaling.target` for the signal `inflight`.
        replicas: For what was asked; None when nothing was.
    """

    load: float
    rate: float
    in_flight: float
    target: int
    replicas: int | None


def answer(best: Step, wish: Wish) -> Answer:
    """What follows from the best step.

    Target and replicas leave the headroom free: an autoscaler acts only 10 % above its target, and
    a new pod needs time to load its model. A user who thinks asks once in (latency + think)
    seconds, so N of them ask N / (latency + think) times a second.
    """
    usable = 1 - wish.headroom
    rate = best.requests_per_second / wish.tested
    in_flight = best.in_flight / wish.tested
    demand = wish.users / (best.latency + wish.think) if wish.users else wish.rate
    replicas = max(1, math.ceil(demand / (rate * usable) - 1e-9)) if demand and rate else None
    return Answer(
        load=best.level / wish.tested,
        rate=rate,
        in_flight=in_flight,
        target=max(1, math.floor(in_flight * usable)),
        replicas=replicas,
    )


def sentence(found: Found, result: Answer | None, *, unit: str) -> str:
    """The answer in one sentence."""
    if found.best is None or result is None:
        step = min(found.steps, key=lambda step: step.level)
        what = "the generator cannot make" if found.blind else "one replica does not hold"
        return f"{what} {step.level:g} {unit}: {_why(step)}"
    amount = f"{result.load:.4g} {unit} within the objectives"
    if found.limit is None:
        return f"one replica holds at least {amount}; nothing above --highest was tried"
    at = f"{found.limit.level:g} {unit}"
    if found.blind:
        return (
            f"one replica holds at least {amount}; the generator cannot make {at}: "
            f"{_why(found.limit)}"
        )
    return f"one replica holds {amount}; at {at} it breaks: {_why(found.limit)}"


def _why(step: Step) -> str:
    return step.reasons[0] if step.reasons else "it did not hold a second time"


def cut_short(found: Found, unit: str) -> str:
    """What an interrupted search came to, in one sentence."""
    held = [step.level for step in found.steps if step.result == HOLDS]
    known = f"{max(held):g} {unit} held once" if held else "no load held"
    return f"the search was interrupted before its end; {known}"


def follows(result: Answer, wish: Wish) -> list[str]:
    """What follows from the answer, a line each."""
    lines = [
        f"autoscaling.target: {result.target}  "
        f"({1 - wish.headroom:.0%} of {result.in_flight:.1f} in flight)"
    ]
    if result.replicas is not None:
        lines.append(f"replicas for {wish.text}: {result.replicas}")
    return lines
