"""Text generation: what every engine of this task shares.

Prompts become token ids here, and token ids become text, so chat templates, limits, stop strings
and end tokens are the same whatever computes the tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from triton_hf.compute.guides import GuideCompiler
from triton_hf.contract import PROMPT, Conversation, Sampling
from triton_hf.engines.base import Engine
from triton_hf.engines.generation_defaults import with_repository_defaults
from triton_hf.engines.job import Event, Job
from triton_hf.engines.schemas import forceable
from triton_hf.engines.tokens import ChatTokenizer, TextAssembler, TokenDecoder
from triton_hf.engines.tools import tool_guide
from triton_hf.errors import EngineError, RequestError, SettingsError, TritonHFError

# Most characters of a prompt, in those of the longest token: normalisation removes some.
CHARACTERS_OF_TOKENS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextWork:
    """One validated row: `encode` makes it and `submit` takes it.

    Attributes:
        token_ids: The prompt after the chat template; empty if the engine has no tokenizer.
        prompt_tokens: Length of the prompt in tokens.
        max_tokens: Most tokens of the answer; prompt and answer fit `max_total_tokens`.
        guide: The compiled grammar that the answer must follow, or None.
    """

    conversation: Conversation
    token_ids: tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    guide: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEvent(Event):
    """News of one answer.

    Attributes:
        text: Text since the last event; may be empty.
        prompt_tokens: Length of the prompt in tokens.
        completion_tokens: Tokens made so far.
        finish_reason: `stop`, `length` or `cancelled` on the last event, else None.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None

    @property
    def last(self) -> bool:
        """Whether no event follows."""
        return self.finish_reason is not None or self.error is not None


class TextJob(Job[TextWork]):
    """One answer while it is made.

    Attributes:
        completion_tokens: Tokens made so far.
        last_token: When the last token came, on the monotonic clock.
        decoder: Turns its tokens into text; None if the engine makes text itself.
    """

    def __init__(self, *, decoder: TokenDecoder | None, **parts: Any) -> None:
        super().__init__(**parts)
        self.last_token: float | None = None
        self.completion_tokens = 0
        self.decoder = decoder
        self.assembler = TextAssembler(self.work.sampling.stop)


