"""Reads one request: tensors to conversations, request parameters to sampling values.

Nothing here knows Triton: rows come as bytes, parameters as a JSON object, and each fault is a
`RequestError` that names the input or the parameter and what it may be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from triton_hf.errors import RequestError
from triton_hf.settings import GenerationDefaults

ROLES = ("system", "user", "assistant")
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_TOKEN_ID = 2**31 - 1
# What /generate adds to the parameters by itself, and what only steers the transport.
TRANSPORT_PARAMETERS = frozenset({"id", "stream"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


Conversation = tuple[Message, ...]
# Role of the only message of a raw prompt, which gets no chat template. No client can send it.
PROMPT = "prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is to be made.

    Attributes:
        max_tokens: Most tokens of the answer; None when the request did not say (the default of
            the model is then cut to what fits).
        top_k: 0 means all tokens.
        temperature: 0 means greedy.
        stop_token_ids: Tokens that end the answer as the model's own end tokens do, whatever
            `ignore_eos` says; an engine without a vocabulary has none of them.
    """

    max_tokens: int | None = None
    default_max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False


def parse_conversations(rows: Mapping[str, Sequence[bytes] | None]) -> list[Conversation]:
    """Turn the input tensors into one conversation per row.

    Args:
        rows: For each of `user_message`, `system_message`, `messages` and `prompt` one value per
            row of the batch, or None where the request does not carry the tensor.

    Raises:
        RequestError: An input is missing, in excess, not UTF-8, empty or not a chat history.
    """
    users, systems, histories = (
        rows.get(name) for name in ("user_message", "system_message", "messages")
    )
    if (prompts := rows.get("prompt")) is not None:
        if any(given is not None for given in (users, systems, histories)):
            raise RequestError(
                "input 'prompt' is the whole text for the model, without a chat template: send it "
                "alone, or send 'user_message' or 'messages' without it"
            )
        return [(Message(role=PROMPT, content=_required_text("prompt", raw)),) for raw in prompts]
    if histories is not None:
        if users is not None or systems is not None:
            raise RequestError(
                "input 'messages' stands for the whole conversation: send it alone, "
                "or send 'user_message' (and 'system_message') without it"
            )
        return [_history(raw) for raw in histories]
    if users is None:
        raise RequestError("input 'user_message' is missing (or send 'messages')")
    conversations = []
    for index, raw in enumerate(users):
        user = _required_text("user_message", raw)
        messages = [Message(role="user", content=user)]
        if systems is not None:
            system = _utf8("system_message", systems[index])
            if system.strip():
                messages.insert(0, Message(role="system", content=system))
        conversations.append(tuple(messages))
    return conversations


def _utf8(name: str, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"input '{name}' is not valid UTF-8: byte {error.start} is 0x{raw[error.start]:02x}"
        ) from None


def _required_text(name: str, raw: bytes) -> str:
    text = _utf8(name, raw)
    if not text.strip():
        raise RequestError(f"input '{name}' is empty")
    return text


def _history(raw: bytes) -> Conversation:
    text = _required_text("messages", raw)
    try:
        turns = json.loads(text)
    except ValueError as error:
        raise RequestError(f"input 'messages' is not JSON: {error}") from None
    except RecursionError:
        raise RequestError("input 'messages' is not JSON: it is nested too deeply") from None
    if not isinstance(turns, list) or not turns:
        raise RequestError(
            "input 'messages' must be a JSON list of "
            '{"role": ..., "content": ...} objects, and not empty'
        )
    messages = tuple(_turn(index, turn) for index, turn in enumerate(turns))
    if messages[-1].role != "user":
        raise RequestError("the last entry of input 'messages' must have the role 'user'")
    return messages


