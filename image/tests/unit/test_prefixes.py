from __future__ import annotations

import dataclasses
import random

import pytest

from triton_hf.compute.prefix_cache import LEAST_TOKENS, nearest


@dataclasses.dataclass(eq=False)
class Read:
    tokens: list[int]


def shared(one: list[int], other: list[int]) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_sequence_that_shares_most_is_found_and_how_much_it_shares(seed: int) -> None:
    numbers = random.Random(seed)
    # Few different tokens at few places, so that starts of every length are shared.
    sequences = [
        Read([int(numbers.random() < 0.01) for _ in range(numbers.randrange(1, 300))])
        for _ in range(40)
    ]
    prompt = [int(numbers.random() < 0.01) for _ in range(200)]
    expected = max(shared(prompt[:-1], one.tokens) for one in sequences)
    found, count = nearest(tuple(prompt), sequences)
    assert count == (expected if expected >= LEAST_TOKENS else 0)
    assert (found is None) == (count == 0)
    assert found is None or shared(prompt[:-1], found.tokens) == count


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    prompt = [*range(30)]
    assert nearest(prompt, [Read(prompt)])[1] == 29
    assert nearest(prompt, [Read([*prompt, 7])])[1] == 29
    assert nearest(prompt[: LEAST_TOKENS + 1], [Read(prompt)])[1] == LEAST_TOKENS


@pytest.mark.parametrize("tokens", [[], [5], [*range(LEAST_TOKENS - 1)], [9, *range(1, 30)]])
def test_what_shares_little_is_not_worth_a_copy(tokens: list[int]) -> None:
    assert nearest([*range(30)], [Read(tokens)]) == (None, 0)


def test_no_prompt_shares_with_nothing() -> None:
    assert nearest((), [Read([*range(30)])]) == (None, 0)
    assert nearest([*range(30)], []) == (None, 0)
