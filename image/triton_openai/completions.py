"""`/v1/completions`: prompts without a chat template, and the answers back."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from triton_openai.catalog import Model
from triton_openai.errors import ApiError
from triton_openai.generation import Usage, usage_of
from triton_openai.triton import Piece
from triton_openai.types import MAX_ANSWERS, Completion


def prompts_of(request: Completion) -> list[str]:
    """Return the prompts of a request.

    Raises:
        ApiError: There is none, there are too many, or one is given as token ids.
    """
    given = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not given:
        raise ApiError("'prompt' is empty.", param="prompt", code="invalid_value")
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    if len(texts) < len(given):
        raise ApiError(
            "'prompt' as token ids is not supported by this server; send text.",
            param="prompt",
            code="unsupported_parameter",
        )
    if len(texts) * request.n > MAX_ANSWERS:
        raise ApiError(
            f"'prompt' and 'n' ask for {len(texts) * request.n} answers; "
            f"one request may ask for {MAX_ANSWERS}.",
            param="prompt",
            code="invalid_value",
        )
    return texts


class CompletionShape:
    """Answers of one request in the shape of completions."""

    def __init__(self, request: Completion, model: Model) -> None:
        """Fix the id and the time that all parts of the answer carry."""
        self._request = request
        self._prompts = prompts_of(request)
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion"}
        self._tail = {
            "created": int(time.time()),
            "model": model.name,
            "system_fingerprint": model.fingerprint,
        }

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choices = [
            _choice(index, self._echo(index) + answer.text, answer.finish_reason)
            for index, answer in enumerate(answers)
        ]
        usage = usage_of(answers, n=self._request.n).json()
        return {**self._head, **self._tail, "choices": choices, "usage": usage}

    async def chunks(
        self, pieces: AsyncIterator[tuple[int, Piece]]
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the chunks of a stream, those that belong together at once."""
        last: dict[int, Piece] = {}
        async for index, piece in pieces:
            text = piece.text if index in last else self._echo(index) + piece.text
            last[index] = piece
            if text or piece.finish_reason:
                yield [self._parts([_choice(index, text, piece.finish_reason or None)])]
        if self._request.include_usage:
            ordered = [last[index] for index in sorted(last)]
            yield [self._parts([], usage_of(ordered, n=self._request.n))]

    def _echo(self, index: int) -> str:
        return self._prompts[index // self._request.n] if self._request.echo else ""

    def _parts(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        chunk = {**self._head, **self._tail, "choices": choices}
        if self._request.include_usage:
            chunk["usage"] = usage.json() if usage else None
        return chunk


def _choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
