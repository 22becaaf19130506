"""Packed weights compute what plain ones do."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from triton_hf.compute.packed_linear import Int8Linear, PackedLinear, _works, pack_linears

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
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (200,), (1, 77), (2, 9)])
def test_a_layer_in_int8_is_as_near_as_whole_numbers_up_to_127_are(dtype, bias, shape) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 130, bias=bias, dtype=dtype)
    inputs = torch.randn(*shape, 96).to(dtype)
    with torch.inference_mode():
        small = Int8Linear(plain)
        exact = torch.nn.functional.linear(
            inputs.float(), plain.weight.float(), plain.bias.float() if bias else None
        )
        found = small(inputs)
        assert found.dtype == dtype
        step = plain.weight.float().abs().amax(dim=1) / 127
        used = small._values.float() * small._scales.float()[:, None]
        assert ((used - plain.weight.float()).abs() <= 0.6 * step[:, None]).all()
        assert (found.float() - exact).norm() < 0.02 * exact.norm()


def test_a_model_in_int8_has_no_plain_linear_layer_left() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 16))
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    inputs = torch.randn(4, 32)
    with torch.inference_mode():
        expected = model(inputs)
        assert pack_linears(model, int8=True) == 2
        assert (model(inputs) - expected).norm() < 0.02 * expected.norm()
    kept = [layer._values for layer in model] + [layer._scales for layer in model]
    assert sum(one.numel() * one.element_size() for one in kept) < size / 3


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
