"""An engine on transformers: requests that wait together are one batch for `generate`.

Correct before fast: a batch runs to its end before the next one starts, sampling uses the
processors of transformers, and each row has its own parameters, seed and end.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triton_hf.chat import ChatTokenizer, TokenDecoder
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engine import Engine, Job
from triton_hf.errors import SettingsError
from triton_hf.requests import Conversation, Sampling
from triton_hf.settings import ModelSettings
from triton_hf.store import locate_weights


class TransformersEngine(Engine):
    """Answers with a causal language model from the Hub."""

    def _load(self) -> None:
        apply_cpu_limits()  # before torch is imported
        start = time.monotonic()
        folder = locate_weights(repo_id=self.settings.repo_id, revision=self.settings.revision)
        self._model, tokenizer = load_model(folder, self.settings)
        self._chat = ChatTokenizer(tokenizer)
        self._device = next(self._model.parameters()).device
        self._eos = _end_tokens(self._model, tokenizer)
        longest = getattr(self._model.config, "max_position_embeddings", None)
        if longest is not None and self.settings.max_total_tokens > longest:
            raise SettingsError(
                f"parameter 'max_total_tokens' is {self.settings.max_total_tokens}, but "
                f"{self.settings.repo_id} handles at most {longest}"
            )
        seconds = time.monotonic() - start
        print(
            f"{self.settings.repo_id}: ready on {self._device} as {self._model.dtype} "
            f"after {seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )

    def _tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        ids = tuple(self._chat.encode(conversation))
        return ids, len(ids)

    def _free_slots(self) -> int:
        # generate() cannot take rows in once it runs.
        return 0 if self._running else self.settings.slots

    def _advance(self, admitted: Sequence[Job]) -> None:
        import torch

        rows = [_Row(job, self._chat.decoder(), self._device) for job in admitted]
        if not rows:
            return
        ids, mask = _left_padded([row.job.work.token_ids for row in rows], self._device)
        step = _BatchStep(rows=rows, engine=self, eos=self._eos)
        with torch.inference_mode():
            self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=[step.choose],
                stopping_criteria=[step.ended],
                do_sample=False,
                max_new_tokens=max(row.job.work.max_tokens for row in rows),
                eos_token_id=None,
                pad_token_id=0,
                use_cache=True,
            )

    def push_token(self, row: _Row, token: int) -> None:
        """Pass one token of a row on, or end the row."""
        job = row.job
        if token in self._eos and not job.work.sampling.ignore_eos:
            self._finish(job, "stop", text=job.assembler.push(row.decoder.flush()))
            return
        piece = row.decoder.push(token)
        if job.completion_tokens + 1 >= job.work.max_tokens:
            piece += row.decoder.flush()
        self._emit(job, piece)

    def between_tokens(self) -> bool:
        """Look after cancelled jobs; return whether the engine is to stop."""
        self._sweep()
        return self._stopping


class _Row:
    """One row of a running batch."""

    def __init__(self, job: Job, decoder: TokenDecoder, device: Any) -> None:
        self.job = job
        self.decoder = decoder
        self.prompt_length = len(job.work.token_ids)
        self.sampler = RowSampler(job.work.sampling, device)


class _BatchStep:
    """What `generate` calls for each token: choose it, pass it on, say which rows have ended."""

    def __init__(
        self, *, rows: list[_Row], engine: TransformersEngine, eos: frozenset[int]
    ) -> None:
        self._rows = rows
        self._engine = engine
        self._eos = eos

    def choose(self, input_ids: Any, scores: Any) -> Any:
        """Logits processor: leave one token per row, so that greedy picks the sampled one."""
        import torch

        tokens = []
        width = input_ids.shape[1]
        for index, row in enumerate(self._rows):
            if row.job.finished:
                tokens.append(0)
                continue
            # Padding is on the left: the row's own tokens are the last ones.
            own = row.prompt_length + row.job.completion_tokens
            history = input_ids[index : index + 1, width - own :]
            tokens.append(row.sampler.choose(history, scores[index : index + 1]))
        chosen = torch.full_like(scores, float("-inf"))
        column = torch.tensor(tokens, device=scores.device).unsqueeze(1)
        return chosen.scatter_(1, column, 0.0)

    def ended(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """Stopping criterion: pass the new tokens on; True for rows that need no more."""
        import torch

        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.job.finished:
                self._engine.push_token(row, token)
        stop = self._engine.between_tokens()
        ended = [stop or row.job.finished for row in self._rows]
        return torch.tensor(ended, device=input_ids.device, dtype=torch.bool)


class RowSampler:
    """Chooses the tokens of one row with the processors of transformers."""

    def __init__(self, sampling: Sampling, device: Any) -> None:
        """Build the chain for these values; the order is that of transformers itself."""
        import torch
        from transformers import (
            LogitsProcessorList,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._greedy = sampling.temperature == 0
        self._chain = LogitsProcessorList()
        if sampling.repetition_penalty != 1.0:
            self._chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._greedy:
            if sampling.temperature != 1.0:
                self._chain.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k > 0:
                self._chain.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1.0:
                self._chain.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, history: Any, scores: Any) -> int:
        """Return the next token.

        Args:
            history: The row's tokens so far, shape [1, length].
            scores: Logits, shape [1, vocabulary].
        """
        import torch

        logits = self._chain(history, scores.float())
        if self._greedy:
            return int(logits.argmax())
        weights = torch.softmax(logits, dim=-1)
        return int(torch.multinomial(weights, 1, generator=self._generator))


def load_model(folder: Path, settings: ModelSettings) -> tuple[Any, Any]:
    """Load model and tokenizer from a local folder, safetensors only, no code of the repository.

    Raises:
        SettingsError: The folder holds no usable model, or the device is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("parameter 'device' is cuda, but torch sees no NVIDIA GPU here")
    if device == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise SettingsError(f"{settings.repo_id} cannot be loaded: {first}") from None
    model.to(torch.device(device))  # type: ignore[arg-type]  # its wrapper hides the signature
    model.train(False)
    return model, tokenizer


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cores, round(quota))) if quota else cores


def _cgroup_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        number = int((folder / "cpu.cfs_quota_us").read_text("utf-8"))
        return None if number < 0 else number / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for value in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)


def _left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Token ids and attention mask, both [rows, longest prompt], with padding on the left."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros((len(prompts), width), dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    return ids, mask
