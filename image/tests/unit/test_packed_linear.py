"""Packed weights compute what plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from triton_hf.packed_linear import PackedLinear, _works, pack_linears

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def skip_without(dtype: torch.dtype) -> None:
    if not _works(dtype):
        pytest.skip(f"this CPU does not pack {dtype}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (16,), (200,), (1, 1), (5, 1), (1, 77), (2, 9)])
def test_a_packed_layer_gives_the_plain_result(dtype, bias, shape) -> None:
    skip_without(dtype)
    torch.manual_seed(0)
    plain = torch.nn.Linear(72, 130, bias=bias, dtype=dtype)
    inputs = torch.randn(*shape, 72).to(dtype)
    with torch.inference_mode():
        packed = PackedLinear(plain)
        close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        torch.testing.assert_close(packed(inputs), plain(inputs), **close)
        assert torch.equal(packed.weight, plain.weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_model_gives_the_plain_logits(dtype) -> None:
    skip_without(dtype)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    plain = transformers.AutoModelForCausalLM.from_config(config).to(dtype).train(False)
    packed = copy.deepcopy(plain)
    ids = torch.arange(20).view(2, 10)
    with torch.inference_mode():
        assert pack_linears(packed) == 2 * 7 + 1
        close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
        torch.testing.assert_close(packed(ids).logits, plain(ids).logits, **close)


def test_layers_that_only_look_linear_stay() -> None:
    class Other(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(Other(4, 4), torch.nn.Linear(4, 4, dtype=torch.float64))
    assert pack_linears(model) == 0
