"""What only an NVIDIA GPU can show: recorded graphs, flash attention, smaller weights."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from triton_hf import memory, paged_attention
from triton_hf.cuda_runner import CudaRunner, make_cuda_runner
from triton_hf.errors import SettingsError
from triton_hf.graphs import eager
from triton_hf.model_files import load_tokenizer
from triton_hf.placement import place_model
from triton_hf.requests import Sampling
from triton_hf.sampler import SamplingRow, choose, choose_ahead
from triton_hf.settings import ModelSettings
from triton_hf.transformers_engine import load_model

sys.path.insert(0, str(Path(__file__).parents[3] / "k8s-tests"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here"),
]
SIZES = {
    "vocab_size": 320,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
LLAMA = transformers.LlamaConfig(**SIZES)
MISTRAL = transformers.MistralConfig(**SIZES, sliding_window=300)
GEMMA = transformers.Gemma3TextConfig(
    **SIZES, head_dim=64, sliding_window=300, query_pre_attn_scalar=64
)
# The shape of Llama-3-8B, with less of everything that only takes memory.
LLAMA3 = transformers.LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=2,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_theta=500000.0,
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make_model(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    with torch.device("cuda"), torch.inference_mode(mode=False):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).train(False)


def ids(length: int, *, seed: int) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(2, 320) for _ in range(length)]


def answers(runner: CudaRunner, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """Greedy answers of one batch, chosen on the GPU, read one step late."""
    rows = [SamplingRow(Sampling(), ()) for _ in prompts]
    pending = []
    for prompt, row in zip(prompts, rows, strict=True):
        sequence = runner.begin()
        for start in range(0, len(prompt), 200):
            logits = runner.extend(sequence, prompt[start : start + 200])
        pending.append([runner.choose_first(sequence, logits, row)])
        runner.join(sequence)
    found: list[list[Any]] = [one[0].wait() for one in pending]
    steps = [runner.launch(rows) for _ in range(tokens - 1)]
    for step in steps:
        for answer, token in zip(found, step.wait(), strict=True):
            answer.append(token)
    runner.clear()
    return found


def generated(model: Any, prompt: list[int], tokens: int) -> list[int]:
    prompts = torch.tensor([prompt], device="cuda")
    made = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return made[0, len(prompt) :].tolist()


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, GEMMA], ids=lambda config: config.model_type)
def test_greedy_answers_from_graphs_are_those_of_generate_in_float32(config) -> None:
    prompts = [ids(length, seed=length) for length in (3, 40, 700)]
    expected = [generated(make_model(config, torch.float32), prompt, 30) for prompt in prompts]
    runner = CudaRunner(make_model(config, torch.float32), slots=3, positions=1024)
    runner.check()
    assert answers(runner, prompts, 30) == expected


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, GEMMA], ids=lambda config: config.model_type)
def test_a_prompt_that_starts_like_one_that_runs_says_what_generate_says_in_float32(config) -> None:
    prompts = [[*ids(600, seed=9), *ids(length, seed=length)] for length in (30, 3, 200)]
    expected = [generated(make_model(config, torch.float32), prompt, 20) for prompt in prompts]
    runner = CudaRunner(make_model(config, torch.float32), slots=3, positions=1024)
    runner.check()
    rows = [SamplingRow(Sampling(), ()) for _ in prompts]
    found: list[list[Any]] = []
    shared = []
    for number, prompt in enumerate(prompts, 1):
        resumed = runner.resume(prompt, 1000)
        assert resumed is not None
        sequence, known = resumed
        shared.append(known)
        logits = runner.extend(sequence, prompt[known:])
        found.append(runner.choose_first(sequence, logits, rows[number - 1]).wait())
        runner.join(sequence)
        for _ in range(3):  # the others go on while this one is copied from
            for answer, token in zip(found, runner.launch(rows[:number]).wait(), strict=True):
                answer.append(token)
    for _ in range(10):
        for answer, token in zip(found, runner.launch(rows).wait(), strict=True):
            answer.append(token)
    assert shared == [0, 600, 600]
    assert found == [whole[: len(answer)] for whole, answer in zip(expected, found, strict=True)]


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, GEMMA], ids=lambda config: config.model_type)
def test_flash_attention_over_the_pool_gives_the_logits_of_gathered_pages(
    monkeypatch, config
) -> None:
    prompt = ids(900, seed=1)
    fused = CudaRunner(make_model(config, torch.bfloat16), slots=2, positions=1024)
    monkeypatch.setattr(paged_attention, "fused_refusal", lambda model, widest: "of this test")
    gathered = CudaRunner(make_model(config, torch.bfloat16), slots=2, positions=1024)
    assert fused.attention == "flash attention"
    assert gathered.attention == "gathered pages because of this test"
    found = []
    for runner in (fused, gathered):
        runner.check()
        sequence = runner.begin()
        for start in range(0, 800, 200):
            runner.extend(sequence, prompt[start : start + 200])
        runner.join(sequence)
        found.append(torch.cat([runner.step([token]).clone() for token in prompt[800:]]))
    apart = (found[0] - found[1]).norm(dim=-1) / found[1].norm(dim=-1)
    assert float(apart.max()) < 0.05


def test_graphs_say_what_the_same_steps_say_without_them() -> None:
    prompts = [ids(length, seed=length) for length in (5, 300, 2)]
    found = []
    for recorder in (None, eager):
        runner = CudaRunner(
            make_model(LLAMA, torch.float32), slots=3, positions=1024, recorder=recorder
        )
        runner.check()
        found.append(answers(runner, prompts, 40))
    assert found[0] == found[1]


def test_a_step_with_the_shape_of_llama3_8b_is_recorded_and_agrees_with_its_own_code() -> None:
    model = make_model(LLAMA3, torch.bfloat16)
    runner = make_cuda_runner(model, slots=32, positions=8192, name="llama3")
    assert runner is not None
    assert runner.attention == "flash attention"
    assert runner.cache.pages == 32 * 32


def test_tokens_are_chosen_without_waiting_as_with_waiting() -> None:
    numbers = random.Random(3)
    sets = [
        {
            "temperature": numbers.choice([0.0, 0.3, 1.0, 2.0]),
            "top_p": numbers.choice([0.1, 0.9, 1.0]),
            "top_k": numbers.choice([0, 1, 7, 5000]),
            "repetition_penalty": numbers.choice([0.8, 1.0, 1.5]),
            "seed": seed,
        }
        for seed in range(60)
    ]
    scores = torch.randn((60, 128256), device="cuda", generator=torch.Generator("cuda")) * 3

    def rows() -> list[SamplingRow]:
        return [SamplingRow(Sampling(**values), (1, 2, 3)) for values in sets]

    expected = choose(scores.clone(), rows())
    scores, batch = scores.clone(), rows()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = choose_ahead(scores, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.tolist() == expected


@pytest.mark.parametrize("weights", ["int8", "int4", "fp8"])
def test_smaller_weights_change_the_logits_little_and_are_recorded(weights) -> None:
    pytest.importorskip("torchao", reason="torchao is only in the image")
    if weights == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs compute capability 8.9")
    exact = make_model(LLAMA, torch.bfloat16)
    with torch.inference_mode(mode=False):
        model = make_model(LLAMA, torch.bfloat16).to("cpu")
        place_model(model, weights=weights, device=torch.device("cuda"))
    prompt = torch.tensor([ids(200, seed=1)], device="cuda")
    a, b = (one(prompt).logits.float() for one in (exact, model))
    assert 0 < float((a - b).norm() / a.norm()) < 0.3
    assert make_cuda_runner(model, slots=4, positions=512, name=weights) is not None


def test_a_gpu_that_is_full_is_one_sentence() -> None:
    with (
        pytest.raises(SettingsError, match="no memory left for the weights"),
        memory.no_room("the weights"),
    ):
        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")


def test_smollm2_says_in_bfloat16_what_generate_says_but_for_near_ties() -> None:
    from support.models import ensure_smollm2

    settings = ModelSettings(repo_id="smollm2", device="cuda", dtype="bfloat16")
    with torch.inference_mode(mode=False):
        model = load_model(ensure_smollm2().folder, settings)
        other = load_model(ensure_smollm2().folder, settings)
    tokenizer = load_tokenizer(ensure_smollm2().folder)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in ("Why is the sky blue?", "Name three rivers.", "Count to ten.")
    ]
    runner = make_cuda_runner(model, slots=4, positions=2048, name="smollm2")
    assert runner is not None
    for prompt, answer in zip(prompts, answers(runner, prompts, 64), strict=True):
        whole = torch.tensor([[*prompt, *answer]], device="cuda")
        logits = other(whole).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer, device="cuda").unsqueeze(1)).squeeze(1)
        assert float((logits.amax(dim=-1) - chosen).max()) <= 0.25