def _turn(index: int, turn: Any) -> Message:
    where = f"entry {index} of input 'messages'"
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise RequestError(f"{where} must be an object with 'role' and 'content', nothing else")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise RequestError(f"{where} has an unknown role; use one of {', '.join(ROLES)}")
    if role == "system" and index > 0:
        raise RequestError(f"{where} has the role 'system', which only the first entry may have")
    # An assistant may have said nothing.
    if not isinstance(content, str) or not (content.strip() or role == "assistant"):
        raise RequestError(f"{where} must have a 'content' that is a string and not empty")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{where} has a 'content' that is not valid Unicode") from None
    return Message(role=role, content=content)


def parse_sampling(parameters: str | bytes, defaults: GenerationDefaults) -> Sampling:
    """Turn Triton's request parameters (a JSON object) into sampling values.

    Raises:
        RequestError: A parameter is unknown, or its value has the wrong type or range.
    """
    given = json.loads(parameters) if parameters else {}
    values: dict[str, Any] = {
        "default_max_tokens": defaults.max_tokens,
        "temperature": defaults.temperature,
        "top_p": defaults.top_p,
        "top_k": defaults.top_k,
        "repetition_penalty": defaults.repetition_penalty,
        "seed": defaults.seed,
    }
    for name, value in given.items():
        if name in TRANSPORT_PARAMETERS:
            continue
        reader = _READERS.get(name)
        if reader is None:
            raise RequestError(
                f"unknown parameter '{name}'; this model knows {', '.join(sorted(_READERS))}"
            )
        values[name] = reader(name, value)
    return Sampling(**values)


def wants_stream(parameters: str | bytes) -> bool:
    """Whether a request to the streaming model asks for tokens (the default) or one answer.

    Raises:
        RequestError: `stream` is neither true nor false.
    """
    given = json.loads(parameters) if parameters else {}
    return _boolean("stream", given.get("stream", True))


def _integer(low: int, high: int) -> Any:
    def read(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise RequestError(
                f"parameter '{name}' must be a whole number from {low} to {high}, "
                f"got {_shown(value)}"
            )
        return value

    return read


def _number(low: float, high: float, *, above: bool = False) -> Any:
    start = "above" if above else "from"

    def read(name: str, value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and math.isfinite(value) and (value > low if above else value >= low)
        if not good or value > high:
            raise RequestError(
                f"parameter '{name}' must be a number {start} {low:g} to {high:g}, "
                f"got {_shown(value)}"
            )
        return float(value)

    return read


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"parameter '{name}' must be true or false, got {_shown(value)}")
    return value


def _stop(name: str, value: Any) -> tuple[str, ...]:
    strings = _listed(value)
    good = isinstance(strings, list) and 1 <= len(strings) <= MAX_STOP_STRINGS
    if not good or not all(isinstance(item, str) and item for item in strings):
        raise RequestError(
            f"parameter '{name}' must be a string, or a JSON list of 1 to {MAX_STOP_STRINGS} "
            f"strings in a string, none of them empty; got {_shown(value)}"
        )
    return tuple(strings)


def _stop_token_ids(name: str, value: Any) -> frozenset[int]:
    numbers = _listed(value)
    good = isinstance(numbers, list) and 1 <= len(numbers) <= MAX_STOP_TOKEN_IDS
    if not good or not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in numbers):
        raise RequestError(
            f"parameter '{name}' must be a whole number from 0 to {MAX_TOKEN_ID}, or a JSON list "
            f"of 1 to {MAX_STOP_TOKEN_IDS} of them in a string; got {_shown(value)}"
        )
    return frozenset(numbers)


def _listed(value: Any) -> Any:
    """Return the list that a value stands for: parameters are scalars, so JSON in a string."""
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return [value]


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_READERS: dict[str, Any] = {
    "max_tokens": _integer(1, 1_048_576),
    "temperature": _number(0.0, 2.0),
    "top_p": _number(0.0, 1.0, above=True),
    "top_k": _integer(0, 1_000_000),
    "repetition_penalty": _number(0.0, 2.0, above=True),
    "seed": _integer(0, 2**63 - 1),
    "stop": _stop,
    "stop_token_ids": _stop_token_ids,
    "ignore_eos": _boolean,
}
