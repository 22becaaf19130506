"""Chooses the next token of every row of a batch at once, each by its own parameters.

What a row gets depends on its logits, its parameters and its seed alone, never on the rows beside
it: there is one random number per row and token, drawn from the row's own generator, and limits
are compared by value, so no order of sorting matters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from triton_hf.compute.guides import Guide
from triton_hf.contract import Sampling

# Tokens that are looked at, in turn, before all are sorted for top_p; 64 are nearly always enough.
_CANDIDATES = (64, 1024)
# Tokens whose weights are summed before the one among them is looked for.
_BLOCK = 256
_LOWEST_TEMPERATURE = 1e-5


class SamplingRow:
    """The parameters and the state of one row."""

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], *, guide: Guide | None = None
    ) -> None:
        """Start with this prompt; without a seed the row gets one from the system."""
        self.guide = guide
        self.sampling = sampling
        self.random = random.Random(sampling.seed)  # noqa: S311 - not a secret
        self._prompt = prompt
        self._seen: torch.Tensor | None = None
        self._counts: torch.Tensor | None = None
        self.counted = bool(sampling.presence_penalty or sampling.frequency_penalty)

    @property
    def greedy(self) -> bool:
        """Whether it gets the token with the largest logit, whatever else they are."""
        changed = self.sampling.repetition_penalty != 1.0 or self.counted
        changed = changed or bool(self.sampling.logit_bias) or self.guide is not None
        return self.sampling.temperature <= 0 and not changed

    def push(self, tokens: torch.Tensor, index: int) -> None:
        """The row got the token at this index."""
        if self.guide is not None:
            self.guide.accept(int(tokens[index]))
        if self._seen is not None:
            self._seen.index_fill_(0, tokens[index : index + 1], True)
        if self._counts is not None:
            self._counts[tokens[index]] += 1

    def bias(self, logits: torch.Tensor) -> None:
        """Add the biases of the request to the row's logits."""
        ids = [token for token, _ in self.sampling.logit_bias]
        values = [value for _, value in self.sampling.logit_bias]
        at = torch.tensor(ids, dtype=torch.long, device=logits.device)
        logits.index_add_(0, at, torch.tensor(values, dtype=logits.dtype, device=logits.device))

    def count(self, logits: torch.Tensor) -> None:
        """Lower the row's logits of the tokens that its answer has."""
        if self._counts is None:
            self._counts = torch.zeros_like(logits)
        logits -= self.sampling.frequency_penalty * self._counts
        logits -= self.sampling.presence_penalty * (self._counts > 0)

    def seen(self, like: torch.Tensor) -> torch.Tensor:
        """Which tokens of the vocabulary occur in the row so far; for `like` see its size."""
        if self._seen is None:
            self._seen = torch.zeros(like.shape[-1], dtype=torch.bool, device=like.device)
            prompt = torch.tensor(self._prompt, dtype=torch.long, device=like.device)
            self._seen.index_fill_(0, prompt, True)
        return self._seen


def choose(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    *,
    at: Sequence[int] | None = None,
    highest: Sequence[int] | None = None,
) -> list[int | None]:
    """Return the next token of each row; None where the logits are not numbers.

    Args:
        logits: Shape [rows, vocabulary], or more rows; may be changed.
        rows: One for each row of the logits, or for those at `at`.
        at: Which of the logits the rows have; None for all.
        highest: The token with the largest of the logits, for each row of them, -1 where they are
            not numbers; None where it is not known yet.
    """
    at = range(len(rows)) if at is None else at
    tokens = [-1 if highest is None else highest[index] for index in at]
    drawn = [index for index, row in enumerate(rows) if highest is None or not row.greedy]
    if drawn:
        places = [at[index] for index in drawn]
        part = logits if places == list(range(len(logits))) else logits[places]
        found = _choose(part, [rows[index] for index in drawn]).tolist()
        for index, token in zip(drawn, found, strict=True):
            tokens[index] = token
    return [token if token >= 0 else None for token in tokens]


