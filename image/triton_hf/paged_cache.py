"""Keys and values in pages of fixed memory, so that nothing a CUDA graph has seen ever moves.

A sequence owns a run of pages of one pool, set aside when it begins; a row of the batch is a line
in a table of page numbers. Joining and leaving change numbers there and copy no keys or values. A
run, because the flash attention that torch carries reads only what lies together. Everything a step
depends on (tables, positions, tokens) is read from tensors on the device, so a recorded step is
right for any batch.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from triton_hf.transfer import upload

# The page that rows without a sequence read and write.
SCRATCH = 0

_step: contextvars.ContextVar[PagedStep] = contextvars.ContextVar("step")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Heads and their width, for keys and for values of one layer."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int

    @property
    def numbers(self) -> int:
        """Numbers that one token needs."""
        return self.key_heads * self.key_width + self.value_heads * self.value_width


class PagedStep:
    """What one forward pass needs to know of its rows; made inside the pass, on the device.

    Attributes:
        tables: Page numbers of each row, [rows, pages].
        positions: Position of each new token in its sequence, [rows, tokens].
        places: Where each new token goes in the pool, [rows x tokens].
        lengths: Tokens of each row, the new ones among them, [rows].
        first: Where each row begins in the pool, and one number more, [rows + 1].
        offsets: Where each row's new tokens begin among all of them, [rows + 1].
        fused: Whether attention reads the pool itself; else it gets masks and gathered pages.
    """

    def __init__(
        self, *, tables: torch.Tensor, positions: torch.Tensor, page_tokens: int, fused: bool
    ) -> None:
        """Work out where the new tokens go."""
        self.tables, self.positions, self.fused = tables, positions, fused
        self.page_tokens = page_tokens
        pages = tables.gather(1, positions // page_tokens).long()
        self.places = (pages * page_tokens + positions % page_tokens).flatten()
        self.lengths = (positions[:, -1] + 1).int()
        rows, tokens = positions.shape
        self.offsets = torch.arange(
            0, rows * tokens + 1, tokens, dtype=torch.int32, device=positions.device
        )
        self.first = torch.nn.functional.pad(tables[:, 0] * page_tokens, (0, 1))

    @property
    def width(self) -> int:
        """Tokens that the tables have room for."""
        return self.tables.shape[1] * self.page_tokens

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be the step that caches, masks and attention of this thread belong to."""
        token = _step.set(self)
        try:
            yield
        finally:
            _step.reset(token)


def current_step() -> PagedStep:
    """The step that is running in this thread."""
    return _step.get()


class _PagedLayer(CacheLayerMixin):
    """Keys and values of one layer, each [pages, tokens of a page, heads, width]."""

    is_compileable = True
    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing to do: the pool was made at the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens; return the whole pool, which `paged_attention` can read."""
        places = current_step().places
        for pool, new in ((self.keys, key_states), (self.values, value_states)):
            pool.flatten(0, 1).index_copy_(0, places, new.transpose(1, 2).flatten(0, 1))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width of the mask, and the first position it stands for."""
        return current_step().width, 0

    def get_seq_length(self) -> int:
        """The same for all steps; models are told the positions."""
        return current_step().width - 1

    def get_max_length(self) -> int:
        """Tokens that the tables have room for."""
        return current_step().width


class PagedCache(Cache):
    """The pool of all sequences, as the cache of a model of transformers."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take the memory for this many pages, the scratch page on top.

        Raises:
            torch.OutOfMemoryError: The device has not enough.
        """
        self.page_tokens = page_tokens
        self._owned = bytearray(pages + 1)  # 1 for each page that is
        self._owned[SCRATCH] = 1
        # Layers of one shape lie in one tensor, so that a page of all of them is emptied at once.
        counts = collections.Counter(shapes)
        self._pools = {
            shape: tuple(
                torch.zeros(
                    (count, pages + 1, page_tokens, heads, width), dtype=dtype, device=device
                )
                for heads, width in (
                    (shape.key_heads, shape.key_width),
                    (shape.value_heads, shape.value_width),
                )
            )
            for shape, count in counts.items()
        }
        used: collections.Counter[LayerShape] = collections.Counter()
        layers: list[Any] = []
        for shape in shapes:
            keys, values = self._pools[shape]
            layers.append(_PagedLayer(keys[used[shape]], values[used[shape]]))
            used[shape] += 1
        super().__init__(layers=layers)

    @property
    def pages(self) -> int:
        """Pages in all."""
        return len(self._owned) - 1

    @property
    def free(self) -> int:
        """Pages that no sequence owns."""
        return self._owned.count(0)

    def pages_for(self, tokens: int) -> int:
        """Pages that so many tokens need."""
        return -(-tokens // self.page_tokens)

    def has_run(self, count: int) -> bool:
        """Whether so many free pages lie together."""
        return bytes(count) in self._owned

    def take(self, count: int) -> range:
        """Return the numbers of empty pages that lie together.

        Raises:
            MemoryError: There are not enough; none is taken then.
        """
        start = self._owned.find(bytes(count))
        if start < 0:
            used = self.pages - self.free
            raise MemoryError(f"no {count} pages for keys and values; {used} are in use")
        self._owned[start : start + count] = b"\1" * count
        taken = range(start, start + count)
        self._empty(taken)
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """Take pages back; the scratch page is never free."""
        for page in pages:
            self._owned[page] = page == SCRATCH

    def copy(self, source: Sequence[int], target: Sequence[int], *, tokens: int) -> None:
        """Copy the first tokens of one run of pages to another, without waiting for the device."""
        start, end = source[0] * self.page_tokens, target[0] * self.page_tokens
        for pair in self._pools.values():
            for pool in pair:
                places = pool.flatten(1, 2)
                places[:, end : end + tokens].copy_(places[:, start : start + tokens])

    def empty_scratch(self) -> None:
        """Forget what rows without a sequence have written."""
        self._empty([SCRATCH])

    def _empty(self, pages: Sequence[int]) -> None:
        # Zeros and not what a failed request left: 0 x NaN is NaN, also where the mask says 0.
        device = next(iter(self._pools.values()))[0].device
        numbers = upload(pages, dtype=torch.long, device=device)
        for pair in self._pools.values():
            for pool in pair:
                pool.index_fill_(1, numbers, 0)
