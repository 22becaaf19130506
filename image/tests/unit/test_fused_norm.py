"""Norms as torch's one kernel: the same numbers, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from triton_hf.fused_norm import FusedNorms

SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
COUNTS = {
    transformers.LlamaConfig: 2 * 2 + 1,
    transformers.Qwen3Config: 2 * 4 + 1,  # queries and keys too
    transformers.GemmaConfig: 2 * 2 + 1,
    transformers.Gemma3TextConfig: 2 * 6 + 1,
    transformers.PhiConfig: 0,  # its norms are of another kind
}


def make_model(config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    sizes = dict(SIZES)
    if config is transformers.PhiConfig:
        sizes.pop("head_dim")
    model = transformers.AutoModelForCausalLM.from_config(config(**sizes)).to(dtype).train(False)
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", COUNTS, ids=lambda config: config.model_type)
@torch.inference_mode()
def test_logits_stay_what_they_were_and_can_be_had_back_exactly(config, dtype) -> None:
    model = make_model(config, dtype)
    ids = torch.arange(2, 30).unsqueeze(0)
    before = model(ids).logits.float()
    names = [name for name, _ in model.named_parameters()]
    norms = FusedNorms(model)
    assert len(norms) == COUNTS[config]
    after = model(ids).logits.float()
    limit = 1e-4 if dtype == torch.float32 else 0.03
    assert float((after - before).norm() / before.norm()) < limit
    norms.undo()
    assert torch.equal(model(ids).logits.float(), before)
    assert [name for name, _ in model.named_parameters()] == names


def test_a_norm_that_computes_something_else_is_left_alone() -> None:
    class TripledRMSNorm(torch.nn.RMSNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(x)

    model = torch.nn.Sequential(TripledRMSNorm(8, eps=1e-6), torch.nn.RMSNorm(8, eps=1e-6))
    assert len(FusedNorms(model)) == 1
    assert type(model[0]) is TripledRMSNorm
