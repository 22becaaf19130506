"""An engine on transformers with continuous batching.

Requests join and leave the running batch between any two tokens. Prompts are read in chunks, so
that a long one delays the next token of the others by one chunk at most.
"""

from __future__ import annotations

import collections
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_hf.chat import ChatTokenizer, TokenDecoder
from triton_hf.cpu import apply_cpu_limits, usable_cores
from triton_hf.engine import Engine, Job
from triton_hf.errors import EngineError, RequestError, SettingsError
from triton_hf.model_files import LOCAL, ModelFiles
from triton_hf.requests import Conversation, Sampling
from triton_hf.runtime import log_fault
from triton_hf.settings import ModelSettings, check_weights
from triton_hf.store import locate_weights

if TYPE_CHECKING:
    from triton_hf.runners import Pending

# Prompt tokens that are read between two tokens of the running rows: on a CPU about as much work
# as two steps.
CHUNK_TOKENS = {"cpu": 64, "cuda": 512}
# So many times more are read at once when no row waits for its next token.
IDLE_CHUNKS = 4
# The same for a runner that reads and steps in one product, which then takes at most three times as
# long as a step alone: that takes the time of reading the weights for few rows, and of multiplying
# for many.
MIXED_TOKENS = 24
MIXED_TOKENS_A_ROW = 2
MIXED_IDLE_CHUNKS = 10
# Characters that a token may stand for, in those of the longest one: normalisation takes some away.
CHARACTERS_OF_TOKENS = 4


