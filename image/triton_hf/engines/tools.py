"""Tools that a model may call: their place in the prompt, and the form that calls must have.

A family calls in its own form: Hermes and Qwen in `<tool_call>` tags, Llama 3 in bare JSON. Every
other model, and one whose chat template knows no tools, is told of them and calls in Hermes' form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from triton_hf.contract import ToolUse
from triton_hf.engines.schemas import forced

_HERMES = (
    "You may call functions. Their signatures are in <tools></tools> tags:\n<tools>\n{tools}\n"
    "</tools>\nFor each call write a JSON object with the function's name and arguments in "
    '<tool_call></tool_call> tags:\n<tool_call>\n{{"name": <name>, "arguments": <arguments>}}\n'
    "</tool_call>"
)
_LLAMA_MARK = "<|python_tag|>"


def template_knows_tools(template: str | None) -> bool:
    """Whether a chat template puts tools into the prompt in a form that can be held to."""
    text = template or ""
    return "tools" in text and ("<tool_call>" in text or _is_llama(text))


def _is_llama(template: str) -> bool:
    return '"parameters": ' in template and ("ipython" in template or _LLAMA_MARK in template)


def told_turns(turns: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a chat history that says which tools there are, for a template that knows none.

    Calls and results in the history become text in Hermes' form.
    """
    shown = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    told = _HERMES.format(tools=shown)
    plain = [_plain(turn) for turn in turns]
    if plain[0]["role"] == "system":
        return [{**plain[0], "content": f"{plain[0]['content']}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _plain(turn: Mapping[str, Any]) -> dict[str, Any]:
    content = turn["content"]
    if turn["role"] == "tool":
        return {
            "role": "user",
            "content": f"<tool_response>\n{content}\n</tool_response>",
        }
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in turn.get("tool_calls", ())
    ]
    return {"role": turn["role"], "content": "\n".join([*([content] if content else []), *calls])}


def tool_guide(use: ToolUse, *, template: str | None) -> tuple[str, str] | None:
    """Return what an answer must follow; None if it may be any text (`none`).

    Args:
        use: The tools and how they may be used.
        template: The model's chat template, None if it has none.
    """
    if use.choice == "none":
        return None
    named = use.choice.removeprefix("function:") if use.choice.startswith("function:") else None
    functions = [
        tool["function"] for tool in use.tools if named in (None, tool["function"]["name"])
    ]
    llama = template_knows_tools(template) and _is_llama(template or "")
    form = {
        "type": "triggered_tags",
        "triggers": ['{"name": "' if llama else "<tool_call>"],
        "tags": [_llama_tag(each) if llama else _hermes_tag(each) for each in functions],
        "at_least_one": use.choice != "auto",
        "stop_after_first": not use.parallel or named is not None or llama,
    }
    return "structural_tag", json.dumps({"type": "structural_tag", "format": form})


def _hermes_tag(function: Mapping[str, Any]) -> dict[str, Any]:
    name = json.dumps(function["name"])
    begin = f'<tool_call>\n{{"name": {name}, "arguments": '
    return _tag(function, begin, "}\n</tool_call>")


def _llama_tag(function: Mapping[str, Any]) -> dict[str, Any]:
    return _tag(function, f'{{"name": {json.dumps(function["name"])}, "parameters": ', "}")


def _tag(function: Mapping[str, Any], begin: str, end: str) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    content = {"type": "json_schema", "json_schema": forced(schema), "max_whitespace_cnt": 1}
    return {"type": "tag", "begin": begin, "content": content, "end": end}