def _choose(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Sample the next token of each row; -1 where its logits are NaN or infinite.

    Args:
        logits: Shape [rows, vocabulary]; may be changed.
        rows: One for each row of the logits.
    """
    logits = _adjust(logits.float(), rows)
    tokens = logits.argmax(dim=-1)
    finite = logits.gather(1, tokens.unsqueeze(1)).squeeze(1).isfinite()
    good = finite.tolist()
    # NaN could be drawn from beyond the vocabulary.
    warm = [i for i, row in enumerate(rows) if row.sampling.temperature > 0 and good[i]]
    if warm:
        at = torch.tensor(warm, dtype=torch.long, device=logits.device)
        tokens[at] = _draw(logits[at], [rows[index] for index in warm])
    for index, row in enumerate(rows):
        row.push(tokens, index)
    return tokens.masked_fill(~finite, -1)


def _adjust(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Apply biases, then penalties, in the order of vLLM; rows without any stay as they are."""
    for index, row in enumerate(rows):
        if row.sampling.logit_bias:
            row.bias(logits[index])
    logits = _penalise(logits, rows)
    for index, row in enumerate(rows):
        if row.counted:
            row.count(logits[index])
        if row.guide is not None:
            row.guide.mask(logits[index])
    return logits


def _penalise(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Make what a row has had less likely (or more), as transformers does."""
    indices = [i for i, row in enumerate(rows) if row.sampling.repetition_penalty != 1.0]
    if not indices:
        return logits
    at = torch.tensor(indices, dtype=torch.long, device=logits.device)
    part = logits[at]
    seen = torch.stack([rows[index].seen(logits) for index in indices])
    penalty = _column([rows[index].sampling.repetition_penalty for index in indices], logits)
    logits[at] = torch.where(seen, torch.where(part < 0, part * penalty, part / penalty), part)
    return logits


def _draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Draw from softmax(logits / temperature) within each row's top_k and top_p."""
    temperature = [max(row.sampling.temperature, _LOWEST_TEMPERATURE) for row in rows]
    # Less the largest, so that nothing overflows at a low temperature.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / _column(temperature, logits)
    logits = _top_k(logits, [row.sampling.top_k for row in rows])
    weights = _min_p(torch.softmax(logits, dim=-1), [row.sampling.min_p for row in rows])
    weights = _top_p(weights, [row.sampling.top_p for row in rows])
    return _pick(weights, [row.random.random() for row in rows])


def _pick(weights: torch.Tensor, numbers: Sequence[float]) -> torch.Tensor:
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
    return token.squeeze(1)


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
    device = logits.device
    ranks = torch.tensor([max(limit - 1, 0) for limit in limits], device=device)
    lowest = best.gather(1, ranks.unsqueeze(1))
    free = torch.tensor([limit == 0 for limit in limits], device=device).unsqueeze(1)
    lowest = lowest.masked_fill(free, float("-inf"))
    return logits.masked_fill(logits < lowest, float("-inf"))


def _min_p(weights: torch.Tensor, limits: Sequence[float]) -> torch.Tensor:
    """Drop tokens with less than a share of the largest weight; the rest sums up to 1 again."""
    if not any(limits):
        return weights
    lowest = weights.amax(dim=-1, keepdim=True) * _column(limits, weights)
    kept = weights.masked_fill(weights < lowest, 0.0)
    free = _column(limits, weights) == 0.0
    return torch.where(free, weights, kept / kept.sum(dim=-1, keepdim=True))


def _top_p(weights: torch.Tensor, limits: Sequence[float]) -> torch.Tensor:
    if all(limit >= 1.0 for limit in limits):
        return weights
    limit = _column(list(limits), weights)
    free = limit >= 1.0
    for count in (*_CANDIDATES, weights.shape[-1]):
        best = _largest(weights, count)
        heights = best.cumsum(dim=-1, dtype=torch.float64)
        if bool(((heights[:, -1:] >= limit) | free).all()):
            break
    # A token stays when those before it do not reach the limit, so the first always stays.
    kept = ((heights - best) < limit).sum(dim=-1, keepdim=True)
    lowest = best.gather(1, (kept - 1).clamp(min=0))
    return weights.masked_fill(weights < lowest.masked_fill(free, 0.0), 0.0)


def _largest(weights: torch.Tensor, count: int) -> torch.Tensor:
    if count >= weights.shape[-1]:
        return weights.sort(dim=-1, descending=True).values
    return weights.topk(count, dim=-1).values


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)
