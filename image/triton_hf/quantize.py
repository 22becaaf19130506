"""Weights in eight or four bits, by torchao."""

from __future__ import annotations

from typing import Any

import torch

from triton_hf.errors import SettingsError
from triton_hf.memory import quantised_layers

# First compute capability with matrix products in fp8.
_FP8_CAPABILITY = (8, 9)
_GROUP = 128


def quantise(model: Any, *, weights: str, device: torch.device) -> None:
    """Bring a model to its device layer by layer, with the weights of its linear layers smaller.

    The last layer stays as it is stored. At no time is more on the device than what stays there
    and one layer.

    Args:
        model: A model of transformers, in bfloat16 for int4 and fp8.
        weights: `int8`, `int4` or `fp8`.
        device: Where the model is computed.

    Raises:
        SettingsError: torchao is missing, or this GPU or model cannot use such weights.
    """
    try:
        from torchao import quantization
    except ImportError as error:
        raise SettingsError(
            f"parameter 'weights' is {weights}, which needs the package torchao ({error})"
        ) from None
    _check(model, weights=weights, device=device)
    wanted = set(quantised_layers(model))
    quantization.quantize_(
        model,
        _config(quantization, weights),
        filter_fn=lambda _, name: name in wanted,
        device=device,
    )


def _check(model: Any, *, weights: str, device: torch.device) -> None:
    if weights in ("int4", "fp8") and model.dtype != torch.bfloat16:
        raise SettingsError(f"parameter 'weights' {weights} needs 'dtype' bfloat16")
    if weights == "fp8" and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FP8_CAPABILITY:
            raise SettingsError(
                f"parameter 'weights' fp8 needs a GPU of compute capability 8.9 or more, this one "
                f"has {capability[0]}.{capability[1]}; int8 and int4 work here"
            )


def _config(quantization: Any, weights: str) -> Any:
    if weights == "int8":
        return quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    if weights == "int4":
        # The layout of torch's own kernel; the others need packages of their own.
        return quantization.Int4WeightOnlyConfig(
            group_size=_GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    return quantization.Float8DynamicActivationFloat8WeightConfig(
        granularity=quantization.PerRow(), set_inductor_config=False
    )