class TextEngine(Engine[TextJob]):
    """A queue of answers; a subclass computes their tokens."""

    # Set by `_use_tokenizer`; an engine without a vocabulary leaves it None.
    _chat: ChatTokenizer | None = None
    _end_tokens: frozenset[int] = frozenset()
    _guides: GuideCompiler | None = None
    _vocabulary = 0

    def encode(self, conversation: Conversation, sampling: Sampling) -> TextWork:
        """Turn a conversation into token ids and check it against the limits; any thread.

        Raises:
            RequestError: The prompt is too long, or prompt and `max_tokens` do not fit together.
        """
        sampling = self._with_ends(sampling)
        self._check_bias(sampling)
        if sampling.tools is not None:
            conversation, sampling = self._with_tools(conversation, sampling)
        sampling = forceable(sampling)
        token_ids, length = self._tokenize(conversation)
        limits = self.settings
        if length > limits.max_prompt_tokens:
            raise RequestError(
                f"the prompt has {length} tokens after the chat template; "
                f"this model takes at most {limits.max_prompt_tokens}"
            )
        room = limits.max_total_tokens - length
        if sampling.max_tokens is not None and sampling.max_tokens > room:
            raise RequestError(
                f"parameter 'max_tokens' must be a whole number from 1 to {room} for this prompt "
                f"of {length} tokens ({limits.max_total_tokens} in all), got {sampling.max_tokens}"
            )
        return TextWork(
            conversation=conversation,
            token_ids=token_ids,
            prompt_tokens=length,
            max_tokens=sampling.max_tokens or min(sampling.default_max_tokens, room),
            sampling=sampling,
            guide=self._compile(sampling),
        )

    def _with_ends(self, sampling: Sampling) -> Sampling:
        """Return sampling with every token that ends the answer, and none that cannot come."""
        if self._chat is None or not (sampling.stop or sampling.stop_token_ids):
            return sampling
        # Special tokens never appear as text, so a stop string of one is its token.
        tokens = sampling.stop_token_ids | self._chat.special_ids(sampling.stop)
        known = frozenset(token for token in tokens if token < self._vocabulary)
        return dataclasses.replace(sampling, stop_token_ids=known)

    def _with_tools(
        self, conversation: Conversation, sampling: Sampling
    ) -> tuple[Conversation, Sampling]:
        use = sampling.tools
        if self._chat is None or self._guides is None or use is None:
            raise RequestError("parameter 'tools' is not supported by the engine of this model")
        if conversation[0].role == PROMPT:
            raise RequestError("parameter 'tools' needs a chat: send 'messages', not 'prompt'")
        guide = tool_guide(use, template=self._chat.template)
        first = dataclasses.replace(conversation[0], tools=use)
        return (first, *conversation[1:]), dataclasses.replace(sampling, guide=guide)

    def _compile(self, sampling: Sampling) -> Any:
        if sampling.guide is None:
            return None
        kind, text = sampling.guide
        if self._guides is None:
            raise RequestError(f"parameter '{kind}' is not supported by the engine of this model")
        return self._guides.compile(kind, text)

    def _check_bias(self, sampling: Sampling) -> None:
        if self._chat is None or not sampling.logit_bias:
            return
        highest = max(token for token, _ in sampling.logit_bias)
        if highest >= self._chat.size:
            raise RequestError(
                f"parameter 'logit_bias' names token {highest}, but the vocabulary of this model "
                f"ends with {self._chat.size - 1}"
            )

    # For engines.

    def _use_tokenizer(
        self, tokenizer: Any, *, generation: Any, longest: int | None, vocabulary: int | None = None
    ) -> None:
        """Encode and decode with the tokenizer of a model.

        Args:
            tokenizer: A fast tokenizer of transformers.
            generation: The model's generation defaults: its end tokens, and how it samples where
                the settings do not say.
            longest: Most positions that the model handles, None if it does not say.
            vocabulary: Width of the model's logits, None if that is the tokenizer's.

        Raises:
            SettingsError: The tokenizer is no chat tokenizer, or `max_total_tokens` is too large.
        """
        self._chat = ChatTokenizer(tokenizer)
        self.settings = with_repository_defaults(self.settings, generation)
        self._end_tokens = end_tokens(generation, tokenizer)
        self._vocabulary = max(vocabulary or 0, self._chat.size)
        self._guides = GuideCompiler(
            tokenizer,
            vocabulary=self._vocabulary,
            end_tokens=self._end_tokens,
        )
        if longest is not None and self.settings.max_total_tokens > longest:
            raise SettingsError(
                f"parameter 'max_total_tokens' is {self.settings.max_total_tokens}, but "
                f"{self.settings.repo_id} handles at most {longest}"
            )

    def _tokenize(self, conversation: Conversation) -> tuple[tuple[int, ...], int]:
        """Return the prompt's token ids (may be empty) and its length in tokens."""
        if self._chat is None:
            raise EngineError("this model has no tokenizer")
        characters = sum(len(turn.content) for turn in conversation)
        most = CHARACTERS_OF_TOKENS * self.settings.max_prompt_tokens * self._chat.longest_token
        if characters > most:
            raise RequestError(
                f"the prompt has {characters} characters; "
                f"this model takes at most {self.settings.max_prompt_tokens} tokens"
            )
        ids = tuple(self._chat.encode(conversation))
        return ids, len(ids)

    def _push(self, job: TextJob, tokens: Sequence[int]) -> None:
        """Pass new tokens of an answer on, and end it at an end token, stop string or its length.

        Tokens behind the end are dropped. A fault in the text of one answer fails only that answer.
        """
        try:
            self._pass_on(job, tokens)
        except Exception as error:
            self._note_fault(error)
            self._fail(job, engine_failure())

    def _pass_on(self, job: TextJob, tokens: Sequence[int]) -> None:
        if job.decoder is None:
            raise EngineError("this model has no tokenizer")
        text, count = "", 0
        for token in tokens[: job.work.max_tokens - job.completion_tokens]:
            if self._ends(token, job.work.sampling):
                if count:
                    self._emit(job, text, tokens=count)
                self._finish(job, "stop", text=job.assembler.push(job.decoder.flush()))
                return
            text += job.decoder.push(token)
            count += 1
        if job.completion_tokens + count >= job.work.max_tokens:
            text += job.decoder.flush()
        if count:
            self._emit(job, text, tokens=count)

    def _ends(self, token: int, sampling: Sampling) -> bool:
        """Return whether a token ends an answer without being part of it."""
        ended = token in self._end_tokens and not sampling.ignore_eos
        return ended or token in sampling.stop_token_ids

    def _emit(self, job: TextJob, piece: str, *, tokens: int = 1) -> None:
        """Pass on the text of new tokens; ends the job at a stop string or its length."""
        if job.finished:
            return
        now = time.monotonic()
        job.completion_tokens += tokens
        if job.last_token is None:
            self._metrics.first_token(now - job.submitted, tokens=tokens)
        else:
            self._metrics.next_token(now - job.last_token, tokens=tokens)
        job.last_token = now
        self._note_result()
        shown = job.assembler.push(piece)
        if job.assembler.stopped:
            self._finish(job, "stop", text=shown)
        elif job.completion_tokens >= job.work.max_tokens:
            self._finish(job, "length", text=shown + job.assembler.flush())
        elif shown:
            self._tell(job, _event(job, text=shown))

    def _finish(self, job: TextJob, reason: str, *, text: str = "") -> None:
        """Free the job's place, then send its last event."""
        if not self._release(job):
            return
        now = time.monotonic()
        if reason != "cancelled":
            self._note_result()
            self._note_answer(now - (job.admitted or now))
        if reason == "stop" and not job.assembler.stopped:
            text += job.assembler.flush()
        self._metrics.finished(
            reason,
            duration=now - job.submitted,
            prompt_tokens=job.work.prompt_tokens,
            completion_tokens=job.completion_tokens,
        )
        self._tell(job, _event(job, text=text, finish_reason=reason))

    # What the queue asks of a task.

    def _make_job(self, **parts: Any) -> TextJob:
        return TextJob(decoder=self._chat.decoder() if self._chat else None, **parts)

    def _accepted(self, jobs: Sequence[TextJob]) -> None:
        self._metrics.prompt(sum(job.work.prompt_tokens for job in jobs))

    def _end_cancelled(self, job: TextJob) -> None:
        self._finish(job, "cancelled")

    def _error_event(self, job: TextJob, error: TritonHFError) -> TextEvent:
        return _event(job, error=error)

    def _kv_usage(self) -> float:
        """Count the tokens of running answers against `slots` answers of full length."""
        used = sum(job.work.prompt_tokens + job.completion_tokens for job in self._running)
        return used / (self.settings.slots * self.settings.max_total_tokens)