class TransformersEngine(Engine):
    """Answers with a causal language model from the Hub."""

    def _load(self) -> None:
        apply_cpu_limits()  # before torch is imported
        start = time.monotonic()
        folder = locate_weights(repo_id=self.settings.repo_id, revision=self.settings.revision)
        self._open(folder)
        seconds = time.monotonic() - start
        print(
            f"{self.settings.repo_id}: ready on {self._runner.device} after {seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    def _open(self, folder: Path) -> None:
        """Serve the model of a folder, from its files where the native step computes it.

        Raises:
            SettingsError: The model does not fit the settings, or this engine.
        """
        import torch
        from safetensors import SafetensorError

        from triton_hf.runners import make_runner, stored_runner

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
        try:
            files = ModelFiles(folder)
            self._check(files, files.tokenizer)
            runner: Any = stored_runner(folder, files.config, self.settings)
        except (OSError, ValueError, SafetensorError) as error:
            raise _unusable(self.settings, error) from None
        if runner is None:
            runner = make_runner(load_model(folder, self.settings), self.settings)
        self._serve(runner)

    def _use(self, model: Any, tokenizer: Any) -> None:
        """Serve with this model.

        Raises:
            SettingsError: The model does not fit the settings, or this engine.
        """
        from triton_hf.runners import make_runner

        self._check(model, tokenizer)
        self._serve(make_runner(model, self.settings))

    def _check(self, model: Any, tokenizer: Any) -> None:
        """Take what a model says beside its weights."""
        self._chat = ChatTokenizer(tokenizer)
        self._eos = _end_tokens(model.generation_config, tokenizer)
        self._most_characters = (
            CHARACTERS_OF_TOKENS * self.settings.max_prompt_tokens * self._chat.longest_token
        )
        longest = _longest(model.config)
        if longest is not None and self.settings.max_total_tokens > longest:
            raise SettingsError(
                f"parameter 'max_total_tokens' is {self.settings.max_total_tokens}, but "
                f"{self.settings.repo_id} handles at most {longest}"
            )

    def _serve(self, runner: Any) -> None:
        """Let this runner compute."""
        import torch

        from triton_hf import sampler

        self._runner = runner
        self._mixes = hasattr(self._runner, "advance")
        self._ahead = hasattr(self._runner, "launch")
        try:
            with torch.inference_mode():
                self._runner.check()
        except ArithmeticError as error:
            raise SettingsError(f"{self.settings.repo_id} cannot be served: {error}") from None
        self._choose = sampler.choose
        self._reading: list[_Row] = []  # prompts that are not read to their end
        self._rows: list[_Row] = []  # in the order of the runner's rows
        self._forgets = False  # what was read of earlier prompts, once the rows at fault are gone
        # Tokens that the host has not read, oldest first, and the rows that they are for.
        self._pending: collections.deque[tuple[Pending, list[_Row]]] = collections.deque()

    def _prepare(self) -> bool:
        return self._mixes and self._runner.prepare()

    def _kv_usage(self) -> float:
        """Count what requests wait for: pages, where a runner sets them aside."""
        usage: float | None = getattr(self._runner, "usage", None)
        return super()._kv_usage() if usage is None else usage

    def _tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        # Tokenizing takes a second for each megabyte, in a thread that all requests share.
        characters = sum(len(turn.content) for turn in conversation)
        if characters > self._most_characters:
            raise RequestError(
                f"the prompt has {characters} characters; "
                f"this model takes at most {self.settings.max_prompt_tokens} tokens"
            )
        ids = tuple(self._chat.encode(conversation))
        return ids, len(ids)

    def _advance(self, admitted: Sequence[Job]) -> None:
        import torch

        for job in admitted:
            self._begin(job)
        with torch.inference_mode():
            self._compute()
            if self._forgets:
                self._drop_finished()
                self._runner.forget()
                self._forgets = False

    def _compute(self) -> None:
        """Read chunks of prompts and make a step."""
        if self._mixes and self._reading and self._advance_together():
            return
        self._read_prompts()
        if self._ahead:
            self._step_ahead()
        else:
            self._step()

    def _step_ahead(self) -> None:
        """Start the next step, then pass on the tokens of those before it while it runs."""
        started = bool(self._rows) and self._launch()
        while len(self._pending) > started:
            self._settle(*self._pending.popleft())
        self._drop_finished()

    def _launch(self) -> bool:
        """Start a step of all rows; False when it failed."""
        try:
            pending = self._runner.launch([row.sampling for row in self._rows])
        except Exception as error:
            self._fail_batch(error)
            return False
        self._pending.append((pending, list(self._rows)))
        for row in self._rows:
            row.chosen += 1
        return True

    def _settle(self, pending: Pending, rows: Sequence[_Row]) -> None:
        """Wait for tokens and pass them on, but those of rows that had ended before."""
        try:
            tokens = pending.wait()
        except Exception as error:
            self._pending.appendleft((pending, list(rows)))
            self._fail_batch(error)
            return
        for row, token in zip(rows, tokens, strict=True):
            if not row.job.finished:
                self._push(row, token)

    def _begin(self, job: Job) -> None:
        try:
            self._reading.append(_Row(job, self._chat.decoder()))
        except Exception as error:
            self._note_fault(error)
            self._fail(job, _failure())

    def _prove(self) -> None:
        import torch

        if self._rows:
            return  # rows that failed are gone; these have just made tokens
        with torch.inference_mode():
            self._runner.check()

    def _advance_together(self) -> bool:
        """Read chunks of prompts and step the rows at once; False when the runner cannot.

        Nothing has changed then, and one after another only what is at fault fails.
        """
        try:
            parts = self._next_chunks()
            logits = self._runner.advance(
                [row.token for row in self._rows], [(row.sequence, chunk) for row, chunk in parts]
            )
        except Exception as error:
            log_fault(error)
            return False
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

    def _next_chunks(self) -> list[tuple[_Row, Sequence[int]]]:
        """The prompt tokens that are read next, in the order of the requests."""
        left = max(MIXED_TOKENS, MIXED_TOKENS_A_ROW * len(self._rows))
        if not self._rows:
            left *= MIXED_IDLE_CHUNKS
        parts: list[tuple[_Row, Sequence[int]]] = []
        for row in self._reading:
            if not self._reserve(row):
                break
            chunk = row.job.work.token_ids[row.read : row.read + left]
            parts.append((row, chunk))
            left -= len(chunk)
            if left == 0:
                break
        return parts

    def _choose_and_push(self, logits: Any, rows: Sequence[_Row]) -> None:
        """Make the next token of those rows whose prompts were read to their ends."""
        ready = [index for index, row in enumerate(rows) if row.complete]
        if not ready:
            return
        sampling = [rows[index].sampling for index in ready]
        try:
            tokens = self._choose(logits, sampling, at=ready, highest=self._highest())
        except Exception as error:
            self._fail_batch(error)
            for row in rows:
                self._fail(row.job, _failure())
            return
        for index, token in zip(ready, tokens, strict=True):
            self._push(rows[index], token)

    def _highest(self) -> Sequence[int] | None:
        """The largest of the last logits of each row, where the runner looks for them."""
        return self._runner.highest if self._mixes else None

    def _sweep(self) -> None:
        super()._sweep()
        self._drop_finished()

    def _read_prompts(self) -> None:
        """Read a chunk of the prompts that wait, in their order."""
        idle = not self._rows
        size = left = CHUNK_TOKENS[self._runner.device.type] * (IDLE_CHUNKS if idle else 1)
        while self._reading and not (idle and self._rows):
            row = self._reading[0]
            try:
                if not self._reserve(row):
                    break
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

    def _reserve(self, row: _Row) -> bool:
        """See that a prompt has its sequence; False while there is no memory for one."""
        if row.sequence is not None:
            return True
        work = row.job.work
        resumed = self._runner.resume(work.token_ids, work.prompt_tokens + work.max_tokens)
        if resumed is None:
            for other in self._reading:  # all those behind it wait as well
                other.job.starved = other.sequence is None
            return False
        row.job.starved = False
        row.sequence, row.read = resumed
        return True

    def _read(self, row: _Row, chunk: Sequence[int]) -> None:
        """Read a chunk of one prompt; make the first token after the last one."""
        logits = self._runner.extend(row.sequence, chunk)
        row.read += len(chunk)
        if row.complete and self._ahead:
            pending = self._runner.choose_first(row.sequence, logits, row.sampling)
            self._pending.append((pending, [row]))
            row.chosen = 1
        elif row.complete:
            self._push(row, self._choose(logits, [row.sampling], highest=self._highest())[0])

    def _join(self, row: _Row) -> None:
        """Let a row whose prompt was read take part in the steps."""
        sequence, row.sequence = row.sequence, None
        if row.ended:
            return
        self._rows.append(row)
        try:
            self._runner.join(sequence)
        except Exception as error:
            self._fail_batch(error)

    def _step(self) -> None:
        """Make the next token of each row of the batch."""
        if not self._rows:
            return
        try:
            logits = self._runner.step([row.token for row in self._rows])
            sampling = [row.sampling for row in self._rows]
            tokens = self._choose(logits, sampling, highest=self._highest())
        except Exception as error:
            self._fail_batch(error)
            return
        for row, token in zip(self._rows, tokens, strict=True):
            self._push(row, token)
        self._drop_finished()

    def _fail_batch(self, error: Exception) -> None:
        """Fail all rows: whose fault it was is not known, and the cache may be half written."""
        failed, self._rows = self._rows, []
        failed += [row for _, rows in self._pending for row in rows]
        self._pending.clear()
        self._note_fault(error)
        for row in failed:
            self._fail(row.job, _failure())
        self._runner.clear()

    def _push(self, row: _Row, token: int | None) -> None:
        """Pass one token of a row on, or end the row; whatever happens is this row's alone."""
        try:
            self._pass_on(row, token)
        except Exception as error:
            self._fail_row(row, error)

    def _pass_on(self, row: _Row, token: int | None) -> None:
        job = row.job
        if token is None:
            # What was read of its prompt may be no numbers either, and would fail whom it is given.
            self._forgets = True
            error = EngineError("the model's output for this request is not a number")
            self._note_fault(error)
            self._fail(job, error)
            return
        row.token = token
        if self._ends(token, job.work.sampling):
            self._finish(job, "stop", text=job.assembler.push(row.decoder.flush()))
            return
        piece = row.decoder.push(token)
        if job.completion_tokens + 1 >= job.work.max_tokens:
            piece += row.decoder.flush()
        self._emit(job, piece)

    def _ends(self, token: int, sampling: Sampling) -> bool:
        """Return whether a token ends an answer, and is no part of it."""
        ended = token in self._eos and not sampling.ignore_eos
        return ended or token in sampling.stop_token_ids

    def _fail_row(self, row: _Row, error: Exception) -> None:
        self._note_fault(error)
        self._fail(row.job, _failure())

    def _drop_finished(self) -> None:
        """Free the places of rows that have ended, whoever ended them."""
        import torch

        self._reading = [row for row in self._reading if not row.job.finished]
        try:
            with torch.inference_mode():
                for index in reversed(range(len(self._rows))):
                    if self._rows[index].ended:
                        self._leave(index)
        except Exception as error:
            self._fail_batch(error)

    def _leave(self, index: int) -> None:
        self._runner.leave(index)
        last = self._rows.pop()  # it has the number of the row that left now
        if index < len(self._rows):
            self._rows[index] = last


class _Row:
    """One request while the engine works on it.

    Attributes:
        sequence: The runner's cache of the prompt, until the row joins the batch.
        read: Tokens of the prompt that were read.
        token: The last token made.
        chosen: Tokens that a runner has chosen ahead, read or not.
    """

    def __init__(self, job: Job, decoder: TokenDecoder) -> None:
        from triton_hf.sampler import SamplingRow

        self.job = job
        self.decoder = decoder
        self.sampling = SamplingRow(job.work.sampling, job.work.token_ids)
        self.sequence: Any = None
        self.read = 0
        self.token = 0
        self.chosen = 0

    @property
    def ended(self) -> bool:
        """Whether no step has to be made for it: it is over, or will be with what was chosen."""
        return self.job.finished or self.chosen >= self.job.work.max_tokens

    @property
    def complete(self) -> bool:
        """Whether the whole prompt was read."""
        return self.read == len(self.job.work.token_ids)


def _failure() -> EngineError:
    return EngineError("the engine failed on this request")


def load_model(folder: Path, settings: ModelSettings) -> Any:
    """Load a model of transformers from a local folder, safetensors only, no code of its own.

    Raises:
        SettingsError: The folder holds no usable model, or the device is not there or too small.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from triton_hf.placement import place_model

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("parameter 'device' is cuda, but torch sees no NVIDIA GPU here")
    check_weights(settings.weights, device=device)
    # Also beside a GPU: torch would start a thread for each core of the node, whatever the quota.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **LOCAL
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _unusable(settings, error) from None
    model.train(False)
    place_model(model, weights=settings.weights, device=torch.device(device))
    return model


def _unusable(settings: ModelSettings, error: Exception) -> SettingsError:
    first = str(error).strip().splitlines()[0]
    return SettingsError(f"{settings.repo_id} cannot be loaded: {first}")


def _longest(config: Any) -> int | None:
    """Return how many positions a model handles, all with the same angles.

    `longrope` has other angles for all tokens once one is beyond the original length, so keys that
    were kept, and those of other rows, would no longer fit.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    if any(kind.get("rope_type") == "longrope" for kind in kinds):
        stated = [kind.get("original_max_position_embeddings") for kind in kinds]
        stated.append(getattr(config, "original_max_position_embeddings", None))
        longest = min((length for length in (*stated, longest) if length), default=None)
    return longest


def _end_tokens(generation: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for value in (generation.eos_token_id, tokenizer.eos_token_id):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)
