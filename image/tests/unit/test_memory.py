"""What fits into a GPU, and the sentence for what does not; no GPU is needed."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
import transformers

from triton_hf import memory
from triton_hf.errors import SettingsError
from triton_hf.memory import DeviceMemory, check_weights, no_room, pages_that_fit, weight_bytes
from triton_hf.placement import place_model
from triton_hf.quantize import quantise
from triton_hf.runners import stored_runner
from triton_hf.settings import ModelSettings
from triton_hf.transformers_engine import load_model

GB = 1_000_000_000
LLAMA_TOKEN = 2 * 32 * 8 * 128 * 2  # Llama-3-8B in bf16: keys and values, layers, heads, width
CUDA = torch.device("cuda")


def tiny(*, tied: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    return transformers.AutoModelForCausalLM.from_config(config).bfloat16().train(False)


def card(free: float, total: float = 80) -> DeviceMemory:
    return DeviceMemory(free=int(free * GB), total=int(total * GB))


def fit(memory: DeviceMemory | None, **values: int) -> int:
    wanted = {"token_bytes": LLAMA_TOKEN, "slots": 32, "positions": 8192, "page_tokens": 256}
    return pages_that_fit(memory, **{**wanted, **values})


def test_every_slot_has_its_pages_where_there_is_memory_and_no_more() -> None:
    assert fit(card(64)) == 32 * 32
    assert fit(None) == 32 * 32
    assert fit(card(64), slots=3, positions=300) == 3 * 2


def test_a_small_gpu_gets_the_pages_that_fit_beside_weights_and_headroom() -> None:
    pages = fit(card(8, total=24))
    used = (pages + 1) * 256 * LLAMA_TOKEN
    assert 32 <= pages < 32 * 32
    assert used <= 8 * GB - 0.06 * 24 * GB < used + 256 * LLAMA_TOKEN


def test_a_gpu_without_room_for_one_request_is_refused_with_both_numbers_and_what_to_do() -> None:
    with pytest.raises(SettingsError) as caught:
        fit(card(2, total=24))
    words = str(caught.value)
    assert "a request of 8192 tokens ('max_total_tokens') needs 1.1 GB" in words
    assert "only 0.6 GB can be used; lower it to at most 3840" in words
    assert fit(card(2, total=24), positions=3840) == 15
    assert "'weights' to int8 or int4" in words


def test_weights_that_do_not_fit_are_refused_with_both_numbers_and_what_to_do() -> None:
    check_weights(card(24, total=24), needed=16 * GB, weights="auto")
    check_weights(None, needed=16 * GB, weights="auto")
    with pytest.raises(SettingsError) as caught:
        check_weights(card(15.5, total=16), needed=16 * GB, weights="auto")
    words = "the weights need 16.0 GB of GPU memory, but of 16.0 GB only 14.5 GB can be used; "
    assert str(caught.value) == f"{words}set 'weights' to int8 or take a larger GPU"
    with pytest.raises(SettingsError, match="set 'weights' to int4 or take"):
        check_weights(card(15.5, total=16), needed=16 * GB, weights="fp8")
    with pytest.raises(SettingsError, match="can be used; take a larger GPU"):
        check_weights(card(15.5, total=16), needed=16 * GB, weights="int4")


def test_bytes_of_the_weights_are_those_of_all_but_the_last_layer_in_the_format() -> None:
    model = tiny()
    all_bytes = sum(p.numel() * 2 for p in model.parameters()) + sum(
        b.numel() * b.element_size() for b in model.buffers()
    )
    inner = sum(
        m.weight.numel()
        for name, m in model.named_modules()
        if type(m) is torch.nn.Linear and name != "lm_head"
    )
    assert weight_bytes(model, weights="auto") == all_bytes
    assert weight_bytes(model, weights="int8") == pytest.approx(all_bytes - 0.99 * inner, rel=0.001)
    assert weight_bytes(model, weights="int4") == pytest.approx(all_bytes - 1.46 * inner, rel=0.002)
    assert "lm_head" not in memory.quantised_layers(tiny(tied=True))


def test_a_device_that_is_full_is_one_sentence() -> None:
    with pytest.raises(SettingsError) as caught, no_room("the weights"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand so on")
    assert str(caught.value).startswith("the GPU has no memory left for the weights; lower ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_does_not_fit_is_refused_before_anything_is_moved(monkeypatch) -> None:
    model = tiny()
    monkeypatch.setattr(memory, "device_memory", lambda device: DeviceMemory(free=1, total=1))
    with pytest.raises(SettingsError, match="the weights need"):
        place_model(model, weights="auto", device=CUDA)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


def test_formats_for_gpus_are_refused_where_auto_finds_none(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = ModelSettings(repo_id="org/m", weights="fp8")
    assert stored_runner(tmp_path, tiny().config, settings) is None
    with pytest.raises(SettingsError, match="'weights' fp8 needs an NVIDIA GPU"):
        load_model(tmp_path, settings)


def test_without_torchao_its_formats_are_refused_by_name(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(SettingsError, match="'weights' is int4, which needs the package torchao"):
        quantise(tiny(), weights="int4", device=CUDA)


def test_formats_that_this_gpu_or_model_cannot_compute_with_are_refused(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(quantization=None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(SettingsError, match=r"capability 8\.9 or more, this one has 8\.0"):
        quantise(tiny(), weights="fp8", device=CUDA)
    with pytest.raises(SettingsError, match="int4 needs 'dtype' bfloat16"):
        quantise(tiny().half(), weights="int4", device=CUDA)


def test_eight_bits_by_torchao_change_answers_little_and_leave_the_last_layer() -> None:
    pytest.importorskip("torchao", reason="torchao is only in the image")
    model, other = tiny(), tiny()
    other.load_state_dict(model.state_dict())
    quantise(other, weights="int8", device=torch.device("cpu"))
    ids = torch.arange(20).unsqueeze(0)
    with torch.inference_mode():
        exact, found = model(ids).logits.float(), other(ids).logits.float()
    assert 0 < float((exact - found).norm() / exact.norm()) < 0.05
    assert type(other.lm_head.weight) is torch.nn.Parameter
