"""Embeddings and scores: one forward pass answers a batch of texts.

A batch is the oldest request and those whose length is next to its own, within `batch_tokens`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.base import Engine
from triton_hf.engines.pooling_job import Options, PoolingEvent, PoolingJob, PoolingWork
from triton_hf.errors import EngineError, RequestError, SettingsError, TritonHFError
from triton_hf.models.files import json_reader, unservable
from triton_hf.models.registry import CLASSIFY, EMBED, RANK
from triton_hf.models.sentence import ABOUT, labels, read_sentence_model, score_activation
from triton_hf.runtime import log
from triton_hf.store.layout import locate_weights

if TYPE_CHECKING:
    from triton_hf.compute.pooling import Network

# On a CPU a forward pass of more tokens is no faster per token, and the heartbeat waits for it.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
# Tokens of a forward pass, padding included, for each token that is none.
MOST_PADDING = 1.2
# Where neither the repository nor the model says how long a text may be.
DEFAULT_INPUT_TOKENS = 2048


class PoolingEngine(Engine[PoolingJob]):
    """Computes `embed`, `rank` and `classify` with transformers, on a CPU or a GPU."""

    def _load(self) -> None:
        apply_cpu_limits()  # before torch is imported
        start = time.monotonic()
        folder = locate_weights(repo_id=self.settings.repo_id, revision=self.settings.revision)
        self._open(folder)
        seconds = time.monotonic() - start
        log(f"{self.settings.repo_id}: ready on {self._network.device} after {seconds:.1f} s")

    def _open(self, folder: Path) -> None:
        """Serve the model of a folder.

        Raises:
            SettingsError: The model does not fit the settings, or this engine.
        """
        from triton_hf.compute.loading import unusable
        from triton_hf.compute.model_files import load_tokenizer
        from triton_hf.engines.text_encoder import TextEncoder

        read = json_reader(folder)
        self._labels: list[str] = []
        self._activation = "Identity"
        try:
            if why := unservable(read, self.settings.task):
                raise ValueError(f"it {why}")
            tokenizer = load_tokenizer(folder)
            self._sentence = read_sentence_model(read) if self._embeds else None
            if self._sentence is None:
                config = read("config.json")
                self._labels = labels(config)
                self._activation = score_activation(config, read(ABOUT) or {})
            self._network = self._make_network(folder)
        except (OSError, ValueError) as error:
            raise unusable(self.settings, error) from None
        self._encoder = TextEncoder(
            tokenizer,
            longest=self._longest(tokenizer),
            vocabulary=self._network.vocabulary,
            lowers=self._sentence is not None and self._sentence.lowers,
        )
        self._prove()
        self._check_defaults()

    @property
    def _embeds(self) -> bool:
        return self.settings.task == EMBED.name

    def _make_network(self, folder: Path) -> Network:
        from triton_hf.compute.pooling import EmbeddingNetwork, ScoringNetwork

        if self._sentence is not None:
            return EmbeddingNetwork(folder, self.settings, self._sentence)
        return ScoringNetwork(folder, self.settings)

    def _longest(self, tokenizer: Any) -> int:
        """Return the longest input in tokens.

        Raises:
            SettingsError: The settings want more than the model has positions for.
        """
        wanted, most = self.settings.max_input_tokens, self._network.longest
        if wanted is not None:
            if most is not None and wanted > most:
                raise SettingsError(
                    f"parameter 'max_input_tokens' is {wanted}, but {self.settings.repo_id} "
                    f"handles at most {most}"
                )
            return wanted
        stated = self._sentence.max_tokens if self._sentence is not None else None
        # Tokenizers without a limit say 10^30.
        of_tokenizer = min(int(tokenizer.model_max_length), 10**9)
        found = [stated or of_tokenizer, most or 10**9]
        return min(found) if min(found) < 10**9 else DEFAULT_INPUT_TOKENS

    def _check_defaults(self) -> None:
        try:
            self.check(self.settings.pooling)
        except RequestError as error:
            raise SettingsError(str(error)) from None

    # For adapters.

    def check(self, options: Options) -> None:
        """Check what a request asks for against the model.

        Raises:
            RequestError: The model cannot do it; the text names the parameter.
        """
        if options.prompt_name is not None:
            self._prompt(options)
        if self._embeds and options.dimensions is not None:
            self._check_dimensions(options.dimensions)

    def encode(self, row: Mapping[str, Any], options: Options) -> PoolingWork:
        """Tokenize the inputs of one row; any thread.

        Args:
            row: Value by the name of the input; text, and a list of numbers for `tokens`.
            options: What the request asks for.

        Raises:
            RequestError: The text is too long.
        """
        if "tokens" in row:
            encoded = self._encoder.of_ids(row["tokens"], truncate=options.truncate)
        elif self.settings.task == RANK.name:
            encoded = self._encoder.encode(
                row["query"], pair=row["text"], truncate=options.truncate
            )
        else:
            encoded = self._encoder.encode(
                row["text"],
                pair=row.get("text_pair"),
                prompt=self._prompt(options),
                truncate=options.truncate,
            )
        return PoolingWork(encoded=encoded, options=options)

    def _prompt(self, options: Options) -> str:
        if self._sentence is None:
            return ""
        prompts = self._sentence.prompts
        name = options.prompt_name or self._sentence.default_prompt
        if name is None:
            return ""
        if name not in prompts:
            raise RequestError(
                f"parameter 'prompt_name' must be one of {', '.join(sorted(prompts)) or 'none'}, "
                f"got '{name:.60}'"
            )
        return prompts[name]

    def _check_dimensions(self, wanted: int) -> None:
        if wanted == self._width:
            return
        allowed = self._sentence.dimensions if self._sentence is not None else None
        if self.settings.pooling.matryoshka is not None:
            allowed = () if self.settings.pooling.matryoshka else None
        if allowed is None:
            raise RequestError(
                f"parameter 'dimensions' must be {self._width}, got {wanted}: this model has no "
                "Matryoshka dimensions ('matryoshka: true' in its parameters says that it has)"
            )
        if allowed and wanted not in allowed:
            raise RequestError(
                f"parameter 'dimensions' must be one of {', '.join(map(str, allowed))}, "
                f"got {wanted}"
            )
        if wanted > self._width:
            raise RequestError(
                f"parameter 'dimensions' must be a whole number from 1 to {self._width}, "
                f"got {wanted}"
            )

    # For the engine's thread.

    def _advance(self, admitted: Sequence[PoolingJob]) -> bool:
        jobs = self._next_batch()
        self._metrics.batch(
            rows=len(jobs), tokens=len(jobs) * max(job.work.prompt_tokens for job in jobs)
        )
        try:
            rows = self._compute(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._note_fault(error)
                self._fail(jobs[0], EngineError("the engine failed on this request"))
            else:
                self._one_by_one(jobs)
            return True
        for job, values in zip(jobs, rows, strict=True):
            self._finish(job, values)
        return True

    def _next_batch(self) -> list[PoolingJob]:
        """The oldest job, and others of about its length that fit beside it."""
        first, *others = self._running
        if not self._network.batches:
            return [first]
        own = first.work.prompt_tokens
        others.sort(key=lambda job: abs(job.work.prompt_tokens - own))
        budget = self.settings.batch_tokens or BATCH_TOKENS[self._network.device.type]
        batch, longest, tokens = [first], own, own
        for job in others:
            longest = max(longest, job.work.prompt_tokens)
            tokens += job.work.prompt_tokens
            padded = (len(batch) + 1) * longest
            if padded > budget or padded > MOST_PADDING * tokens:
                break
            batch.append(job)
        return batch

    def _one_by_one(self, jobs: Sequence[PoolingJob]) -> None:
        """Compute each row of a batch alone, so that only the row at fault fails."""
        for job in jobs:
            try:
                (values,) = self._compute([job])
            except Exception as error:
                self._note_fault(error)
                self._fail(job, EngineError("the engine failed on this request"))
            else:
                self._finish(job, values)
            self._sweep()

    def _compute(self, jobs: Sequence[PoolingJob]) -> Any:
        import torch

        with torch.inference_mode():
            return self._network.compute([job.work.encoded for job in jobs])

    def _prove(self) -> None:
        """Compute one text, which also says how wide the output is."""
        import torch

        from triton_hf.compute.pooling import is_finite

        with torch.inference_mode():
            values = self._network.compute([self._encoder.encode("a")])
        self._width = int(values.shape[1])
        if not is_finite(values):
            raise SettingsError(
                f"{self.settings.repo_id} cannot be served: its output is not a number"
            )
        if self._labels and len(self._labels) != self._width:
            raise SettingsError(
                f"{self.settings.repo_id} cannot be served: it has {self._width} outputs and "
                f"{len(self._labels)} labels (id2label in config.json)"
            )

    def _finish(self, job: PoolingJob, values: Any) -> None:
        from triton_hf.compute.pooling import is_finite

        if job.finished:
            return
        if not is_finite(values):
            error = EngineError("the model's output for this request is not a number")
            self._note_fault(error)
            self._fail(job, error)
            return
        event = self._event(job, values)
        if not self._release(job):
            return
        now = time.monotonic()
        self._note_result()
        self._note_answer(now - (job.admitted or now))
        self._metrics.finished(
            "stop",
            duration=now - job.submitted,
            prompt_tokens=job.work.prompt_tokens,
            completion_tokens=0,
        )
        self._tell(job, event)

    def _event(self, job: PoolingJob, values: Any) -> PoolingEvent:
        from triton_hf.compute.pooling import activate

        options, tokens = job.work.options, job.work.prompt_tokens
        if self._sentence is not None:
            if options.dimensions is not None:
                values = values[: options.dimensions]
                if self._sentence.normalizes:
                    values = values / max(float((values**2).sum() ** 0.5), 1e-12)
            return PoolingEvent(values=tuple(values.tolist()), prompt_tokens=tokens)
        if not options.raw_scores:
            values = activate(values, self._activation)
        if self.settings.task != CLASSIFY.name:
            return PoolingEvent(values=tuple(values.tolist()), prompt_tokens=tokens)
        best = sorted(range(len(values)), key=lambda at: -float(values[at]))
        best = best[: options.top_labels or None]
        return PoolingEvent(
            values=tuple(float(values[at]) for at in best),
            labels=tuple(self._labels[at] for at in best),
            prompt_tokens=tokens,
        )

    # What the queue asks of a task.

    def _make_job(self, **parts: Any) -> PoolingJob:
        return PoolingJob(**parts)

    def _accepted(self, jobs: Sequence[PoolingJob]) -> None:
        self._metrics.prompt(sum(job.work.prompt_tokens for job in jobs))

    def _end_cancelled(self, job: PoolingJob) -> None:
        if self._release(job):
            self._metrics.finished("cancelled", duration=0.0, prompt_tokens=0, completion_tokens=0)
            self._tell(job, PoolingEvent())

    def _error_event(self, job: PoolingJob, error: TritonHFError) -> PoolingEvent:
        return PoolingEvent(error=error)
