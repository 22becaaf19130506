"""Sampling of a whole batch: each row by its own parameters, as transformers would."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from triton_hf.compute.sampler import SamplingRow, choose
from triton_hf.contract import Sampling

DRAWS = 20_000


def rows(count: int = 1, prompt: tuple[int, ...] = (), **values: Any) -> list[SamplingRow]:
    return [SamplingRow(Sampling(**{"seed": seed} | values), prompt) for seed in range(count)]


def logits(size: int, *, spread: float = 2.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize(
    ("values", "warpers"),
    [
        ({"temperature": 1.0}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"temperature": 1.0, "top_k": 5}, [TopKLogitsWarper(5)]),
        ({"temperature": 1.0, "top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        (
            {"temperature": 1.5, "top_k": 10, "top_p": 0.8},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(10), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_draws_follow_the_distribution_of_transformers(values, warpers) -> None:
    scores = logits(30)
    expected = scores.unsqueeze(0)
    for warper in warpers:
        expected = warper(torch.zeros((1, 0), dtype=torch.long), expected)
    expected = torch.softmax(expected, dim=-1)[0]
    row = rows(**values)[0]
    drawn = [choose(scores.repeat(100, 1), [row] * 100) for _ in range(DRAWS // 100)]
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=30)
    assert counts[expected == 0].sum() == 0
    often = expected * DRAWS >= 5
    difference = (counts - expected * DRAWS)[often] ** 2 / (expected * DRAWS)[often]
    # Chi-squared with n - 1 degrees of freedom: mean n - 1, deviation sqrt(2 (n - 1)).
    freedom = max(int(often.sum()) - 1, 1)
    assert float(difference.sum()) < freedom + 5 * (2 * freedom) ** 0.5


def test_a_limit_beyond_the_first_candidates_is_that_of_transformers() -> None:
    scores = logits(5000, spread=0.1)
    kept = TopPLogitsWarper(0.9)(torch.zeros((1, 0), dtype=torch.long), scores.unsqueeze(0))[0]
    assert 4000 < int(kept.isfinite().sum()) < 5000
    drawn = choose(scores.repeat(2000, 1), rows(2000, temperature=1.0, top_p=0.9))
    assert kept[torch.tensor(drawn)].isfinite().all()
    assert len(set(drawn)) > 1000


def test_a_row_gets_the_same_token_whatever_is_beside_it() -> None:
    numbers = random.Random(3)
    sets = [
        {
            "temperature": numbers.choice([0.0, 0.3, 1.0, 2.0]),
            "top_p": numbers.choice([0.1, 0.9, 1.0]),
            "top_k": numbers.choice([0, 1, 7, 900, 5000]),
            "repetition_penalty": numbers.choice([0.8, 1.0, 1.5]),
            "seed": seed,
        }
        for seed in range(60)
    ]
    # Few different values, so that there are ties at every limit.
    scores = torch.stack([logits(1000, seed=seed).round() for seed in range(60)])

    def batch() -> list[SamplingRow]:
        return [SamplingRow(Sampling(**values), (1, 2, 3)) for values in sets]

    together = choose(scores.clone(), batch())
    alone = [choose(scores[i : i + 1].clone(), [row])[0] for i, row in enumerate(batch())]
    assert together == alone


def test_greedy_and_one_candidate_take_the_likeliest_token() -> None:
    scores = logits(100)
    best = int(scores.argmax())
    settings = [{}, {"temperature": 1.0, "top_k": 1}, {"temperature": 2.0, "top_p": 1e-9}]
    settings += [{"temperature": 1e-300}, {"temperature": 1e-6, "top_p": 0.5}]
    for values in settings:
        assert choose(scores.unsqueeze(0).clone(), rows(**values)) == [best]


def test_tokens_of_the_prompt_and_of_the_answer_are_penalised() -> None:
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    row = rows(prompt=(0,), repetition_penalty=2.0)
    assert [choose(scores.clone(), row)[0] for _ in range(3)] == [1, 0, 0]
    assert [choose(scores.clone(), rows(prompt=(0,)))[0] for _ in range(2)] == [0, 0]


def test_what_is_not_a_number_fails_its_row_only() -> None:
    scores = torch.stack([logits(50)] * 4)
    scores[1, 7] = float("nan")
    scores[2] = float("-inf")
    for values in ({}, {"temperature": 1.0, "top_p": 0.9, "top_k": 4}):
        tokens = choose(scores.clone(), rows(4, **values))
        assert (tokens[1], tokens[2]) == (None, None)
        assert None not in (tokens[0], tokens[3])


@pytest.mark.parametrize("mixed", [True, False])
def test_tokens_that_are_known_already_are_those_that_would_be_chosen(mixed) -> None:
    scores = torch.stack([logits(50, seed=seed) for seed in range(4)])
    scores[2] = float("nan")

    def batch() -> list[SamplingRow]:
        if not mixed:
            return rows(4)
        values = ({}, {"temperature": 2.0}, {}, {"repetition_penalty": 5.0})
        prompt = (int(scores[3].argmax()),)
        return [rows(1, prompt=prompt, **one)[0] for one in values]

    highest = [int(scores[row].argmax()) if row != 2 else -1 for row in range(4)]
    expected = choose(scores.clone(), batch())
    assert choose(scores.clone(), batch(), highest=highest) == expected
    assert (expected[3] == highest[3]) != mixed
    for some in ([3, 1], [3, 2, 1, 0]):
        for known in (highest, None):
            asked = [batch()[row] for row in some]
            found = choose(scores.clone(), asked, at=some, highest=known)
            assert found == [expected[row] for row in some]
    blank = scores[:2] * float("nan")  # is not looked at
    assert choose(blank, rows(2), highest=highest[:2]) == highest[:2]


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    scores = torch.full((500, 20), float("-inf"))
    scores[:, 4] = 0.0
    scores[:, 9] = -3.0
    assert set(choose(scores, rows(500, temperature=1.0))) == {4, 9}


def test_min_p_is_that_of_transformers() -> None:
    scores = logits(1000)
    kept = MinPLogitsWarper(0.2)(torch.zeros((1, 0), dtype=torch.long), scores.unsqueeze(0))[0]
    drawn = choose(scores.repeat(3000, 1), rows(3000, temperature=1.0, min_p=0.2))
    assert 1 < int(kept.isfinite().sum()) < 100
    assert set(drawn) == set(kept.isfinite().nonzero().flatten().tolist())


def test_a_bias_moves_the_greedy_token_of_its_row_alone() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0]).repeat(2, 1)
    biased = SamplingRow(Sampling(logit_bias=((0, 5.0), (2, -100.0))), ())
    assert choose(scores, [biased, SamplingRow(Sampling(), ())], highest=[2, 2]) == [0, 2]


def test_presence_counts_once_frequency_each_time_and_neither_the_prompt() -> None:
    def tokens(count: int, **values: Any) -> list[int | None]:
        row = SamplingRow(Sampling(**values), (0,))
        return [choose(torch.tensor([[3.0, 2.4, 0.0]]), [row])[0] for _ in range(count)]

    assert tokens(4, presence_penalty=1.0) == [0, 1, 0, 0]
    assert tokens(6, frequency_penalty=1.0) == [0, 1, 0, 1, 0, 1]
    assert tokens(2, presence_penalty=-2.0) == [0, 0]
