"""Settings: what config.pbtxt says, and one sentence for what it must not say."""

from __future__ import annotations

import pytest

from triton_hf.errors import SettingsError
from triton_hf.models.settings import parse_settings


def test_every_parameter_becomes_a_typed_value() -> None:
    settings = parse_settings(
        {
            "engine": "transformers",
            "repo_id": "org/name",
            "revision": "main",
            "gated": "true",
            "dtype": "bfloat16",
            "device": "cpu",
            "weights": "int8",
            "slots": "3",
            "max_queue": "0",
            "max_queue_seconds": "2.5",
            "max_prompt_tokens": "10",
            "max_total_tokens": "20",
            "max_tokens": "5",
            "temperature": "0.5",
            "top_p": "0.9",
            "top_k": "7",
            "repetition_penalty": "1.1",
            "seed": "42",
        }
    )
    assert (settings.slots, settings.max_queue, settings.gated) == (3, 0, True)
    assert settings.max_queue_seconds == 2.5
    assert (settings.max_prompt_tokens, settings.max_total_tokens) == (10, 20)
    assert settings.weights == "int8"
    assert settings.defaults.temperature == 0.5
    assert (settings.defaults.top_k, settings.defaults.seed) == (7, 42)


def test_speed_of_a_simulated_model_is_tokens_per_second_or_time_between_tokens() -> None:
    by_speed = parse_settings({"engine": "simulated", "tokens_per_second": "200"})
    by_time = parse_settings({"engine": "simulated", "inter_token_ms": "5"})
    assert by_speed.simulated.inter_token == by_time.simulated.inter_token == 0.005


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"slot": "3"}, "unknown parameter 'slot'"),
        ({"slots": "0"}, "'slots' must be a whole number from 1 to 4096, got '0'"),
        ({"slots": "3.5"}, "got '3.5'"),
        ({"max_queue_seconds": "-1"}, "'max_queue_seconds' must be a number from 0 to 86400"),
        ({"temperature": "nan"}, "'temperature' must be a number from 0 to 2"),
        ({"top_p": "0"}, "'top_p' must be a number above 0 to 1"),
        ({"dtype": "int3"}, "'dtype' must be one of auto, float32"),
        ({"device": "tpu"}, "'device' must be one of auto, cpu, cuda"),
        ({"weights": "int3"}, "'weights' must be one of auto, int8"),
        ({"weights": "fp8"}, "'weights' fp8 is gone; serve a checkpoint that is quantised"),
        ({"gated": "yes"}, "'gated' must be true or false"),
        ({"revision": ""}, "'revision' must be text that is not empty"),
        ({"max_total_tokens": "10", "max_prompt_tokens": "10"}, "no answer fits"),
        ({"ttft_ms": "5"}, "unknown parameter 'ttft_ms'"),
    ],
)
def test_bad_parameter_is_named(parameters: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"repo_id": "org/name", **parameters})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "'repo_id' is missing"),
        ({"engine": "vlm"}, "'engine' must be one of auto, transformers, vllm, simulated"),
        ({"engine": "simulated", "repo_id": "a/b"}, "unknown parameter 'repo_id'"),
        (
            {"engine": "simulated", "tokens_per_second": "1", "inter_token_ms": "1"},
            "not both",
        ),
    ],
)
def test_contradiction_is_named(parameters: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(parameters)
    assert words in str(caught.value)
