"""Sampling values of a repository count where config.pbtxt states none."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from triton_hf.engines.generation_defaults import with_repository_defaults
from triton_hf.models.settings import GenerationDefaults, parse_settings

LLAMA = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
QWEN = {**LLAMA, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


def defaults(generation: dict[str, Any], **stated: str) -> GenerationDefaults:
    settings = parse_settings({"engine": "transformers", "repo_id": "a/b", **stated})
    return with_repository_defaults(settings, GenerationConfig(**generation)).defaults


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {}),
        (LLAMA, {"temperature": 0.6, "top_p": 0.9}),
        (QWEN, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": False, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"temperature": 0.3, "min_p": 0.1}, {"temperature": 0.3, "min_p": 0.1}),
    ],
)
def test_values_of_the_repository_are_the_defaults(generation, expected) -> None:
    assert defaults(generation) == GenerationDefaults(**expected)


def test_values_that_the_model_states_win_one_by_one() -> None:
    found = defaults(QWEN, temperature="0", max_tokens="9")
    assert (found.temperature, found.max_tokens, found.top_k) == (0.0, 9, 20)


def test_the_log_says_where_each_default_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    defaults(QWEN, temperature="0")
    said = capsys.readouterr().err
    assert "temperature 0 (model)" in said
    assert "top_k 20 (repository)" in said
    assert "max_tokens 256 (server)" in said


def test_a_value_out_of_range_is_left_out_and_the_log_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert defaults({"do_sample": True, "temperature": 7.0}).temperature == 0.0
    assert "parameter 'temperature' must be a number from 0 to 2" in capsys.readouterr().err
