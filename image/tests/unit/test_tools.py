"""Tools: into the prompt, held to their schemas, and out of the text again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from lib.guided import answers, random_schema, running_engine
from triton_hf.contract import Sampling, ToolUse
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.errors import RequestError
from triton_hf.models.settings import GenerationDefaults
from triton_hf.serving.validation import parse_conversations, parse_sampling
from triton_openai.tools import CallReader, tool_parameters


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    with running_engine(tmp_path_factory.mktemp("engine")) as running:
        yield running


def tool(name: str = "f", parameters: Any = None) -> dict[str, Any]:
    function = {"name": name, "parameters": parameters or {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def object_schema(numbers: random.Random) -> dict[str, Any]:
    properties = {name: random_schema(numbers, 3) for name in numbers.sample("abcd", 2)}
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def test_200_forced_calls_parse_and_their_arguments_validate(engine: TransformersEngine) -> None:
    numbers = random.Random(3)
    sets = [{name: object_schema(numbers) for name in ("first", "second")} for _ in range(200)]
    asked = [
        Sampling(
            temperature=1.5,
            seed=index,
            max_tokens=1500,
            tools=ToolUse(
                tools=tuple(tool(name, schema) for name, schema in schemas.items()),
                choice=("required", "function:second")[index % 2],
                parallel=False,
            ),
        )
        for index, schemas in enumerate(sets)
    ]
    for index, (text, reason) in enumerate(answers(engine, asked)):
        assert reason == "stop"
        rest, (call,) = CallReader().push(text, last=True)
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        assert (rest, call["type"]) == ("", "function")
        assert name == "second" or index % 2 == 0
        jsonschema.validate(arguments, sets[index][name])


def test_a_template_without_tools_gets_them_in_its_system_message(
    engine: TransformersEngine,
) -> None:
    history = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ]  # fmt: skip
    (turns,) = parse_conversations({"messages": [json.dumps(history).encode()]})
    work = engine.encode(turns, Sampling(tools=ToolUse(tools=(tool(),))))
    shown = engine._chat.tokenizer.decode(work.token_ids)  # type: ignore[union-attr]
    assert '"name": "f"' in shown
    assert '{"name": "f", "arguments": {"a": 1}}' in shown
    assert "<tool_response>\n42" in shown


def test_a_call_is_found_however_the_text_is_cut() -> None:
    text = 'Well, <b>. <tool_call>\n{"name": "f", "arguments": {"a": "<t"}}\n</tool_call>\n' * 2
    for size in (1, 2, 3, 7, 50, len(text)):
        reader, shown, calls = CallReader(), "", []
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        for index, part in enumerate(parts):
            new, found = reader.push(part, last=index == len(parts) - 1)
            shown, calls = shown + new, calls + found
        assert [call["function"]["arguments"] for call in calls] == ['{"a": "<t"}'] * 2
        assert [call["index"] for call in calls] == [0, 1]
        assert len({call["id"] for call in calls}) == 2
        assert shown.split() == ["Well,", "<b>.", "Well,", "<b>."]


def test_llamas_form_is_a_call_and_text_that_only_looks_like_one_stays_text() -> None:
    text, (call,) = CallReader().push('{"name": "f", "parameters": {"a": 1}}', last=True)
    assert (text, call["function"]) == ("", {"name": "f", "arguments": '{"a": 1}'})
    for plain in ('{"name": "f"}', "<tool_call>{</tool_call>", "a <tool_call", "{}"):
        assert CallReader().push(plain, last=True) == (plain, [])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"tool_choice": "required"}, "there are no 'tools'"),
        ({"tools": "{"}, "'tools' is not JSON"),
        ({"tools": "[]"}, "list of 1 to 128 tools"),
        ({"tools": [{"type": "web"}]}, "entry 0 of parameter 'tools'"),
        ({"tools": [tool("a b")]}, "needs a 'name'"),
        ({"tools": [tool(), tool()]}, "two functions of the same name"),
        ({"tools": [tool("f", {"not": {}})]}, "'tools' cannot be compiled: keyword 'not'"),
        ({"tools": [tool()], "tool_choice": "function:g"}, "'tool_choice' must be"),
        ({"tools": [tool()], "regex": "a"}, "send 'tools' or 'regex'"),
    ],
)
def test_wrong_tools_are_named(parameters: dict[str, Any], words: str) -> None:
    sent = {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in parameters.items()
    }
    with pytest.raises(RequestError, match=words):
        parse_sampling(json.dumps(sent), GenerationDefaults())


def test_openais_tool_choice_becomes_a_parameter() -> None:
    named = {"type": "function", "function": {"name": "f"}}
    assert tool_parameters([tool()], named, False)["tool_choice"] == "function:f"
    assert tool_parameters(None, "auto", None) == {}
    assert tool_parameters([], None, True) == {}
    assert tool_parameters(None, "required", None) == {"tool_choice": "required"}
