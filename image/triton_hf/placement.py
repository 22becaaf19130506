"""Brings a model that was loaded to the device that computes it."""

from __future__ import annotations

from typing import Any

import torch

from triton_hf import memory


def place_model(model: Any, *, weights: str, device: torch.device) -> None:
    """Move a model from the host to its device, in the format that was asked for.

    In the dtype that is stored, what was loaded are views of the mapped files: a layer is read from
    there when it is moved, and the weights never lie in the host's own memory as a whole.

    Raises:
        SettingsError: The weights do not fit into the GPU, or it cannot use this format.
    """
    if device.type != "cuda":
        return
    needed = memory.weight_bytes(model, weights=weights)
    memory.check_weights(memory.device_memory(device), needed=needed, weights=weights)
    with memory.no_room("the weights"):
        if weights != "auto":
            from triton_hf.quantize import quantise

            quantise(model, weights=weights, device=device)
        model.to(device)
