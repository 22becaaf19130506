"""Reads one request: tensors to conversations, request parameters to sampling values.

Nothing here knows Triton: rows come as bytes, parameters as a JSON object, and each fault is a
`RequestError` that names the input or the parameter and what it may be.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from triton_hf.contract import PROMPT, Conversation, Message, Sampling
from triton_hf.errors import RequestError
from triton_hf.models.parameters import Flag, Parameter
from triton_hf.models.registry import TEXT
from triton_hf.models.settings import GenerationDefaults
from triton_hf.serving.tools import parse_tools, turn_extra

ROLES = ("system", "user", "assistant", "tool")
# What /generate adds to the parameters by itself, and what only steers the transport.
TRANSPORT_PARAMETERS = frozenset({"id", "stream"})
GUIDES = ("json_schema", "regex", "grammar", "structural_tag")
_STREAM = Parameter(name="stream", kind=Flag(), meaning="tokens as they come, or one answer")


def parse_conversations(rows: Mapping[str, Sequence[bytes] | None]) -> list[Conversation]:
    """Turn the input tensors into one conversation per row.

    Args:
        rows: For each of `user_message`, `system_message`, `messages` and `prompt` one value per
            row of the batch, or None if the request does not carry the tensor.

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
        return [(Message(role=PROMPT, content=required_text("prompt", raw)),) for raw in prompts]
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
        user = required_text("user_message", raw)
        messages = [Message(role="user", content=user)]
        if systems is not None:
            system = utf8("system_message", systems[index])
            if system.strip():
                messages.insert(0, Message(role="system", content=system))
        conversations.append(tuple(messages))
    return conversations


def utf8(name: str, raw: bytes) -> str:
    """Return the text of an input.

    Raises:
        RequestError: It is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"input '{name}' is not valid UTF-8: byte {error.start} is 0x{raw[error.start]:02x}"
        ) from None


def required_text(name: str, raw: bytes) -> str:
    """Return the text of an input that must not be empty.

    Raises:
        RequestError: It is not UTF-8, or empty.
    """
    text = utf8(name, raw)
    if not text.strip():
        raise RequestError(f"input '{name}' is empty")
    return text


def _history(raw: bytes) -> Conversation:
    text = required_text("messages", raw)
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
    if messages[-1].role not in ("user", "tool"):
        raise RequestError("the last entry of input 'messages' must have the role 'user' or 'tool'")
    return messages


def _turn(index: int, turn: Any) -> Message:
    where = f"entry {index} of input 'messages'"
    if not isinstance(turn, dict) or not set(turn) >= {"role", "content"}:
        raise RequestError(f"{where} must be an object with 'role' and 'content'")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        raise RequestError(f"{where} has an unknown role; use one of {', '.join(ROLES)}")
    if role == "system" and index > 0:
        raise RequestError(f"{where} has the role 'system', which only the first entry may have")
    # An assistant may have said nothing, and a tool may have nothing to say.
    if not isinstance(content, str) or not (content.strip() or role in ("assistant", "tool")):
        raise RequestError(f"{where} must have a 'content' that is a string and not empty")
    try:
        content.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{where} has a 'content' that is not valid Unicode") from None
    return Message(role=role, content=content, extra=turn_extra(where, turn))


def parse_sampling(parameters: str | bytes, defaults: GenerationDefaults) -> Sampling:
    """Turn Triton's request parameters (a JSON object) into sampling values.

    Raises:
        RequestError: A parameter is unknown, or its value has the wrong type or range.
    """
    given = json.loads(parameters) if parameters else {}
    values: dict[str, Any] = dataclasses.asdict(defaults)
    values["default_max_tokens"] = values.pop("max_tokens")
    for name, value in given.items():
        if name in TRANSPORT_PARAMETERS:
            continue
        parameter = TEXT.parameters.get(name)
        if parameter is None or not parameter.request:
            known = ", ".join(sorted(item.name for item in TEXT.parameters.values()))
            raise RequestError(f"unknown parameter '{name}'; this model knows {known}")
        values[name] = parameter.read_json(value)
    values["tools"] = parse_tools(values)
    values["guide"] = _guide(values)
    if values["tools"] is not None and values["guide"] is not None:
        raise RequestError(f"send 'tools' or '{values['guide'][0]}', not both")
    return Sampling(**values)


def _guide(values: dict[str, Any]) -> tuple[str, str] | None:
    """Take out the one parameter that the answer must follow, if there is one."""
    given = [(kind, values.pop(kind)) for kind in GUIDES if kind in values]
    if len(given) > 1:
        raise RequestError(f"send '{given[0][0]}' or '{given[1][0]}', not both")
    if given and values.get("ignore_eos"):
        raise RequestError(
            f"'ignore_eos' and '{given[0][0]}' contradict each other: an answer that is complete "
            "has nothing to go on with"
        )
    return given[0] if given else None


def wants_stream(parameters: str | bytes) -> bool:
    """Whether a request to the streaming model asks for tokens (the default) or one answer.

    Raises:
        RequestError: `stream` is neither true nor false.
    """
    given = json.loads(parameters) if parameters else {}
    return bool(_STREAM.read_json(given.get("stream", True)))
