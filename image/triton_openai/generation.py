"""Answers of one request: one or several, whole or as a merged stream of pieces."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from triton_openai.catalog import Model
from triton_openai.errors import ApiError
from triton_openai.formats import format_parameters
from triton_openai.tools import tool_parameters
from triton_openai.triton import Piece, Question, Triton
from triton_openai.types import Chat, Sampled

LARGEST_SEED = 2**63 - 1
# Pieces that may wait for a slow client; then Triton's flow control holds the model's answers back.
WAITING_PIECES = 64

# The order in which the model gets them is the order of its errors.
_SCALARS = (
    "max_tokens",
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "seed",
    "ignore_eos",
)
# Sent only when they ask for something: then a model that cannot do it says so.
_UNLESS_ZERO = ("presence_penalty", "frequency_penalty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caller:
    """What a request carries besides its body, for Triton."""

    request_id: str
    trace: Mapping[str, str]


@dataclasses.dataclass(slots=True)
class Usage:
    """Tokens of a request; a prompt counts once, however many answers it has."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def json(self) -> dict[str, int]:
        """Return it as OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def usage_of(answers: Sequence[Piece], *, n: int) -> Usage:
    """Return the usage of answers of which each n in a row are to the same prompt."""
    return Usage(
        prompt_tokens=sum(answer.prompt_tokens for answer in answers[::n]),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
    )


def parameters_of(request: Sampled) -> dict[str, Any]:
    """Return the request parameters that Triton gets for the sampling fields of a request."""
    values = {name: getattr(request, name) for name in _SCALARS}
    values |= {name: getattr(request, name) or None for name in _UNLESS_ZERO}
    if isinstance(request, Chat) and request.max_completion_tokens is not None:
        if request.max_tokens not in (None, request.max_completion_tokens):
            raise ApiError(
                "'max_tokens' and 'max_completion_tokens' differ; send one of them.",
                param="max_tokens",
                code="invalid_value",
            )
        values["max_tokens"] = request.max_completion_tokens
    # vLLM's clients say -1 for all tokens.
    values["top_k"] = 0 if request.top_k == -1 else request.top_k
    # Lists are JSON in a string: parameters are scalars. Empty lists ask for nothing.
    stop = [request.stop] if isinstance(request.stop, str) else request.stop
    values["stop"] = _json(stop or None)
    values["stop_token_ids"] = _json(request.stop_token_ids or None)
    values["logit_bias"] = _json(request.logit_bias or None)
    values |= format_parameters(request.response_format)
    if isinstance(request, Chat):
        values |= tool_parameters(request.tools, request.tool_choice, request.parallel_tool_calls)
    return {name: value for name, value in values.items() if value is not None}


def sent_names(request: Sampled) -> dict[str, str]:
    """Return under which name the client sent a parameter, where it is not Triton's."""
    names = {}
    if isinstance(request, Chat) and request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    if request.response_format is not None:
        names |= dict.fromkeys(("json_schema", "regex", "grammar"), "response_format")
    return names


def _json(value: Any) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def questions(
    *,
    model: Model,
    tensor: str,
    texts: Sequence[str],
    request: Sampled,
    caller: Caller,
) -> list[Question]:
    """Return `request.n` questions for each text, those of the first text first.

    Raises:
        ApiError: The model has no such input.
    """
    if tensor not in model.inputs:
        other = "/v1/completions" if tensor == "messages" else "/v1/chat/completions"
        raise ApiError(
            f"The model '{model.name}' has no input '{tensor}'; use {other}.", param=tensor
        )
    name = model.pieces if request.stream or model.whole is None else model.whole
    parameters = parameters_of(request)
    return [
        Question(
            model=name or model.name,
            tensor=tensor,
            text=text,
            parameters=_seeded(parameters, index),
            names=sent_names(request),
            request_id=caller.request_id,
            trace=caller.trace,
        )
        for text in texts
        for index in range(request.n)
    ]


def _seeded(parameters: dict[str, Any], index: int) -> dict[str, Any]:
    """Give each answer to one prompt another seed, or all would be the same text."""
    if index == 0 or "seed" not in parameters:
        return parameters
    seed = parameters["seed"]
    return {**parameters, "seed": (seed + index) % LARGEST_SEED if seed >= 0 else seed}


async def whole_answers(triton: Triton, model: Model, asked: Sequence[Question]) -> list[Piece]:
    """Return the answers in order; the first error cancels the others.

    Raises:
        ApiError: Triton or the model refused or failed.
    """
    ask = triton.whole if model.whole is not None else _gathered(triton)
    if len(asked) == 1:
        return [await ask(asked[0])]
    tasks = [asyncio.create_task(ask(question)) for question in asked]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _end(tasks)


def _gathered(triton: Triton) -> Any:
    async def ask(question: Question) -> Piece:
        text = []
        last = None
        async with contextlib.aclosing(triton.pieces(question)) as pieces:  # type: ignore[type-var]
            async for last in pieces:
                text.append(last.text)
        if last is None:
            raise ApiError("The model ended without an answer.", status=500, kind="server_error")
        return dataclasses.replace(last, text="".join(text))

    return ask


async def pieces_of(
    triton: Triton, model: Model, asked: Sequence[Question]
) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of all answers as they come, each with the index of its answer.

    A model without a streaming companion answers in one piece.

    Raises:
        ApiError: Triton or the model refused or failed; the other answers are cancelled.
    """
    sources = [_pieces(triton, model, question) for question in asked]
    if len(sources) == 1:
        async with contextlib.aclosing(sources[0]) as source:  # type: ignore[type-var]
            async for piece in source:
                yield 0, piece
        return
    waiting: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue(WAITING_PIECES)
    tasks = [
        asyncio.create_task(_carry(index, source, waiting)) for index, source in enumerate(sources)
    ]
    try:
        left = len(tasks)
        while left:
            index, item = await waiting.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        await _end(tasks)


async def _pieces(triton: Triton, model: Model, question: Question) -> AsyncIterator[Piece]:
    if model.pieces is None:
        yield await triton.whole(question)
        return
    async with contextlib.aclosing(triton.pieces(question)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            yield piece


async def _carry(
    index: int,
    source: AsyncIterator[Piece],
    waiting: asyncio.Queue[tuple[int, Piece | BaseException | None]],
) -> None:
    try:
        async with contextlib.aclosing(source) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                await waiting.put((index, piece))
        await waiting.put((index, None))
    except Exception as error:
        await waiting.put((index, error))


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
