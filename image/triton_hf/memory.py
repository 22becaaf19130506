"""What fits into a GPU: weights, then keys and values; and one sentence for what does not."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from triton_hf.errors import SettingsError

# Left for the products of a step, recorded steps and what CUDA itself takes.
_HEADROOM_PART = 0.06
_HEADROOM_LEAST = 1_000_000_000
# Bytes of a weight; groups and scales included.
WEIGHT_BYTES = {"int8": 1.01, "fp8": 1.01, "int4": 0.54}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes of a device."""

    free: int
    total: int

    @property
    def usable(self) -> int:
        """What may be filled with weights, keys and values."""
        return max(self.free - max(int(self.total * _HEADROOM_PART), _HEADROOM_LEAST), 0)


def device_memory(device: torch.device) -> DeviceMemory | None:
    """Memory of a GPU; None for what has the host's."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(free=free, total=total)


def weight_bytes(model: Any, *, weights: str) -> int:
    """Bytes that a model's parameters and buffers need in this format.

    Args:
        model: A model of transformers.
        weights: See `ModelSettings`.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(model))
    if weights in WEIGHT_BYTES:
        for module in quantised_layers(model).values():
            weight = module.weight
            size += int(weight.numel() * (WEIGHT_BYTES[weights] - weight.element_size()))
    return size


def quantised_layers(model: Any) -> dict[str, Any]:
    """The linear layers whose weights other formats are for: all but the last, by name."""
    last = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is torch.nn.Linear and module is not last
    }


def check_weights(memory: DeviceMemory | None, *, needed: int, weights: str) -> None:
    """Refuse weights that do not fit.

    Raises:
        SettingsError: They do not; says how much is needed and how much is there.
    """
    if memory is None or needed <= memory.usable:
        return
    smaller = "set 'weights' to int4" if weights in ("int8", "fp8") else "set 'weights' to int8"
    cure = "take a larger GPU" if weights == "int4" else f"{smaller} or take a larger GPU"
    raise SettingsError(
        f"the weights need {_gb(needed)} GB of GPU memory, but of {_gb(memory.total)} GB only "
        f"{_gb(memory.usable)} GB can be used; {cure}"
    )


def plan_pages(
    *, device: torch.device, token_bytes: int, slots: int, positions: int, page_tokens: int
) -> int:
    """Return how many pages of keys and values to make beside the weights that are there.

    Raises:
        SettingsError: One sequence of this length does not fit.
    """
    memory = device_memory(device)
    return pages_that_fit(
        memory,
        token_bytes=token_bytes,
        slots=slots,
        positions=positions,
        page_tokens=page_tokens,
    )


def pages_that_fit(
    memory: DeviceMemory | None, *, token_bytes: int, slots: int, positions: int, page_tokens: int
) -> int:
    """Pages for all slots, or as many as there is memory for.

    Args:
        memory: Of the device; None is enough for all slots.
        token_bytes: Bytes of one token's keys and values in all layers.
        slots: Most sequences.
        positions: Longest sequence in tokens.
        page_tokens: Tokens of a page.

    Raises:
        SettingsError: One sequence of this length does not fit.
    """
    per_sequence = -(-positions // page_tokens)
    wanted = slots * per_sequence
    if memory is None:
        return wanted
    fit = memory.usable // (token_bytes * page_tokens) - 1  # one is the scratch page
    if fit < per_sequence:
        tokens = max(fit, 0) * page_tokens
        raise SettingsError(
            f"a request of {positions} tokens ('max_total_tokens') needs "
            f"{_gb(positions * token_bytes)} GB of GPU memory for keys and values, but beside the "
            f"weights only {_gb(memory.usable)} GB can be used; lower it to at most {tokens}, set "
            f"'weights' to int8 or int4, or take a larger GPU"
        )
    return min(fit, wanted)


@contextlib.contextmanager
def no_room(what: str) -> Iterator[None]:
    """Turn a device that is full into one sentence.

    Raises:
        SettingsError: The device is full.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise SettingsError(
            f"the GPU has no memory left for {what}; lower 'max_total_tokens' or 'slots', set "
            f"'weights' to int8 or int4, or take a larger GPU"
        ) from None


def _tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"
