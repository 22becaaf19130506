"""The search finds the limit, does not trust luck, and says when the generator was the limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from triton_load.search import BLIND, BREAKS, HOLDS, Step, search


def server(limit: float, *, blind_from: float = float("inf")) -> Callable[[float], Step]:
    def attempt(level: float) -> Step:
        if level >= blind_from:
            return Step(level=level, result=BLIND)
        return Step(level=level, result=HOLDS if level <= limit else BREAKS)

    return attempt


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 37, 500])
def test_whole_loads_are_found_exactly(limit: int) -> None:
    found = search(server(limit), low=1, precision=0, whole=True)
    assert found.best is not None
    assert found.limit is not None
    assert (found.best.level, found.limit.level) == (limit, limit + 1)
    assert not found.blind


@pytest.mark.parametrize("limit", [0.5, 0.77, 3.3, 81.0])
def test_a_rate_is_found_within_the_precision(limit: float) -> None:
    found = search(server(limit), low=0.5, precision=0.05)
    assert found.best is not None
    assert found.limit is not None
    assert found.best.level <= limit < found.limit.level <= found.best.level * 1.051
    assert len(found.steps) < 20


def test_a_server_that_breaks_at_once_has_no_capacity() -> None:
    found = search(server(0.5), low=1, whole=True)
    assert found.best is None
    assert len(found.steps) == 1


def test_the_highest_load_to_try_ends_the_search() -> None:
    found = search(server(1000), low=1, high=12, whole=True)
    assert found.best is not None
    assert (found.best.level, found.limit) == (12, None)


def test_a_load_that_the_generator_cannot_make_ends_the_search() -> None:
    found = search(server(1000, blind_from=16), low=1, whole=True)
    assert found.best is not None
    assert (found.best.level, found.blind) == (8, True)


def test_a_load_that_held_by_luck_is_not_the_answer() -> None:
    seen: list[float] = []

    def attempt(level: float) -> Step:
        lucky = level == 6 and 6 not in seen
        seen.append(level)
        return Step(level=level, result=HOLDS if level <= 4 or lucky else BREAKS)

    found = search(attempt, low=1, precision=0, whole=True)
    assert found.best is not None
    assert found.limit is not None
    assert (found.best.level, found.limit.level) == (4, 6)
    assert seen[-2:] == [6, 4]
