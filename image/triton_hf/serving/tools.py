"""Reads the tools of a request, and what a chat history says about calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from triton_hf.contract import ToolUse
from triton_hf.engines.schemas import check_schema
from triton_hf.errors import RequestError

MOST_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def parse_tools(values: dict[str, Any]) -> ToolUse | None:
    """Take `tools`, `tool_choice` and `parallel_tool_calls` out of the parameters of a request.

    Raises:
        RequestError: They are wrong, or contradict each other; the text names the parameter.
    """
    text, choice = values.pop("tools", None), values.pop("tool_choice", None)
    parallel = values.pop("parallel_tool_calls", True)
    if text is None:
        if choice not in (None, "none", "auto"):
            raise RequestError(f"parameter 'tool_choice' is {choice}, but there are no 'tools'")
        return None
    tools = tuple(_tool(index, tool) for index, tool in enumerate(_list(text)))
    names = [tool["function"]["name"] for tool in tools]
    choice = choice or "auto"
    if choice not in ("none", "auto", "required") and choice.removeprefix("function:") not in names:
        raise RequestError(
            "parameter 'tool_choice' must be none, auto, required or function:NAME of one of the "
            f"'tools', got {choice:.80}"
        )
    if len(set(names)) < len(names):
        raise RequestError("parameter 'tools' has two functions of the same name")
    return ToolUse(tools=tools, choice=choice, parallel=parallel)


def _list(text: str) -> list[Any]:
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"parameter 'tools' is not JSON: {error}") from None
    if not isinstance(tools, list) or not 1 <= len(tools) <= MOST_TOOLS:
        raise RequestError(f"parameter 'tools' must be a JSON list of 1 to {MOST_TOOLS} tools")
    return tools


def _tool(index: int, tool: Any) -> dict[str, Any]:
    where = f"entry {index} of parameter 'tools'"
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type") != "function":
        raise RequestError(f'{where} must be {{"type": "function", "function": {{...}}}}')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where} needs a 'name' of 1 to 64 letters, digits, '_', '.' and '-'")
    unknown = set(function) - {"name", "description", "parameters", "strict"}
    if unknown or set(tool) - {"type", "function"}:
        raise RequestError(f"{where} has a field that is unknown")
    if not isinstance(function.get("description", ""), str):
        raise RequestError(f"{where} has a 'description' that is no text")
    if (parameters := function.get("parameters")) is not None:
        check_schema(json.dumps(parameters), name="tools")
    kept = {key: function[key] for key in ("name", "description", "parameters") if key in function}
    return {"type": "function", "function": kept}


def turn_extra(where: str, turn: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a turn has beside role and content, for the chat template.

    Raises:
        RequestError: It is not what a turn of its role may have.
    """
    extra: dict[str, Any] = {}
    for key in ("tool_call_id", "name"):
        if turn["role"] == "tool" and key in turn:
            if not isinstance(turn[key], str):
                raise RequestError(f"{where} has a '{key}' that is no text")
            extra[key] = turn[key]
    if turn["role"] == "assistant" and turn.get("tool_calls"):
        calls = turn["tool_calls"]
        if not isinstance(calls, list):
            raise RequestError(f"{where} has 'tool_calls' that are no list")
        extra["tool_calls"] = [_call(where, call) for call in calls]
    if unknown := set(turn) - {"role", "content", "tool_calls", *extra}:
        raise RequestError(f"{where} has the field '{min(map(str, unknown)):.60}', unknown there")
    return extra


def _call(where: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} has a tool call without the name of its function")
    arguments = function.get("arguments")
    try:
        arguments = json.loads(arguments or "{}") if not isinstance(arguments, dict) else arguments
    except (ValueError, RecursionError, TypeError):
        raise RequestError(f"{where} has a tool call whose 'arguments' are not JSON") from None
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made
