"""`/v1/chat/completions`: its messages to a model's `messages`, and the answers back."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from triton_openai.catalog import Model
from triton_openai.errors import ApiError
from triton_openai.generation import Usage, usage_of
from triton_openai.tools import CallReader
from triton_openai.triton import Piece
from triton_openai.types import Chat

ROLES = ("system", "developer", "user", "assistant", "tool")
_EXTRA = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}
_NAMELESS: tuple[Any, ...] = (None, [])


def messages_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the chat history as JSON for the input `messages` of a model.

    The order of the roles is the model's to check.

    Raises:
        ApiError: A message has a field, a role or a content part that is not done; `param` is its
            path.
    """
    turns = [_turn(f"messages[{index}]", message) for index, message in enumerate(messages)]
    return msgspec.json.encode(turns).decode()


def _turn(path: str, message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    extra = {}
    for name, value in message.items():
        if name in ("role", "content") or value in _NAMELESS:
            continue
        if name not in _EXTRA.get(str(role), ()):
            raise _not_done(f"{path}.{name:.60}")
        extra[name] = value
    if role == "function":
        raise _not_done(f"{path}.role", f"the role '{role}'")
    if role not in ROLES:
        raise ApiError(
            f"'{path}.role' must be one of {', '.join(ROLES)}.",
            param=f"{path}.role",
            code="invalid_value",
        )
    text = _content(f"{path}.content", message.get("content"))
    if text is None and role == "assistant":
        text = ""
    if text is None:
        raise ApiError(f"'{path}.content' is missing.", param=f"{path}.content")
    return {"role": "system" if role == "developer" else str(role), "content": text, **extra}


def _content(path: str, content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(
            f"'{path}' must be a string or a list of parts of type 'text'.",
            param=path,
            code="invalid_type",
        )
    # As vLLM joins them.
    return "\n".join(_part(f"{path}[{index}]", part) for index, part in enumerate(content))


def _part(path: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise ApiError(f"'{path}' must be an object with a 'type'.", param=path)
    if kind != "text":
        raise _not_done(path, f"a content part of type '{kind:.40}'")
    for name in part:
        if name not in ("type", "text"):
            raise _not_done(f"{path}.{name:.60}")
    text = part.get("text")
    if not isinstance(text, str):
        raise ApiError(f"'{path}.text' must be a string.", param=f"{path}.text")
    return text


def _not_done(path: str, what: str = "") -> ApiError:
    words = (
        f"'{path}': {what} is not supported by this server."
        if what
        else (f"'{path}' is not supported by this server; leave it out.")
    )
    return ApiError(words, param=path, code="unsupported_parameter")


class ChatShape:
    """Answers of one request in the shape of chat completions."""

    def __init__(self, request: Chat, model: Model) -> None:
        """Fix the id and the time that all parts of the answer carry."""
        self._request = request
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        self._tail = {"model": model.name, "system_fingerprint": model.fingerprint}

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = usage_of(answers, n=self._request.n).json()
        return {
            **self._head,
            "object": "chat.completion",
            **self._tail,
            "choices": choices,
            "usage": usage,
        }

    def _choice(self, index: int, answer: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        reason = answer.finish_reason
        if self._request.calls:
            text, calls = CallReader().push(answer.text, last=True)
            if calls:
                for call in calls:
                    del call["index"]
                message |= {"content": text or None, "tool_calls": calls}
                reason = "tool_calls" if reason == "stop" else reason
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    async def chunks(
        self, pieces: AsyncIterator[tuple[int, Piece]]
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the chunks of a stream, those that belong together at once."""
        begun = False
        last: dict[int, Piece] = {}
        readers: dict[int, CallReader] = {}
        async for index, piece in pieces:
            last[index] = piece
            chunks = []
            if not begun:
                begun = True
                first = {"role": "assistant", "content": "", "refusal": None}
                chunks = [self._chunk(each, first) for each in range(self._request.n)]
            text, reason = piece.text, piece.finish_reason
            calls: list[dict[str, Any]] = []
            if self._request.calls:
                reader = readers.setdefault(index, CallReader())
                text, calls = reader.push(piece.text, last=bool(reason))
                reason = "tool_calls" if reason == "stop" and reader.count else reason
            if text:
                chunks.append(self._chunk(index, {"content": text}))
            chunks += [self._chunk(index, {"tool_calls": [call]}) for call in calls]
            if reason:
                chunks.append(self._chunk(index, {}, reason))
            if chunks:
                yield chunks
        if self._request.include_usage:
            ordered = [last[index] for index in sorted(last)]
            yield [self._parts([], usage_of(ordered, n=self._request.n))]

    def _chunk(
        self, index: int, delta: Mapping[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._parts([choice])

    def _parts(self, choices: list[dict[str, Any]], usage: Usage | None = None) -> dict[str, Any]:
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            **self._tail,
            "choices": choices,
        }
        if self._request.include_usage:
            chunk["usage"] = usage.json() if usage else None
        return chunk
