"""Chooses the next token of every row of a batch at once, each by its own parameters.

What a row gets depends on its logits, its parameters and its seed alone, never on the rows beside
it: there is one random number per row and token, drawn from the row's own generator, and limits
are compared by value, so no order of sorting matters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from triton_hf.requests import Sampling

# Tokens that are looked at, in turn, before all are sorted for top_p; 64 are nearly always enough.
_CANDIDATES = (64, 1024)
# Tokens whose weights are summed before the one among them is looked for.
_BLOCK = 256
_LOWEST_TEMPERATURE = 1e-5


class SamplingRow:
    """The parameters and the state of one row."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        """Start with this prompt; without a seed the row gets one from the system."""
        self.sampling = sampling
        self.random = random.Random(sampling.seed)  # noqa: S311 - not a secret
        self._prompt = prompt
        self._seen: torch.Tensor | None = None

    def push(self, token: int) -> None:
        """The row got this token."""
        if self._seen is not None:
            self._seen[token] = True

    def seen(self, like: torch.Tensor) -> torch.Tensor:
        """Which tokens of the vocabulary occur in the row so far; for `like` see its size."""
        if self._seen is None:
            self._seen = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
            self._seen[torch.tensor(self._prompt, dtype=torch.long, device=like.device)] = True
        return self._seen


def choose(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int | None]:
    """Return the next token of each row; None where the logits are not numbers.

    Args:
        logits: Shape [rows, vocabulary]; may be changed.
        rows: One for each row of the logits.
    """
    logits = _penalise(logits.float(), rows)
    best = logits.argmax(dim=-1)
    finite = logits.gather(1, best.unsqueeze(1)).squeeze(1).isfinite().tolist()
    tokens: list[int] = best.tolist()
    warm = [
        index for index, row in enumerate(rows) if row.sampling.temperature > 0 and finite[index]
    ]
    if warm:
        drawn = _draw(logits[warm], [rows[index] for index in warm])
        for index, token in zip(warm, drawn, strict=True):
            tokens[index] = token
    for index, row in enumerate(rows):
        if finite[index]:
            row.push(tokens[index])
    return [token if good else None for token, good in zip(tokens, finite, strict=True)]


def _penalise(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Make what a row has had less likely (or more), as transformers does."""
    indices = [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1.0]
    if not indices:
        return logits
    part = logits[indices]
    seen = torch.stack([rows[index].seen(logits) for index in indices])
    penalty = _column([rows[index].sampling.repetition_penalty for index in indices], logits)
    logits[indices] = torch.where(seen, torch.where(part < 0, part * penalty, part / penalty), part)
    return logits


def _draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Draw from softmax(logits / temperature) within each row's top_k and top_p."""
    temperature = [max(row.sampling.temperature, _LOWEST_TEMPERATURE) for row in rows]
    # Less the largest, so that nothing overflows at a low temperature.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / _column(temperature, logits)
    logits = _top_k(logits, [row.sampling.top_k for row in rows])
    weights = _top_p(torch.softmax(logits, dim=-1), [row.sampling.top_p for row in rows])
    return _pick(weights, [row.random.random() for row in rows])


def _pick(weights: torch.Tensor, numbers: Sequence[float]) -> list[int]:
    """Return, for each row, the token at this share (0 to 1) of the sum of its weights."""
    if padding := -weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, padding))
    blocks = weights.view(len(numbers), -1, _BLOCK)
    sums = blocks.sum(dim=-1, dtype=torch.float64)
    heights = sums.cumsum(dim=-1)
    point = _column(numbers, heights) * heights[:, -1:]
    block = _reached(heights, point)
    below = heights.gather(1, block) - sums.gather(1, block)
    inner = blocks[torch.arange(len(numbers), device=weights.device), block.squeeze(1)]
    token = block * _BLOCK + _reached(inner.cumsum(dim=-1, dtype=torch.float64), point - below)
    picked: list[int] = token.squeeze(1).tolist()
    return picked


def _reached(heights: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Index of the first height above the point, [rows, 1]; always one that adds something."""
    total = heights[:, -1:]
    # From 0 to below the total, also when the point was rounded.
    point = torch.minimum(point.clamp(min=0.0), torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(heights, point, right=True)


def _top_k(logits: torch.Tensor, limits: Sequence[int]) -> torch.Tensor:
    size = logits.shape[-1]
    limits = [limit if 0 < limit < size else 0 for limit in limits]
    if not any(limits):
        return logits
    best = logits.topk(max(limits), dim=-1).values
    rank = torch.tensor([max(limit - 1, 0) for limit in limits], device=logits.device)
    lowest = best.gather(1, rank.unsqueeze(1))
    free = torch.tensor([limit == 0 for limit in limits], device=logits.device).unsqueeze(1)
    lowest = lowest.masked_fill(free, float("-inf"))
    return logits.masked_fill(logits < lowest, float("-inf"))


def _top_p(weights: torch.Tensor, limits: Sequence[float]) -> torch.Tensor:
    if all(limit >= 1.0 for limit in limits):
        return weights
    limit = _column(list(limits), weights)
    free = limit >= 1.0
    for count in (*_CANDIDATES, weights.shape[-1]):
        best = weights.topk(min(count, weights.shape[-1]), dim=-1).values
        heights = best.cumsum(dim=-1, dtype=torch.float64)
        if bool(((heights[:, -1:] >= limit) | free).all()):
            break
    # A token stays when those before it do not reach the limit, so the first always stays.
    kept = ((heights - best) < limit).sum(dim=-1, keepdim=True)
    lowest = best.gather(1, (kept - 1).clamp(min=0))
    return weights.masked_fill(weights < lowest.masked_fill(free, 0.0), 0.0)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
