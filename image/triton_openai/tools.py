"""`tools`: to request parameters of the model, and calls out of the text of its answers.

No kept library parses calls out of text alone: vLLM's and SGLang's parsers come with their servers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec

from triton_openai.errors import ApiError

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BARE = '{"name": "'


def tool_parameters(
    tools: list[Any] | None, choice: str | Mapping[str, Any] | None, parallel: bool | None
) -> dict[str, Any]:
    """Return the request parameters for the tools of a chat; none without tools.

    Raises:
        ApiError: `tool_choice` has a form that is unknown.
    """
    values: dict[str, Any] = {}
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if choice.get("type") != "function" or not isinstance(name, str):
            raise ApiError(
                "'tool_choice' must be none, auto, required or "
                '{"type": "function", "function": {"name": ...}}.',
                param="tool_choice",
                code="invalid_value",
            )
        values["tool_choice"] = f"function:{name}"
    elif choice not in (None, "none", "auto") or (choice and tools):
        values["tool_choice"] = choice
    if tools:
        values["tools"] = msgspec.json.encode(tools).decode()
        if parallel is not None:
            values["parallel_tool_calls"] = parallel
    return values


class CallReader:
    """Takes the calls out of one answer, piece by piece; what may begin a call is held back."""

    def __init__(self) -> None:
        """Start before the first piece."""
        self._held = ""
        self._begun = False  # with text
        self.count = 0

    def push(self, piece: str, *, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Return new text of the answer, and the calls that are whole now."""
        self._held += piece
        text, calls = "", []
        while self._held:
            shown, call, rest = self._step(last)
            text += shown
            calls += [call] if call else []
            if rest == self._held:
                break
            self._held = rest
        # What surrounds calls is layout.
        text = text if self._begun or text.strip() else ""
        self._begun = self._begun or bool(text)
        return (text.rstrip() if last and self.count else text), calls

    def _step(self, last: bool) -> tuple[str, dict[str, Any] | None, str]:
        """Return text, a call or None, and what is left to look at."""
        held = self._held
        if not self._begun and not self.count and held.lstrip()[: len(_BARE)] == _BARE:
            call = self._call(held, "parameters") if last else None
            return ("", call, "") if call else (held if last else "", None, "" if last else held)
        if (at := held.find(_OPEN)) >= 0:
            end = held.find(_CLOSE, at)
            if end < 0 and not last:
                return held[:at], None, held[at:]
            inside = held[at + len(_OPEN) : end if end >= 0 else len(held)]
            rest = held[end + len(_CLOSE) :] if end >= 0 else ""
            call = self._call(inside, "arguments")
            return (held[:at], call, rest) if call else (held[: len(held) - len(rest)], None, rest)
        keep = 0 if last else self._overlap(held)
        return held[: len(held) - keep], None, held[len(held) - keep :]

    def _overlap(self, held: str) -> int:
        if not self._begun and _BARE.startswith(held.lstrip()):
            return len(held)
        for length in range(min(len(held), len(_OPEN) - 1), 0, -1):
            if _OPEN.startswith(held[-length:]):
                return length
        return 0

    def _call(self, text: str, key: str) -> dict[str, Any] | None:
        try:
            found = json.loads(text)
            name, arguments = found["name"], found[key]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        index, self.count = self.count, self.count + 1
        function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return {
            "index": index,
            "id": f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": function,
        }
