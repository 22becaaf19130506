"""Runs a Llama-shaped model in C++ for a batch that changes between steps."""

from __future__ import annotations

import array
import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch

from triton_native.checkpoint import Checkpoint
from triton_native.library import (
    LEVELS,
    Segment,
    UnavailableError,
    best_level,
    fallback,
    load_library,
)
from triton_native.pages import NativeSequence, PagePool
from triton_native.weights import Packer, refusal, sizes_of


class NativeRunner:
    """Reads prompts, several at once, and steps all sequences that have joined the batch.

    Rows are numbered 0, 1, ... in the order of joining; when one leaves, the last takes its
    number. All calls belong into one thread. What a row gets does not depend on the rows beside
    it, nor on how its prompt was cut into chunks, bit for bit.

    Attributes:
        highest: The token with the largest of the logits that the last call returned, for each of
            their rows: the first of equal ones, -1 where they are no finite numbers.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        slots: int,
        positions: int,
        threads: int,
        cache: Path | None,
        int8: bool = False,
        level: int | None = None,
    ) -> None:
        """Take the weights of a causal language model; one in memory cannot be used afterwards.

        Args:
            checkpoint: Its configuration and weights.
            slots: Most sequences at a time.
            positions: Longest sequence in tokens.
            threads: Threads that a step uses, the caller's among them.
            cache: Folder for the compiled library, where the installation has none.
            int8: Bring the weights into int8, in blocks of 32 with a scale; lossy.
            level: Instructions to use; None for the best that work here. A level above those runs
                emulated, for tests.

        Raises:
            UnavailableError: The model, the CPU or the installation does not fit; the model is as
                before.
        """
        if why := refusal(checkpoint, int8=int8):
            raise UnavailableError(why)
        self._library = load_library(cache=cache)
        best = best_level(self._library)
        if level is not None and level > best:
            self._library = load_library(cache=cache, emulated=True)
        if int8 and not self._library.native_int8():
            raise UnavailableError("this CPU has no AVX512-VNNI for weights in int8")
        self._level = level or best
        self._int8 = int8
        config = sizes_of(checkpoint.config, threads=threads, int8=int8)
        self._vocabulary, self._positions = config.vocabulary, positions
        handle = self._library.native_create(ctypes.byref(config), self._level)
        if not handle:
            raise UnavailableError("there is not enough memory for the packed weights")
        per_sequence = -(-positions // self._library.native_page_tokens())
        self._pages = PagePool(self._library, handle, limit=slots * per_sequence)
        with torch.inference_mode():
            Packer(self._library, handle, checkpoint).pack(positions=positions)
        self._rows: list[NativeSequence] = []
        self._logits = torch.empty((0, self._vocabulary), dtype=torch.float32)
        self.highest: Sequence[int] = array.array("i")

    @property
    def cpu_levels(self) -> tuple[int, int]:
        """The level of instructions that this CPU shows, and the one in use (`LEVELS`)."""
        return self._library.native_level(), self._level

    @property
    def fallback(self) -> str | None:
        """Why a lower level is used than this CPU shows, as a sentence; None if it is not."""
        return fallback(self._library)

    @property
    def mixing(self) -> NativeRunner:
        """This runner: one forward pass prefills and decodes together."""
        return self

    @property
    def instructions(self) -> str:
        """What the step computes with."""
        return "AVX512-VNNI, int8" if self._int8 else LEVELS[self._level]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self._rows)

    @property
    def pages(self) -> PagePool:
        """The memory of all sequences."""
        return self._pages

    def begin(self) -> NativeSequence:
        """Return an empty sequence."""
        return NativeSequence(self._pages)

    def resume(self, prompt: Sequence[int]) -> tuple[NativeSequence, int]:
        """Return a sequence that holds the cached prefix of a prompt, and the prefix's length.

        At least the last token of the prompt is left for the prefill.
        """
        sequence = self.begin()
        sequence.resume(prompt)
        return sequence, sequence.length

    def extend(self, sequence: NativeSequence, tokens: Sequence[int]) -> torch.Tensor:
        """Add tokens to a sequence that has not joined; return the last one's logits, [1, V]."""
        return self._forward([(sequence, tokens)])

    def advance(
        self, tokens: Sequence[int], chunks: Sequence[tuple[NativeSequence, Sequence[int]]]
    ) -> torch.Tensor:
        """Add one token to each row and a chunk to each sequence, in the same matrix products.

        Returns:
            The logits after each, rows first, [rows + chunks, V]; valid until the next call.
        """
        steps = [(row, (token,)) for row, token in zip(self._rows, tokens, strict=True)]
        return self._forward([*steps, *chunks])

    def join(self, sequence: NativeSequence) -> None:
        """Make a sequence the last row of the batch."""
        self._rows.append(sequence)

    def leave(self, row: int) -> None:
        """Take a row out of the batch; the last row takes its number."""
        last = self._rows.pop()
        if row < len(self._rows):
            self._rows[row], last = last, self._rows[row]
        last.release()

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; return the logits after it, [rows, V], until the next call."""
        return self.advance(tokens, ())

    def clear(self) -> None:
        """Forget all rows."""
        for row in self._rows:
            row.release()
        self._rows = []

    def prepare(self) -> bool:
        """Do a little of what a prompt would have to wait for; False when nothing is left."""
        return self._pages.prepare()

    def forget(self) -> None:
        """Let no later prompt take over what was read of earlier ones."""
        self._pages.forget()

    def check(self) -> None:
        """Run each kind of step once, which also brings the weights into memory.

        Raises:
            ArithmeticError: Its logits are no numbers.
        """
        sequence = self.begin()
        self.extend(sequence, [0])
        highest = [*self.highest]
        self.join(sequence)
        self.step([0])
        highest += self.highest
        self.clear()
        if min(highest) < 0:
            raise ArithmeticError("the logits of the native step are not finite")

    def _forward(self, chunks: Sequence[tuple[NativeSequence, Sequence[int]]]) -> torch.Tensor:
        tokens = array.array("i", [token for _, part in chunks for token in part])
        if min(tokens, default=0) < 0 or max(tokens, default=0) >= self._vocabulary:
            raise IndexError(f"token ids go from 0 to {self._vocabulary - 1}")
        segments = (Segment * len(chunks))()
        for index, (sequence, part) in enumerate(chunks):
            if not part:
                raise IndexError("a chunk has at least one token")
            if sequence.length + len(part) > self._positions:
                raise IndexError(f"a sequence has at most {self._positions} tokens")
            sequence.reserve(len(part))
            segment = segments[index]
            segment.pages, segment.start = sequence.address, sequence.length
            segment.count, segment.output = len(part), index
        if len(chunks) > len(self._logits):
            self._logits = self._logits.new_empty((len(chunks), self._vocabulary))
        highest = array.array("i", bytes(4 * len(chunks)))
        code = self._library.native_forward(
            self._pages.handle,
            tokens.buffer_info()[0],
            ctypes.addressof(segments),
            len(chunks),
            self._logits.data_ptr(),
            highest.buffer_info()[0],
        )
        if code:
            raise MemoryError("no memory for a step")
        for sequence, part in chunks:
            sequence.push(part)
        self.highest = highest
        return self._logits[: len(chunks)]
