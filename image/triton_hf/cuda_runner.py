"""Runs a model of transformers from recorded steps, one step ahead of what the host has read.

The batch lives on the device: tokens, positions and tables of pages, each in memory that never
moves. A step is recorded for 1, 2, 4, ... rows and repeated with whatever these tensors hold; the
tokens it makes are chosen on the device and feed the next step before the host has seen them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from triton_hf import memory, paged_attention
from triton_hf.errors import SettingsError
from triton_hf.fused_norm import FusedNorms
from triton_hf.graphs import Recorder, Step, recorder_for
from triton_hf.paged_cache import SCRATCH, LayerShape, PagedCache, PagedStep
from triton_hf.prefixes import Kept
from triton_hf.sampler import SamplingRow, choose_ahead
from triton_hf.transfer import Download, upload

# So large that the steps over gathered pages, one for each doubling, are few.
PAGE_TOKENS = 256
# cuDNN plans anew for each length of a prompt, which takes longer than the prompt.
_FUSED = (SDPBackend.FLASH_ATTENTION,)
_ANY = (*_FUSED, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
# How far the logits may be from those of the model's own attention, as a part of their length.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
_CHECK_TOKENS = 9


class UnavailableError(Exception):
    """The model cannot be run this way; the text says why."""


class PagedSequence:
    """The pages of one sequence, the tokens that were read, and the one that comes next."""

    def __init__(self, cache: PagedCache, pages: Sequence[int]) -> None:
        """Own these pages until `release`."""
        self._cache, self.pages = cache, pages
        self.length = 0
        self.tokens: list[int] = []
        self.table: torch.Tensor | None = None  # on the device, [1, pages]
        self.token: torch.Tensor | None = None  # on the device, [1]

    def take_over(self, other: PagedSequence, count: int) -> None:
        """Start with the first tokens of another sequence; only on an empty one."""
        self._cache.copy(other.pages, self.pages, tokens=count)
        self.tokens, self.length = other.tokens[:count], count

    def shrink(self) -> None:
        """Give back the pages behind the tokens that were read."""
        needed = self._cache.pages_for(len(self.tokens))
        self._cache.give(self.pages[needed:])
        self.pages = self.pages[:needed]

    def release(self) -> None:
        """Give the pages back; safe to call twice."""
        pages, self.pages = self.pages, ()
        self._cache.give(pages)

    def __del__(self) -> None:
        """A sequence that was dropped needs no call."""
        self.release()


class Pending:
    """The tokens of one step, which may still be on their way."""

    def __init__(self, tokens: torch.Tensor) -> None:
        """Start to copy them to the host."""
        self._download = Download(tokens)

    def wait(self) -> list[int | None]:
        """Return the token of each row, None where its logits are not numbers."""
        return [token if token >= 0 else None for token in self._download.wait()]


class CudaRunner:
    """Prefills sequences one by one and repeats recorded steps for those that have joined.

    Rows are numbered 0, 1, ... in the order of joining; when one leaves, the last takes its
    number. All calls belong into one thread and `torch.inference_mode`.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        positions: int,
        page_tokens: int = PAGE_TOKENS,
        recorder: Recorder | None = None,
    ) -> None:
        """Take a model in evaluation mode and the memory for keys and values.

        Args:
            model: A causal language model of transformers, on its device.
            slots: Most rows.
            positions: Longest sequence in tokens.
            page_tokens: Tokens of a page.
            recorder: What records the steps; None takes what the device can.

        Raises:
            UnavailableError: The model cannot be run this way; it is as before.
            SettingsError: There is not enough memory for one sequence.
        """
        paged_attention.register()
        self._model = model
        self._slots, self._positions = slots, positions
        self.device: torch.device = next(model.parameters()).device
        known = inspect.signature(model.forward).parameters
        if "position_ids" not in known:
            raise UnavailableError("the model cannot be told positions")
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._own_attention = model.config._attn_implementation
        self._expected, shapes = self._look()
        widest = max(max(shape.key_width, shape.value_width) for shape in shapes)
        self._why_gathered = paged_attention.fused_refusal(model, widest=widest)
        pages = memory.plan_pages(
            device=self.device,
            token_bytes=sum(shape.numbers for shape in shapes) * model.dtype.itemsize,
            slots=slots,
            positions=positions,
            page_tokens=page_tokens,
        )
        with memory.no_room("the keys and values"):
            self._cache = PagedCache(
                shapes, pages=pages, page_tokens=page_tokens, dtype=model.dtype, device=self.device
            )
        whole = {"dtype": torch.long, "device": self.device}
        # The rows that the steps read; what is behind the last row belongs to the scratch page.
        self._ids = torch.zeros(slots, **whole)
        self._row_positions = torch.zeros(slots, **whole)
        self._growth = torch.zeros(slots, **whole)
        self._tables = torch.full(
            (slots, self._cache.pages_for(positions)),
            SCRATCH,
            dtype=torch.int32,
            device=self.device,
        )
        self._rows: list[PagedSequence] = []
        self._kept = Kept(drop=PagedSequence.release)
        self._recorder = recorder or recorder_for(self.device)
        self._steps: dict[tuple[int, int], Step] = {}
        self._checked = False
        self._use_pages()
        self._norms = FusedNorms(model)

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return len(self._rows)

    @property
    def cache(self) -> PagedCache:
        """The memory of all sequences."""
        return self._cache

    @property
    def attention(self) -> str:
        """How attention is computed, for the log."""
        why = self._why_gathered
        return "flash attention" if why is None else f"gathered pages because {why}"

    @property
    def usage(self) -> float:
        """Share of the pages that sequences have; those that are kept can be had."""
        cache = self._cache
        return (cache.pages - cache.free - self.kept_pages) / cache.pages

    @property
    def kept_pages(self) -> int:
        """Pages that are kept for later prompts while nobody needs them."""
        return sum(len(sequence.pages) for sequence in self._kept)

    def admit(self, positions: int) -> PagedSequence | None:
        """Return an empty sequence with room for so many tokens; None while there is none."""
        pages = self._cache.pages_for(positions)
        if not self._make_room(pages):
            return None
        return PagedSequence(self._cache, self._cache.take(pages))

    def resume(self, prompt: Sequence[int], positions: int) -> tuple[PagedSequence, int] | None:
        """Return a sequence with the start of a prompt as far as it is known, and its tokens.

        At least the last token of the prompt is left to be read. None while there is no room for
        so many positions.
        """
        like, count = self._kept.nearest(prompt, self._rows)
        sequence = self.admit(positions)
        if sequence is None:
            return None
        if like is None or not like.pages:  # it had to make room
            return sequence, 0
        sequence.take_over(like, count)
        return sequence, count

    def _make_room(self, pages: int) -> bool:
        """Forget the oldest kept prompts until so many pages lie together; False if none do."""
        while not self._cache.has_run(pages):
            if not self._kept:
                return False
            self._kept.forget_oldest()
        return True

    def begin(self) -> PagedSequence:
        """Return an empty sequence that may become as long as any.

        Raises:
            MemoryError: There is no room for it.
        """
        pages = len(self._tables[0])
        self._make_room(pages)
        return PagedSequence(self._cache, self._cache.take(pages))

    def extend(self, sequence: PagedSequence, tokens: Sequence[int]) -> torch.Tensor:
        """Add tokens to a sequence that has not joined; return the last one's logits, [1, V]."""
        start, end = sequence.length, sequence.length + len(tokens)
        if self._cache.pages_for(end) > len(sequence.pages):
            raise MemoryError(f"a sequence of {end} tokens has {len(sequence.pages)} pages")
        if sequence.table is None:
            sequence.table = upload([list(sequence.pages)], dtype=torch.int32, device=self.device)
        step = PagedStep(
            tables=sequence.table[:, : self._cache.pages_for(end)],
            positions=torch.arange(start, end, device=self.device).unsqueeze(0),
            page_tokens=self._cache.page_tokens,
            fused=self._why_gathered is None,
        )
        logits = self._forward(upload([tokens], dtype=torch.long, device=self.device), step)
        sequence.length = end
        sequence.tokens += tokens
        return logits

    def choose_first(
        self, sequence: PagedSequence, logits: torch.Tensor, row: SamplingRow
    ) -> Pending:
        """Choose the token after a prompt; the sequence goes on from it when it has joined."""
        chosen = choose_ahead(logits, [row])
        sequence.token = chosen.clamp(min=0)
        return Pending(chosen)

    def join(self, sequence: PagedSequence) -> None:
        """Make a sequence the last row of the batch."""
        row = self.rows
        if row == self._slots or sequence.table is None:
            raise IndexError(f"a batch has at most {self._slots} rows that were read")
        pages = len(sequence.pages)
        self._tables[row, :pages].copy_(sequence.table[0])
        self._row_positions[row].fill_(sequence.length)
        self._growth[row].fill_(1)
        if sequence.token is not None:
            self._ids[row : row + 1].copy_(sequence.token)
        self._rows.append(sequence)

    def leave(self, row: int) -> None:
        """Take a row out of the batch; the last row takes its number."""
        last = self.rows - 1
        state = (self._tables, self._row_positions, self._growth, self._ids)
        for tensor in state:
            if row != last:
                tensor[row].copy_(tensor[last])
            tensor[last].zero_()
        gone, self._rows[row] = self._rows[row], self._rows[last]
        self._rows.pop()
        # A step that is under way may still write behind the prompt, or to pages that are given
        # back; the next owner's work comes after it.
        gone.shrink()
        self._kept.add(gone)

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; return the logits after it, [rows, V], until the next step."""
        self._ids[: self.rows].copy_(upload(tokens, dtype=torch.long, device=self.device))
        return self._repeat()

    def launch(self, rows: Sequence[SamplingRow]) -> Pending:
        """Add to each row the token that was chosen for it last, and choose the one after.

        Returns at once, with the work before the device.
        """
        chosen = choose_ahead(self._repeat(), rows)
        self._ids[: self.rows].copy_(chosen.clamp(min=0))
        return Pending(chosen)

    def clear(self) -> None:
        """Forget all rows, and what is kept."""
        for row in self._rows:
            row.release()
        self._rows = []
        self._kept.clear()
        for tensor in (self._ids, self._row_positions, self._growth, self._tables):
            tensor.zero_()
        self._cache.empty_scratch()

    def forget(self) -> None:
        """Let no later prompt take over what was read of earlier ones."""
        self._kept.clear()

    def check(self) -> None:
        """Record all steps, once, and hold them to the model's own attention, each time.

        There must be no rows then; sequences that have not joined stay as they are.

        Raises:
            UnavailableError: A step cannot be recorded, or its logits are others.
            SettingsError: There is no memory for the steps.
        """
        if self._checked:
            self._compare()
            return
        try:
            self._prove()
        except SettingsError:
            self.give_back()
            raise
        except Exception as error:
            self.give_back()
            if isinstance(error, UnavailableError):
                raise
            raise UnavailableError(_first_line(error)) from error
        self._checked = True

    def give_back(self) -> None:
        """Leave the model as it was."""
        self.clear()
        self._norms.undo()
        self._model.set_attn_implementation(self._own_attention)

    def _prove(self) -> None:
        if self._why_gathered is None:
            try:
                self._record()
                self._compare()
                return
            except (RuntimeError, ValueError, NotImplementedError, UnavailableError) as error:
                self._why_gathered = f"flash attention failed ({_first_line(error)})"
                self.clear()
        self._steps.clear()
        self._record()
        self._compare()

    def _use_pages(self) -> None:
        self._model.set_attn_implementation(paged_attention.NAME)
        if self._model.config._attn_implementation != paged_attention.NAME:
            raise UnavailableError("the model's attention cannot be replaced")

    def _look(self) -> tuple[list[torch.Tensor], list[LayerShape]]:
        """Run the model as it is: logits to compare with, and the shapes of its layers."""
        cache = DynamicCache()
        try:
            with torch.inference_mode():
                logits = [
                    self._model(
                        input_ids=torch.tensor([part], device=self.device),
                        past_key_values=cache,
                        use_cache=True,
                        **self._last_only,
                    ).logits[:, -1]
                    for part in self._check_parts()
                ]
        except Exception as error:
            raise UnavailableError(_first_line(error)) from error
        layers: list[Any] = list(cache.layers)
        kinds = {type(layer).__name__ for layer in layers}
        if kinds != {DynamicLayer.__name__} or not all(layer.is_initialized for layer in layers):
            names = ", ".join(sorted(kinds)) or "none"
            raise UnavailableError(f"its cache has layers of the kind {names}")
        shapes = [
            LayerShape(
                key_heads=layer.keys.shape[1],
                key_width=layer.keys.shape[3],
                value_heads=layer.values.shape[1],
                value_width=layer.values.shape[3],
            )
            for layer in layers
        ]
        return logits, shapes

    def _check_parts(self) -> list[list[int]]:
        """A prompt and two tokens after it."""
        size = self._model.config.get_text_config().vocab_size
        tokens = [(7919 * (index + 1)) % size for index in range(_CHECK_TOKENS)]
        return [tokens[:-2], tokens[-2:-1], tokens[-1:]]

    def _record(self) -> None:
        widths = [len(self._tables[0])]
        if self._why_gathered is not None:  # each page that is gathered costs
            widths = _doubling(widths[0])
        with torch.inference_mode(), memory.no_room("the recorded steps"):
            # The largest first: the others fit into its memory.
            for rows in reversed(_doubling(self._slots)):
                for width in reversed(widths):
                    self._steps[rows, width] = self._recorder(self._make_step(rows, width))
            self._cache.empty_scratch()

    def _make_step(self, rows: int, width: int) -> Step:
        ids, positions = self._ids[:rows], self._row_positions[:rows]
        tables, growth = self._tables[:rows, :width], self._growth[:rows]

        def step() -> torch.Tensor:
            paged = PagedStep(
                tables=tables,
                positions=positions.unsqueeze(1),
                page_tokens=self._cache.page_tokens,
                fused=self._why_gathered is None,
            )
            logits = self._forward(ids.unsqueeze(1), paged)
            positions.add_(growth)
            return logits

        return step

    def _repeat(self) -> torch.Tensor:
        """Run the smallest recorded step that holds all rows."""
        longest = max(row.length for row in self._rows) + 1
        if longest > self._positions:
            raise IndexError(f"a sequence has at most {self._positions} tokens")
        width = self._cache.pages_for(longest)
        key = min(key for key in self._steps if key[0] >= self.rows and key[1] >= width)
        logits = self._steps[key]()
        for row in self._rows:
            row.length += 1
        return logits[: self.rows]

    def _forward(self, ids: torch.Tensor, step: PagedStep) -> torch.Tensor:
        with step.running(), sdpa_kernel(list(_FUSED if step.fused else _ANY)):
            output = self._model(
                input_ids=ids,
                position_ids=step.positions,
                past_key_values=self._cache,
                use_cache=True,
                **self._last_only,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _compare(self) -> None:
        """Run the tokens of `_look` through pages and recorded steps."""
        prompt, *others = self._check_parts()
        with torch.inference_mode():
            # Of the scratch page, so that it needs no memory that others have.
            sequence = PagedSequence(self._cache, (SCRATCH,))
            self.extend(sequence, prompt[:2])
            found = [self.extend(sequence, prompt[2:])]
            self.join(sequence)
            found += [self.step(token).clone() for token in others]
            self.clear()
        pairs = [(a.float(), b.float()) for a, b in zip(found, self._expected, strict=True)]
        for ours, own in pairs:
            apart = float((ours - own).norm() / own.norm())
            if not apart <= _TOLERANCE[self._model.dtype]:  # also when it is not a number
                away = f"{apart:.1%} away from those of its own code"
                raise UnavailableError(f"its logits are {away}")


def make_cuda_runner(model: Any, *, slots: int, positions: int, name: str) -> CudaRunner | None:
    """Return a runner with recorded steps, None where another has to do it; say which and why.

    Raises:
        SettingsError: There is not enough memory for one sequence.
    """
    try:
        runner = CudaRunner(model, slots=slots, positions=positions)
        runner.check()
    except UnavailableError as error:
        why = f"torch computes the steps, without CUDA graphs: {error}"
        print(f"{name}: {why}", file=sys.stderr, flush=True)
        return None
    tokens = runner.cache.pages * runner.cache.page_tokens
    print(
        f"{name}: CUDA graphs compute the steps, {runner.attention}; room for {tokens} tokens",
        file=sys.stderr,
        flush=True,
    )
    return runner


def _doubling(most: int) -> list[int]:
    """1, 2, 4, ... and the most."""
    sizes = [1]
    while 2 * sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    return sorted({*sizes, most})


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
