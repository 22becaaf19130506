"""Runs a model of transformers for a batch that changes between steps; the reference in torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from triton_hf.compute.prefix_cache import PrefixCache
from triton_hf.compute.slot_cache import SlotCache
from triton_hf.errors import SettingsError
from triton_hf.runtime import log_fault

# The prefix cache holds at most 1/8 of the tokens that all rows together can have.
_CACHED_PART = 8


class TorchSequence(DynamicCache):
    """The keys and values of one prompt, and its tokens.

    Made without the model's config, so that layers with a sliding window keep all tokens too: what
    joins the batch has the same length in every layer, and the mask does the rest.
    """

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.tokens: list[int] = []

    def take_over(self, other: TorchSequence, count: int) -> None:
        """Start with the first tokens of another sequence; only on an empty one."""
        layers: list[Any] = list(other.layers)
        for index, layer in enumerate(layers):
            if layer.is_initialized:
                self.update(layer.keys[:, :, :count], layer.values[:, :, :count], index)
        self.tokens = other.tokens[:count]


class TorchRunner:
    """The reference `Runner`: any decoder of transformers, prefilled one sequence at a time.

    It has no plan for a GPU's memory, so production on GPUs belongs to another engine.
    """

    cpu_levels = None
    mixing = None
    highest = None

    def __init__(self, model: Any, *, slots: int, positions: int) -> None:
        """Use a model in evaluation mode for at most this many rows, each so long at most."""
        self._model = model
        self._slots = slots
        self._most_cached = slots * positions // _CACHED_PART
        self.device = next(model.parameters()).device
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.clear()

    @property
    def rows(self) -> int:
        return self._cache.rows

    def resume(self, prompt: Sequence[int]) -> tuple[TorchSequence, int]:
        sequence = TorchSequence()
        like, count = self._prefixes.nearest(prompt)
        if like is not None:
            sequence.take_over(like, count)
        return sequence, count

    def extend(self, sequence: TorchSequence, tokens: Sequence[int]) -> torch.Tensor:
        seen = sequence.get_seq_length()
        ids = torch.tensor([tokens], dtype=torch.long, device=self.device)
        mask = torch.ones((1, seen + len(tokens)), dtype=torch.bool, device=self.device)
        positions = torch.arange(seen, seen + len(tokens), device=self.device).unsqueeze(0)
        logits = self._forward(ids, mask, positions, sequence)
        sequence.tokens += tokens
        return logits

    def join(self, sequence: TorchSequence) -> None:
        self._cache.join(sequence)  # copies it
        self._prefixes.add(sequence)
        while self.cached_prefix_tokens > self._most_cached:
            self._prefixes.evict()

    @property
    def cached_prefix_tokens(self) -> int:
        """Tokens in the prefix cache."""
        return self._prefixes.tokens

    def leave(self, row: int) -> None:
        self._cache.leave(row)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        cache = self._cache
        cache.reserve()
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device).unsqueeze(1)
        logits = self._forward(ids, cache.attention_mask(), cache.position_ids(), cache)
        cache.advance()
        return logits

    def clear(self) -> None:
        self._prefixes: PrefixCache[TorchSequence] = PrefixCache()
        self._cache = SlotCache(max_rows=self._slots, device=self.device)

    def forget(self) -> None:
        self._prefixes.clear()

    def check(self) -> None:
        sequence = TorchSequence()
        try:
            first = self.extend(sequence, [0])
        except Exception as error:
            log_fault(error)
            raise self._refusal("its first forward pass with one fails") from error
        kinds = {type(layer) for layer in sequence.layers}
        if kinds != {DynamicLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
            raise self._refusal(f"its cache has layers of the kind {names}")
        self.join(sequence)
        second = self.step([0])
        self.clear()
        if not torch.stack([first.amax(), second.amax()]).isfinite().all():
            raise ArithmeticError("the logits of the model are not finite")

    def _forward(self, ids: Any, mask: Any, positions: Any, cache: Any) -> torch.Tensor:
        extra = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **extra,
            **self._last_only,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _refusal(self, why: str) -> SettingsError:
        kind = getattr(self._model.config, "model_type", type(self._model).__name__)
        return SettingsError(
            f"models of the type '{kind}' cannot be served: the engine needs a decoder whose whole "
            f"state is a KV cache, and {why}"
        )