def _event(job: TextJob, *, text: str = "", **last: Any) -> TextEvent:
    return TextEvent(
        text=text,
        prompt_tokens=job.work.prompt_tokens,
        completion_tokens=job.completion_tokens,
        **last,
    )


def engine_failure() -> EngineError:
    """The error of a request that met a fault of the engine; the log has the cause."""
    return EngineError("the engine failed on this request")


def longest_context(config: Any) -> int | None:
    """Return how many positions a model handles with the same rotary angles; None if unsaid.

    `longrope` changes all angles once a token lies beyond the original length. Cached keys, and
    those of other rows, would no longer fit.
    """
    given = getattr(config, "max_position_embeddings", None)
    longest: int | None = given if isinstance(given, int) and given > 0 else None
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    if any(kind.get("rope_type") == "longrope" for kind in kinds):
        stated = [kind.get("original_max_position_embeddings") for kind in kinds]
        stated.append(getattr(config, "original_max_position_embeddings", None))
        longest = min((length for length in (*stated, longest) if length), default=None)
    return longest


def vocabulary_of(config: Any) -> int | None:
    """Return the width of a model's logits; None if its configuration does not say."""
    config = getattr(config, "text_config", None) or config
    return getattr(config, "vocab_size", None)


def end_tokens(generation: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: of the generation defaults and of the tokenizer."""
    found: set[int] = set()
    for value in (generation.eos_token_id, tokenizer.eos_token_id):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(found)
