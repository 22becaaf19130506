"""Runs a model of transformers for a batch that changes between steps; the reference in torch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from triton_hf.errors import SettingsError
from triton_hf.kv_slots import SlotCache
from triton_hf.prefixes import Kept

# Part of all tokens that rows can have that is kept for later prompts, on top of theirs.
_KEPT_PART = 8


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
    """Prefills sequences one by one and steps all that have joined the batch.

    Rows are numbered 0, 1, ... in the order of joining; when one leaves, the last takes its
    number. All calls belong into one thread and `torch.inference_mode`.
    """

    def __init__(self, model: Any, *, slots: int, positions: int) -> None:
        """Use a model in evaluation mode for at most this many rows, each so long at most."""
        self._model = model
        self._slots = slots
        self._most_kept = slots * positions // _KEPT_PART
        self.device = next(model.parameters()).device
        known = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.clear()

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return self._cache.rows

    def begin(self) -> TorchSequence:
        """Return an empty sequence."""
        return TorchSequence()

    def resume(self, prompt: Sequence[int], positions: int) -> tuple[TorchSequence, int]:
        """Return a sequence with the start of a prompt as far as it is known, and its tokens.

        At least the last token of the prompt is left to be read. It grows as it must, so the
        positions mean nothing here.
        """
        sequence = self.begin()
        like, count = self._kept.nearest(prompt)
        if like is not None:
            sequence.take_over(like, count)
        return sequence, count

    def extend(self, sequence: TorchSequence, tokens: Sequence[int]) -> torch.Tensor:
        """Add tokens to a sequence that has not joined; return the last one's logits, [1, V]."""
        seen = sequence.get_seq_length()
        ids = torch.tensor([tokens], dtype=torch.long, device=self.device)
        mask = torch.ones((1, seen + len(tokens)), dtype=torch.bool, device=self.device)
        positions = torch.arange(seen, seen + len(tokens), device=self.device).unsqueeze(0)
        logits = self._forward(ids, mask, positions, sequence)
        sequence.tokens += tokens
        return logits

    def join(self, sequence: TorchSequence) -> None:
        """Make a sequence the last row of the batch, which copies it; the sequence is kept."""
        self._cache.join(sequence)
        self._kept.add(sequence)
        while self.kept_tokens > self._most_kept:
            self._kept.forget_oldest()

    @property
    def kept_tokens(self) -> int:
        """Tokens that are kept for later prompts."""
        return self._kept.tokens

    def leave(self, row: int) -> None:
        """Take a row out of the batch; the last row takes its number."""
        self._cache.leave(row)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; return the logits after it, [rows, V]."""
        cache = self._cache
        cache.reserve()
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device).unsqueeze(1)
        logits = self._forward(ids, cache.attention_mask(), cache.position_ids(), cache)
        cache.advance()
        return logits

    def clear(self) -> None:
        """Forget all rows and their memory, and what is kept."""
        self._kept: Kept[TorchSequence] = Kept()
        self._cache = SlotCache(max_rows=self._slots, device=self.device)

    def forget(self) -> None:
        """Let no later prompt take over what was read of earlier ones."""
        self._kept.clear()

    def check(self) -> None:
        """Run each kind of step once, which also warms up the kernels.

        Raises:
            SettingsError: The model keeps more than keys and values, which rows cannot share.
            ArithmeticError: Its logits are no numbers.
        """
        sequence = self.begin()
        try:
            first = self.extend(sequence, [0])
        except Exception as error:
            raise self._refusal(f"{type(error).__name__}: {error}") from error
        kinds = {type(layer) for layer in sequence.layers}
        if kinds != {DynamicLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "none"
            raise self._refusal(f"its cache has layers of the kind {names}")
        self.join(sequence)
        second = self.step([0])
        self.clear()
        if not torch.stack([first.amax(), second.amax()]).isfinite().all():
            raise ArithmeticError("the logits of the model are no numbers")

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
            f"models of the type '{kind}' cannot be served: the engine needs a decoder whose "
            f"state is keys and values ({why})"
        )
