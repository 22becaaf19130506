"""The pure parts of the benchmark of Triton's own cost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks.engine.overhead import ENGINE, STREAMS, WHOLE, Rounds, ratios, table
from benchmarks.engine.systems.base import Answer, Prompt
from benchmarks.engine.systems.measure import FailedError, Shape

SPEEDS = {ENGINE: [100.0, 50.0, 200.0], WHOLE: [90.0, 50.0, 180.0], STREAMS: [45.0, 45.0, 90.0]}


def test_ratios_are_those_within_a_round() -> None:
    assert ratios(SPEEDS, WHOLE, ENGINE) == [0.9, 1.0, 0.9]
    row = table({8: SPEEDS}).splitlines()[-1]
    assert row == (
        "| 8 | 100 | 90 | 45 | 90.0% (90% to 100%) | 45.0% (45% to 90%) | 50.0% (50% to 90%) |"
    )


class Asked:
    """Answers after a second, and notes who was asked."""

    session = 0

    def __init__(self, name: str, order: list[str], *, lacks: int = 0) -> None:
        self.name, self.order, self.lacks = name, order, lacks

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, clients: int) -> list[Answer]:
        assert len(prompts) == 4 * clients
        self.order.append(self.name)
        made = Answer(start=0.0, events=((1.0, tokens - self.lacks),))
        return [made for _ in prompts]


def rounds_of(*systems: Asked) -> Rounds:
    return Rounds(
        {system.name: system for system in systems},
        prompts=lambda count, *_: [Prompt(system="", user="", ids=(1, 2))] * count,
        shape=Shape(prompt=2, answer=3),
    )


def test_each_round_begins_with_another_system() -> None:
    order: list[str] = []
    systems = [Asked(name, order) for name in "abc"]
    found = rounds_of(*systems).measure(clients=2, rounds=3)
    assert "".join(order) == "abcbcacab"
    assert found == {name: [24.0] * 3 for name in "abc"}


def test_an_answer_that_is_not_whole_fails_the_benchmark() -> None:
    systems = [Asked("a", []), Asked("b", [], lacks=1)]
    with pytest.raises(FailedError, match="2 tokens instead of 3"):
        rounds_of(*systems).measure(clients=1, rounds=1)
