"""Attention over pages of keys and values, by torch's own kernels.

Two ways, registered with transformers under one name. `varlen_attn` (torch's flash attention) reads
the pool where it lies, and of each row only its own tokens: on CUDA, in half precision, for masks
that flash attention knows. It cannot follow a table of pages (its FA3 could, which is a package of
its own; cuDNN could, and plans anew for each length of a prompt), so a row's pages lie together.
The other way gathers the pages and masks them: any device, any mask that a model makes for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from triton_hf.paged_cache import PagedStep, current_step

NAME = "triton_hf_pages"
_HALF = (torch.bfloat16, torch.float16)
_WIDEST_HEAD = 256  # of flash attention


def register() -> None:
    """Make the implementation known to transformers by its name."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)


def fused_refusal(model: Any, *, widest: int) -> str | None:
    """Why the kernel that reads the pool itself cannot serve this model; None when it can.

    Args:
        model: A model of transformers.
        widest: Width of its widest head of keys or values.
    """
    config = model.config.get_text_config()
    if next(model.parameters()).device.type != "cuda":
        return "it needs CUDA"
    if model.dtype not in _HALF:
        return f"it computes in half precision, not in {str(model.dtype).removeprefix('torch.')}"
    if not getattr(model, "_supports_flash_attn", False):
        return "the model does not support flash attention"
    kinds = set(getattr(config, "layer_types", None) or ())
    if strange := sorted(kinds - {"full_attention", "sliding_attention"}):
        return f"the model has layers of the kind {', '.join(strange)}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "the model caps its attention scores"
    if widest > _WIDEST_HEAD or widest % 8:
        return f"heads are {widest} wide"
    return None


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    **_: Any,
) -> torch.Tensor | None:
    """The model's own pattern at the rows' own positions, [rows, 1, tokens, width]."""
    step = current_step()
    if step.fused:
        return None  # the kernel knows lengths and windows
    device = step.positions.device
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    heads = torch.zeros((1, 1, 1, 1), dtype=torch.long, device=device)
    columns = torch.arange(kv_length, device=device)[None, None, None, :]
    pattern = mask_function(rows, heads, step.positions[:, None, :, None], columns)
    return pattern.expand(batch_size, 1, q_length, kv_length)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """Attend over the pages of the running step.

    Args:
        module: The attention layer.
        query: [rows, heads, tokens, width].
        key: The pool, [pages, tokens of a page, heads, width].
        value: As `key`.
        attention_mask: What `_mask` returned.
        scaling: Of the scores; None is 1 / sqrt(width).
        sliding_window: Tokens that each token sees, itself among them.
        softcap: Limit of the scores, by tanh.
        extra: What else a model says.

    Raises:
        NotImplementedError: The model wants attention of another kind.
    """
    if extra.get("s_aux") is not None:
        raise NotImplementedError("attention with sinks")
    step = current_step()
    if step.fused:
        if softcap is not None or extra.get("position_bias") is not None:
            raise NotImplementedError("attention with a cap or a bias")
        return _attend_fused(step, query, key, value, scaling, sliding_window), None
    keys, values = (_gather(step, pool) for pool in (key, value))
    if softcap is not None:
        return _attend_capped(query, keys, values, attention_mask, scaling, softcap), None
    output, _ = sdpa_attention_forward(
        module,
        query,
        keys,
        values,
        attention_mask,
        scaling=scaling,
        position_bias=extra.get("position_bias"),
    )
    return output, None


def _attend_fused(
    step: PagedStep,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    rows, heads, tokens, _ = query.shape
    packed = query.transpose(1, 2).flatten(0, 1)
    output: Any = varlen.varlen_attn(
        packed,
        key.flatten(0, 1),
        value.flatten(0, 1),
        step.offsets,
        step.first,
        tokens,
        step.width,
        scale=scaling,
        # The window of transformers counts the token itself, that of the kernel does not.
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=heads != key.shape[2],
        seqused_k=step.lengths,
    )
    result: torch.Tensor = output.view(rows, tokens, heads, -1)
    return result


def _gather(step: PagedStep, pool: torch.Tensor) -> torch.Tensor:
    """The pages of each row, one after another: [rows, heads, width of the tables, width]."""
    rows, pages = step.tables.shape
    found = pool.index_select(0, step.tables.flatten())
    return found.view(rows, pages * pool.shape[1], *pool.shape[2:]).transpose(1, 2)


def _attend_capped(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    groups = query.shape[1] // keys.shape[1]
    keys, values = repeat_kv(keys, groups), repeat_kv(values, groups)
    scores = query @ keys.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attended: torch.Tensor = weights @ values
    return attended.transpose(1, 2).contiguous()
