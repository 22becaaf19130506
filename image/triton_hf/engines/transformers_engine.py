"""A text engine on transformers with continuous batching.

Requests join and leave the running batch between any two tokens. Prompts are prefilled in chunks,
so a long prompt delays the next token of the others by one chunk at most.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_hf.compute.model_files import ModelFiles
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.row import Row
from triton_hf.engines.text import (
    TextEngine,
    TextJob,
    engine_failure,
    longest_context,
    vocabulary_of,
)
from triton_hf.errors import EngineError, SettingsError, in_short
from triton_hf.runtime import log, log_fault
from triton_hf.store.layout import locate_weights

# Prompt tokens that are prefilled between two tokens of the running rows: on a CPU about as much
# work as two decode steps.
CHUNK_TOKENS = {"cpu": 64, "cuda": 512}
# So many times more are prefilled at once when no row waits for its next token.
IDLE_CHUNKS = 4
# The same for a runner that prefills and decodes in one forward pass, which then takes at most
# three times as long as decoding alone. With few rows reading the weights takes the time, with many
# rows multiplying does.
MIXED_TOKENS = 24
MIXED_TOKENS_A_ROW = 2
MIXED_IDLE_CHUNKS = 10
# After mixed forward passes that failed in a row, so many of the next ones are not tried.
LONGEST_MIXING_PAUSE = 1024


class TransformersEngine(TextEngine):
    """Answers with a causal language model from the Hub."""

    def _load(self) -> None:
        apply_cpu_limits()  # before torch is imported
        start = time.monotonic()
        folder = locate_weights(repo_id=self.settings.repo_id, revision=self.settings.revision)
        self._open(folder)
        seconds = time.monotonic() - start
        log(f"{self.settings.repo_id}: ready on {self._runner.device} after {seconds:.1f} s")

    def _open(self, folder: Path) -> None:
        """Serve the model of a folder.

        Raises:
            SettingsError: The model does not fit the settings, or this engine.
        """
        from safetensors import SafetensorError

        from triton_hf.compute.loading import load_runner, set_threads, unusable

        set_threads()
        try:
            files = ModelFiles(folder)
            self._check(files, files.tokenizer)
            runner = load_runner(folder, files.config, self.settings)
        except (OSError, ValueError, SafetensorError) as error:
            raise unusable(self.settings, error) from None
        self._serve(runner)

    def _use(self, model: Any, tokenizer: Any) -> None:
        """Serve a model that is in memory.

        Raises:
            SettingsError: The model does not fit the settings, or this engine.
        """
        from triton_hf.compute.loading import make_runner

        self._check(model, tokenizer)
        self._serve(make_runner(model, self.settings))

    def _check(self, model: Any, tokenizer: Any) -> None:
        """Take what a model says beside its weights."""
        self._use_tokenizer(
            tokenizer,
            generation=model.generation_config,
            longest=longest_context(model.config),
            vocabulary=vocabulary_of(model.config),
        )

    def _serve(self, runner: Any) -> None:
        """Let this runner compute."""
        import torch

        from triton_hf.compute import sampler

        self._runner = runner
        try:
            with torch.inference_mode():
                self._runner.check()
        except ArithmeticError as error:
            raise SettingsError(f"{self.settings.repo_id} cannot be served: {error}") from None
        if runner.cpu_levels is not None:
            shown, used = runner.cpu_levels
            self._metrics.cpu_levels(shown=shown, used=used)
        self._choose = sampler.choose
        self._reading: list[Row] = []  # prompts in prefill
        self._rows: list[Row] = []  # in the order of the runner's rows
        self._forgets = False  # the prefix cache goes once the rows at fault are gone
        self._mixing_faults = 0  # in a row
        self._mixing_pause = 0  # forward passes until mixing is tried again

    def _prepare(self) -> bool:
        mixing = self._runner.mixing
        return mixing is not None and mixing.prepare()

    def _advance(self, admitted: Sequence[TextJob]) -> bool:
        import torch

        for job in admitted:
            self._begin(job)
        with torch.inference_mode():
            self._compute()
            if self._forgets:
                self._drop_finished()
                self._runner.forget()
                self._forgets = False
        return True

    def _begin(self, job: TextJob) -> None:
        try:
            self._reading.append(Row(job))
        except Exception as error:
            self._note_fault(error)
            self._fail(job, engine_failure())

    def _prove(self) -> None:
        import torch

        if self._rows:
            return  # rows that failed are gone; these have just made tokens
        with torch.inference_mode():
            self._runner.check()

    def _sweep(self) -> None:
        super()._sweep()
        self._drop_finished()

    def _compute(self) -> None:
        """Prefill chunks of prompts and decode a token for each row."""
        if self._reading and self._mixes() and self._advance_together():
            return
        self._read_prompts()
        self._step()

    # Prefill and decode in one forward pass.

    def _mixes(self) -> bool:
        """Whether to try one forward pass for all; after faults it pauses, longer each time."""
        if self._mixing_pause:
            self._mixing_pause -= 1
            return False
        return self._runner.mixing is not None

    def _advance_together(self) -> bool:
        """Prefill chunks and decode the rows at once; False if that failed.

        Nothing has changed then: one after the other, only the request at fault fails.
        """
        parts = self._next_chunks()
        try:
            logits = self._runner.advance(
                [row.token for row in self._rows], [(row.sequence, chunk) for row, chunk in parts]
            )
        except Exception as error:
            self._pause_mixing(error)
            return False
        self._mixing_faults = 0
        for row, chunk in parts:
            row.read += len(chunk)
        read = [row for row, _ in parts]
        self._choose_and_push(logits, [*self._rows, *read])
        for row in read:
            if row.complete or row.job.finished:
                self._reading.remove(row)
                self._join(row)
        self._drop_finished()
        return True

    def _pause_mixing(self, error: Exception) -> None:
        """Log a fault that stays once, not at the rate of tokens."""
        if self._mixing_faults == 0:
            log_fault(error)
        self._mixing_faults += 1
        self._mixing_pause = min(2**self._mixing_faults - 2, LONGEST_MIXING_PAUSE)
        if self._mixing_pause == LONGEST_MIXING_PAUSE:
            log(
                f"{self.settings.repo_id}: prefill and decode fail together and are computed one "
                f"after the other, which is slower: {in_short(error)}"
            )

    def _next_chunks(self) -> list[tuple[Row, Sequence[int]]]:
        """The prompt tokens to prefill next, in the order of the requests."""
        left = max(MIXED_TOKENS, MIXED_TOKENS_A_ROW * len(self._rows))
        if not self._rows:
            left *= MIXED_IDLE_CHUNKS
        parts: list[tuple[Row, Sequence[int]]] = []
        for row in self._reading:
            self._resume(row)
            chunk = row.job.work.token_ids[row.read : row.read + left]
            parts.append((row, chunk))
            left -= len(chunk)
            if left == 0:
                break
        return parts

    def _choose_and_push(self, logits: Any, rows: Sequence[Row]) -> None:
        """Sample the next token of the rows whose prefill is complete."""
        ready = [index for index, row in enumerate(rows) if row.complete]
        if not ready:
            return
        sampling = [rows[index].sampling for index in ready]
        try:
            tokens = self._choose(logits, sampling, at=ready, highest=self._runner.highest)
        except Exception as error:
            self._fail_batch(error)
            for row in rows:
                self._fail(row.job, engine_failure())
            return
        for index, token in zip(ready, tokens, strict=True):
            self._push_token(rows[index], token)

    # One after the other.

    def _read_prompts(self) -> None:
        """Prefill a chunk of the waiting prompts, in their order."""
        idle = not self._rows
        size = left = CHUNK_TOKENS[self._runner.device.type] * (IDLE_CHUNKS if idle else 1)
        while self._reading and not (idle and self._rows):
            row = self._reading[0]
            try:
                self._resume(row)
                chunk = row.job.work.token_ids[row.read : row.read + size]
                if len(chunk) > left:
                    break
                left -= len(chunk)
                self._read(row, chunk)
            except Exception as error:
                self._fail_row(row, error)
            if row.complete or row.job.finished:
                self._reading.pop(0)
                self._join(row)

    def _resume(self, row: Row) -> None:
        """Give a prompt its sequence, with the cached part of the prompt in it."""
        if row.sequence is None:
            row.sequence, row.read = self._runner.resume(row.job.work.token_ids)

    def _read(self, row: Row, chunk: Sequence[int]) -> None:
        """Prefill a chunk of one prompt; sample the first token after the last chunk."""
        logits = self._runner.extend(row.sequence, chunk)
        row.read += len(chunk)
        if row.complete:
            tokens = self._choose(logits, [row.sampling], highest=self._runner.highest)
            self._push_token(row, tokens[0])

    def _join(self, row: Row) -> None:
        """Let a row take part in decoding after its prefill."""
        sequence, row.sequence = row.sequence, None
        if row.job.finished:
            return
        self._rows.append(row)
        try:
            self._runner.join(sequence)
        except Exception as error:
            self._fail_batch(error)

    def _step(self) -> None:
        """Decode the next token of each row of the batch."""
        if not self._rows:
            return
        try:
            logits = self._runner.step([row.token for row in self._rows])
            sampling = [row.sampling for row in self._rows]
            tokens = self._choose(logits, sampling, highest=self._runner.highest)
        except Exception as error:
            self._fail_batch(error)
            return
        for row, token in zip(self._rows, tokens, strict=True):
            self._push_token(row, token)
        self._drop_finished()

    # Results and faults.

    def _push_token(self, row: Row, token: int | None) -> None:
        """Pass one token of a row on; None means that its logits are NaN or infinite."""
        if token is None:
            # Its KV cache may contain NaN and would break any request that reuses it.
            self._forgets = True
            error = EngineError("the model's output for this request is not a number")
            self._note_fault(error)
            self._fail(row.job, error)
            return
        row.token = token
        self._push(row.job, [token])

    def _fail_batch(self, error: Exception) -> None:
        """Fail all rows: any of them may be at fault, and the cache may be half written."""
        failed, self._rows = self._rows, []
        self._note_fault(error)
        for row in failed:
            self._fail(row.job, engine_failure())
        self._runner.clear()

    def _fail_row(self, row: Row, error: Exception) -> None:
        self._note_fault(error)
        self._fail(row.job, engine_failure())

    def _drop_finished(self) -> None:
        """Free the places of rows that have ended for any reason."""
        import torch

        self._reading = [row for row in self._reading if not row.job.finished]
        try:
            with torch.inference_mode():
                for index in reversed(range(len(self._rows))):
                    if self._rows[index].job.finished:
                        self._leave(index)
        except Exception as error:
            self._fail_batch(error)

    def _leave(self, index: int) -> None:
        self._runner.leave(index)
        last = self._rows.pop()  # it has the number of the row that left now
        if index < len(self._rows):
            self._rows[index] = last
