"""OpenAI's requests as types: what `/v1/chat/completions` and `/v1/completions` take.

Ranges of sampling values are the model's to check; here a field only has the right type.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec

from triton_openai.errors import ApiError
from triton_openai.fields import NOT_DONE_CHAT, NOT_DONE_COMPLETIONS, Fields

MAX_ANSWERS = 64
# Parameters of a gRPC request are 64-bit.
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Answers = Annotated[int, msgspec.Meta(ge=1, le=MAX_ANSWERS)]


class Strict(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of all parts of a request."""


class StreamOptions(Strict, frozen=True, kw_only=True):
    """`stream_options`; obfuscation pads events against traffic analysis, and is never needed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(Strict, frozen=True, kw_only=True):
    """What both kinds of requests share."""

    model: str
    max_tokens: Whole | None = None
    n: Answers = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[str, float] = {}
    seed: Whole | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Whole] | None = None
    ignore_eos: bool | None = None
    response_format: dict[str, Any] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class Chat(Sampled, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Whole | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    @property
    def calls(self) -> bool:
        """Whether answers may hold tool calls."""
        return bool(self.tools) and self.tool_choice != "none"


class Completion(Sampled, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | Whole | list[Whole]]
    echo: bool = False


Request = TypeVar("Request", Chat, Completion)
Struct = TypeVar("Struct", bound=Strict)

_NOT_DONE = {Chat: NOT_DONE_CHAT, Completion: NOT_DONE_COMPLETIONS}
_FIELDS = {
    kind: Fields(done=frozenset(kind.__struct_fields__), not_done=not_done)
    for kind, not_done in _NOT_DONE.items()
}
# msgspec ends its errors with the path of the value: "... - at `$.stop[...]`".
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_EXTRA = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


def read_request(body: bytes, kind: type[Request]) -> Request:
    """Read the body of a request.

    Raises:
        ApiError: It is not JSON, or a field is missing, unknown, not done or of the wrong type.
    """
    request = converted(_FIELDS[kind].kept(decoded(body)), kind)
    if request.stream_options is not None and not request.stream:
        raise ApiError(
            "'stream_options' needs 'stream': true.", param="stream_options", code="invalid_value"
        )
    return request


def decoded(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        ApiError: It is not one.
    """
    try:
        values = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(f"The body is not valid JSON: {error}.") from None
    except (RecursionError, UnicodeDecodeError):
        raise ApiError(
            "The body is not valid JSON: it is nested too deeply, or not UTF-8."
        ) from None
    if not isinstance(values, dict):
        raise ApiError("The body must be a JSON object.")
    return values


def converted(values: dict[str, Any], kind: type[Struct]) -> Struct:
    """Return the values of a request as its type.

    Raises:
        ApiError: A field is missing or of the wrong type; `param` is its path.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None


def _wrong_type(text: str) -> ApiError:
    path = _PATH.search(text)
    said, where = _PATH.sub("", text), path[1] if path else ""
    if missing := _MISSING.match(said):
        name = f"{where}.{missing[1]}" if where else missing[1]
        return ApiError(f"'{name}' is missing.", param=name, code="missing_required_parameter")
    if extra := _EXTRA.match(said):
        name = f"{where}.{extra[1]:.60}" if where else f"{extra[1]:.60}"
        return ApiError(f"Unknown field '{name}'.", param=name, code="unknown_parameter")
    return ApiError(
        f"'{where}' is wrong: {said[:1].lower()}{said[1:]}.",
        param=where or None,
        code="invalid_type",
    )
