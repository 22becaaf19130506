"""The native step beside torch, on tiny random models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from triton_native.library import UnavailableError, load_library
from triton_native.runner import NativeRunner

from triton_hf.embedded import cache_root

VOCABULARY = 321
POSITIONS = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 144,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied, a key head for each query head": lambda: transformers.LlamaConfig(
        **SIZES | {"tie_word_embeddings": True, "head_dim": 32, "num_key_value_heads": 6}
    ),
    "llama, 13 query heads for each key head": lambda: transformers.LlamaConfig(
        **SIZES | {"num_attention_heads": 26, "hidden_size": 416}
    ),
    "mistral, sliding window": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "qwen2, biases": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3, norms of queries and keys": lambda: transformers.Qwen3Config(**SIZES),
}


@pytest.fixture(scope="module", autouse=True)
def library() -> Any:
    try:
        return load_library(cache=cache_root())
    except UnavailableError as error:
        pytest.skip(f"no native step: {error}")


def make_model(kind: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = MODELS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    return transformers.AutoModelForCausalLM.from_config(config).bfloat16().train(False)


def make_runner(model: Any, *, slots: int = 4, threads: int = 2) -> NativeRunner:
    """The model itself stays whole."""
    return NativeRunner(
        copy.deepcopy(model), slots=slots, positions=POSITIONS, threads=threads, cache=cache_root()
    )


def prompt(length: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
    return made


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.float() - two.float()).norm() / two.float().norm())


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_as_near_to_exact_ones_as_those_of_torch_in_bf16(kind) -> None:
    model = make_model(kind)
    runner = make_runner(model)
    ids = prompt(70)
    with torch.inference_mode():
        plain = model(torch.tensor([ids])).logits[0, -1]
        exact = copy.deepcopy(model).float()(torch.tensor([ids])).logits[0, -1]
    found = runner.extend(runner.begin(), ids)[0]
    assert distance(found, exact) < 1.5 * distance(plain, exact) + 0.002
