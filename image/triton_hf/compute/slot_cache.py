"""The key and value cache of a running batch: rows join and leave between any two steps.

All rows write their next token into the same column, so a row of n tokens fills the n columns
before it and what lies to its left is padding. That is how `generate` sees a left-padded batch:
every mask that a model of transformers makes for itself (causal, sliding window, chunks) is right
without a word about slots. The buffers grow when they must and are moved left when the write
column reaches their end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

# Columns that are free after the rows were moved: a move costs about as much as the attention of
# one step, so it is made this seldom.
HEADROOM = 128


@dataclasses.dataclass(kw_only=True)
class _Window:
    """What part of the buffers is in use; one for all layers.

    Attributes:
        rows: Rows in use, the first ones of the buffers.
        start: First column that any row uses.
        end: Column that the next token of every row goes to.
    """

    rows: int = 0
    start: int = 0
    end: int = 0


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, each [rows, heads, columns, width]."""

    is_sliding = False
    keys: Any
    values: Any

    def __init__(self, window: _Window) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Nothing to do: `SlotCache.join` makes the buffers."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new token of each row; return all that the rows hold, as views."""
        at = self._window
        self.keys[: at.rows, :, at.end : at.end + 1] = key_states
        self.values[: at.rows, :, at.end : at.end + 1] = value_states
        columns = slice(at.start, at.end + 1)
        return self.keys[: at.rows, :, columns], self.values[: at.rows, :, columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Width of the mask, and the first column it stands for."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self._window.end - self._window.start

    def get_max_length(self) -> int:
        """There is none: the buffers grow."""
        return -1

    def resize(self, *, like: Any, rows: int, columns: int, end: int) -> None:
        """Make new buffers and move what is in use so that it ends before column `end`."""
        at = self._window
        self.keys = self._moved(self.keys, like.keys, at, rows, columns, end)
        self.values = self._moved(self.values, like.values, at, rows, columns, end)
        self.is_initialized = True

    @staticmethod
    def _moved(
        old: torch.Tensor | None, like: torch.Tensor, at: _Window, rows: int, columns: int, end: int
    ) -> torch.Tensor:
        # Zeros and not just any memory: 0 x NaN is NaN, also where the mask says 0.
        new = like.new_zeros((rows, like.shape[1], columns, like.shape[3]))
        if old is not None and at.rows:
            start = end - (at.end - at.start)
            new[: at.rows, :, start:end] = old[: at.rows, :, at.start : at.end]
        return new


class SlotCache(Cache):
    """The cache of a batch that is given to the model at each step.

    Before a step call `reserve`, after it `advance`; `attention_mask` and `position_ids` are what
    the model needs with it.
    """

    def __init__(self, *, max_rows: int, device: Any) -> None:
        """Make an empty cache; buffers are made when the first row joins."""
        self._window = _Window()
        self._max_rows = max_rows
        self._device = device
        self._capacity = (0, 0)  # rows, columns
        self._slot_layers: list[_SlotLayer] = []
        self._starts: list[int] = []
        self._starts_tensor = torch.zeros(0, dtype=torch.long, device=device)
        super().__init__(layers=[])

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self._window.rows

    def join(self, sequence: Cache) -> None:
        """Add the tokens of a prefilled cache of one row as the last row."""
        length = sequence.get_seq_length()
        if not self._slot_layers:
            self._slot_layers = [_SlotLayer(self._window) for _ in sequence.layers]
            self.layers = [*self._slot_layers]
        at = self._window
        if at.rows == 0:
            at.start = at.end = min(length, max(self._capacity[1] - HEADROOM, 0))
        sources: Sequence[Any] = sequence.layers
        self._make_room(rows=at.rows + 1, length=length, like=sources)
        columns = slice(at.end - length, at.end)
        for layer, source in zip(self._slot_layers, sources, strict=True):
            if source.is_initialized:
                layer.keys[at.rows, :, columns] = source.keys[0]
                layer.values[at.rows, :, columns] = source.values[0]
        at.rows += 1
        self._starts.append(at.end - length)
        self._restart()

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its number."""
        at = self._window
        last = at.rows - 1
        own = slice(self._starts[row], at.end)
        moved = slice(self._starts[last], at.end)
        for layer in self._slot_layers:
            if layer.is_initialized:
                for buffer in (layer.keys, layer.values):
                    # What a row leaves behind could be NaN, and that would reach the next one.
                    buffer[row, :, own].zero_()
                    if row != last:
                        buffer[row, :, moved] = buffer[last, :, moved]
        self._starts[row] = self._starts[last]
        self._starts.pop()
        at.rows = last
        self._restart()

    def reserve(self) -> None:
        """Make sure that there is a column for the next token."""
        self._make_room(rows=self._window.rows, length=0, like=self._slot_layers)

    def advance(self) -> None:
        """The step is done: all rows are one token longer."""
        self._window.end += 1

    def attention_mask(self) -> torch.Tensor:
        """Which columns are a row's own, the next token's among them: [rows, columns]."""
        at = self._window
        columns = torch.arange(at.start, at.end + 1, device=self._device)
        return columns.unsqueeze(0) >= self._starts_tensor.unsqueeze(1)

    def position_ids(self) -> torch.Tensor:
        """Position of each row's next token: [rows, 1]."""
        return (self._window.end - self._starts_tensor).unsqueeze(1)

    def _make_room(self, *, rows: int, length: int, like: Sequence[Any]) -> None:
        at = self._window
        has_rows, has_columns = self._capacity
        if rows <= has_rows and length <= at.end < has_columns:
            return
        used = at.end - at.start if at.rows else 0
        end = max(used, length)
        columns = -(-(end + HEADROOM) // HEADROOM) * HEADROOM
        # A longer buffer that exists is kept: it was needed once and will be again.
        columns = max(columns, has_columns)
        if rows > has_rows:
            has_rows = min(max(2 * has_rows, rows), max(self._max_rows, rows))
        for layer, source in zip(self._slot_layers, like, strict=True):
            if source.is_initialized:
                layer.resize(like=source, rows=has_rows, columns=columns, end=end)
        shift = end - at.end
        self._capacity = (has_rows, columns)
        self._starts = [start + shift for start in self._starts]
        at.end = end
        self._restart()

    def _restart(self) -> None:
        at = self._window
        at.start = min(self._starts, default=at.end)
        self._starts_tensor = torch.tensor(self._starts, dtype=torch.long, device=self._device)
