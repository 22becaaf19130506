"""What vLLM is told, and what it is never told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from triton_hf.contract import Sampling
from triton_hf.engines.text import TextWork
from triton_hf.engines.vllm_arguments import (
    cache_bytes,
    check_names,
    engine_arguments,
    refusal,
    sampling_arguments,
)
from triton_hf.errors import SettingsError
from triton_hf.models.settings import ModelSettings, parse_settings
from triton_hf.models.specification import read_spec

CONFIG = SimpleNamespace(
    num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4, hidden_size=64
)


def settings(**parameters: str) -> ModelSettings:
    return parse_settings({"engine": "vllm", "repo_id": "a/b", **parameters})


def work(sampling: Sampling) -> TextWork:
    return TextWork(
        conversation=(), token_ids=(1, 2), prompt_tokens=2, max_tokens=9, sampling=sampling
    )


def test_the_arguments_are_ours_and_then_those_of_engine_args() -> None:
    given = settings(slots="3", engine_args='{"block_size": 16, "enforce_eager": false}')
    arguments = engine_arguments(given, folder=Path("/m"), config=CONFIG, cpu=True)
    assert arguments["model"] == "/m"
    assert (arguments["max_num_seqs"], arguments["max_model_len"]) == (3, 2048)
    assert (arguments["block_size"], arguments["enforce_eager"]) == (16, False)
    assert arguments["trust_remote_code"] is False
    on_gpu = engine_arguments(given, folder=Path("/m"), config=CONFIG, cpu=False)
    assert "kv_cache_memory_bytes" not in on_gpu


def test_the_cache_of_a_cpu_holds_full_slots() -> None:
    number = cache_bytes(settings(slots="3", dtype="bfloat16"), CONFIG)
    a_token = 2 * 2 * 4 * 8 * 2  # layers, keys and values, heads, width, bytes
    assert number is not None
    assert 3 * 2048 * a_token <= number < 1.5 * 3 * 2048 * a_token
    assert cache_bytes(settings(slots="3", dtype="float32"), CONFIG) == 2 * number
    assert cache_bytes(settings(), SimpleNamespace(layers=2)) is None
    own = settings(engine_args='{"kv_cache_memory_bytes": 5}')
    arguments = engine_arguments(own, folder=Path("/m"), config=CONFIG, cpu=True)
    assert arguments["kv_cache_memory_bytes"] == 5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "which is set by 'repository'"),
        ("max_num_seqs", "which is set by 'slots'"),
        ("trust_remote_code", "no code of a repository is run"),
    ],
)
def test_an_argument_that_something_else_decides_is_refused(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match="parameter 'engine_args' has") as caught:
        settings(engine_args=json.dumps({name: 1}))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "block_size=16", "16"])
def test_engine_args_are_a_mapping(text: str) -> None:
    with pytest.raises(SettingsError, match="'engine_args' must be a JSON object"):
        settings(engine_args=text)


def test_engine_args_of_another_engine_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown parameter 'engine_args'; engine transformers"):
        parse_settings({"engine": "transformers", "repo_id": "a/b", "engine_args": "{}"})


def test_a_name_that_vllm_does_not_know_is_refused_with_the_nearest() -> None:
    known = {"block_size", "max_num_batched_tokens", "_internal"}
    check_names({"block_size": 16}, known, version="1")
    with pytest.raises(SettingsError) as caught:
        check_names({"max_batched_tokens": 1}, known, version="1")
    assert str(caught.value) == (
        "parameter 'engine_args' has 'max_batched_tokens', which is no engine argument of vLLM 1; "
        "did you mean 'max_num_batched_tokens'?"
    )
    with pytest.raises(SettingsError):
        check_names({"_internal": 1}, known, version="1")


def test_a_mapping_of_a_values_file_keeps_its_types(tmp_path: Path) -> None:
    # Helm turns whole numbers into 16.0.
    engine_args = {"block_size": 16.0, "gpu_memory_utilization": 0.5, "quantization": "awq"}
    entry = {"engine": "vllm", "repository": "a/b", "parameters": {"engine_args": engine_args}}
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"models": {"m": entry}}))
    (spec,) = read_spec(file)
    read = json.loads(spec.parameters["engine_args"])
    assert read == engine_args
    assert type(read["block_size"]) is int


def test_sampling_is_all_passed_on_and_ends_are_ours() -> None:
    sampling = Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.4,
        logit_bias=((5, 1.0),),
        seed=7,
        stop=("x",),
        stop_token_ids=frozenset({5}),
    )
    arguments = sampling_arguments(work(sampling), frozenset({2}))
    assert arguments == {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {5: 1.0},
        "seed": 7,
        "stop_token_ids": [2, 5],
        "ignore_eos": True,
        "detokenize": False,
    }
    goes_on = sampling_arguments(work(Sampling(ignore_eos=True)), frozenset({2}))
    assert goes_on["stop_token_ids"] == []


def test_a_refusal_is_one_line() -> None:
    class ManyError(ValueError):
        def errors(self) -> list[dict[str, object]]:
            return [{"loc": ("block_size",), "msg": "Value error, it must be\n positive"}]

    assert refusal(ManyError("2 validation errors for A\nblock_size")) == (
        "block_size: it must be positive"
    )
    assert refusal(ValueError("heads\nmore")) == "ValueError: heads"
