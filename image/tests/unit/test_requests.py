"""Requests: rows to conversations, parameters to sampling, and each fault by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from triton_hf.contract import PROMPT
from triton_hf.errors import RequestError
from triton_hf.models.settings import GenerationDefaults
from triton_hf.serving.validation import parse_conversations, parse_sampling, wants_stream


def test_each_row_is_a_conversation_with_its_own_system_message() -> None:
    rows = {"user_message": [b"one", b"two"], "system_message": [b"be brief", b" "]}
    first, second = parse_conversations(rows)
    assert [turn.role for turn in first] == ["system", "user"]
    assert [turn.role for turn in second] == ["user"]
    assert second[0].content == "two"


def test_messages_stand_for_the_whole_conversation() -> None:
    history = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "é"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    (conversation,) = parse_conversations({"messages": [json.dumps(history).encode()]})
    assert [turn.content for turn in conversation] == ["s", "é", "b", "c"]


def test_a_prompt_is_the_whole_text_of_its_row() -> None:
    first, second = parse_conversations({"prompt": [b"one ", b"two"]})
    assert [(turn.role, turn.content) for turn in first] == [(PROMPT, "one ")]
    assert second[0].content == "two"


def test_no_message_can_have_the_role_of_a_prompt() -> None:
    history = json.dumps([{"role": PROMPT, "content": "a"}]).encode()
    with pytest.raises(RequestError, match="unknown role"):
        parse_conversations({"messages": [history]})


def test_an_assistant_may_have_said_nothing() -> None:
    roles = [("user", "a"), ("assistant", ""), ("user", "b")]
    history = json.dumps([{"role": role, "content": text} for role, text in roles]).encode()
    (conversation,) = parse_conversations({"messages": [history]})
    assert [turn.content for turn in conversation] == ["a", "", "b"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, "'user_message' is missing"),
        ({"system_message": [b"s"]}, "'user_message' is missing"),
        ({"user_message": [b""]}, "'user_message' is empty"),
        ({"user_message": [b" \n"]}, "'user_message' is empty"),
        ({"user_message": [b"a\xff"]}, "'user_message' is not valid UTF-8: byte 1 is 0xff"),
        ({"user_message": [b"a"], "system_message": [b"\xc3"]}, "'system_message' is not valid"),
        ({"user_message": [b"a"], "messages": [b"[]"]}, "send it alone"),
        ({"prompt": [b"a"], "messages": [b"[]"]}, "send it alone"),
        ({"prompt": [b"a"], "user_message": [b"a"]}, "send it alone"),
        ({"prompt": [b"a"], "system_message": [b"a"]}, "send it alone"),
        ({"prompt": [b" "]}, "'prompt' is empty"),
        ({"prompt": [b"a\xff"]}, "'prompt' is not valid UTF-8"),
        ({"messages": [b"{"]}, "'messages' is not JSON"),
        ({"messages": [b"[" * 100_000]}, "'messages' is not JSON"),
        ({"messages": [b"[]"]}, "must be a JSON list"),
        ({"messages": [b'["a"]']}, "entry 0 of input 'messages' must be an object"),
        ({"messages": [b'[{"role":"bot","content":"a"}]']}, "unknown role"),
        ({"messages": [b'[{"role":"user","content":""}]']}, "not empty"),
        ({"messages": [b'[{"role":"user","content":"\\ud800"}]']}, "not valid Unicode"),
        ({"messages": [b'[{"role":"assistant","content":"a"}]']}, "role 'user'"),
        (
            {"messages": [b'[{"role":"user","content":"a"},{"role":"system","content":"b"}]']},
            "only the first entry",
        ),
    ],
)
def test_bad_input_is_named(rows: dict[str, list[bytes]], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_conversations(rows)
    assert words in str(caught.value)


def test_parameters_that_are_not_sent_take_the_defaults_of_the_model() -> None:
    defaults = GenerationDefaults(max_tokens=9, temperature=0.3, seed=1)
    sampling = parse_sampling('{"top_k": 4, "id": "7", "stream": true}', defaults)
    assert sampling.max_tokens is None
    assert (sampling.default_max_tokens, sampling.temperature, sampling.seed) == (9, 0.3, 1)
    assert sampling.top_k == 4


@pytest.mark.parametrize(
    ("value", "stop"),
    [
        ("END", ("END",)),
        ('["a", "b"]', ("a", "b")),
        ("[", ("[",)),
        pytest.param("[" * 100_000, ("[" * 100_000,), id="nested too deeply"),
    ],
)
def test_stop_is_a_string_or_a_json_list_in_a_string(value: str, stop: tuple[str, ...]) -> None:
    sampling = parse_sampling(json.dumps({"stop": value}), GenerationDefaults())
    assert sampling.stop == stop


@pytest.mark.parametrize(("value", "ids"), [(0, {0}), ("[7, 2, 7]", {2, 7})])
def test_stop_token_ids_are_a_number_or_a_json_list_in_a_string(value: Any, ids: set[int]) -> None:
    sampling = parse_sampling(json.dumps({"stop_token_ids": value}), GenerationDefaults())
    assert sampling.stop_token_ids == ids


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "max_token",
            3,
            "unknown parameter 'max_token'; this model knows frequency_penalty, grammar",
        ),
        ("max_tokens", 0, "'max_tokens' must be a whole number from 1 to 1048576, got 0"),
        ("max_tokens", True, "got true"),
        ("max_tokens", "9", 'got "9"'),
        ("max_tokens", 2.5, "got 2.5"),
        ("temperature", -0.1, "'temperature' must be a number from 0 to 2, got -0.1"),
        ("temperature", 2.1, "got 2.1"),
        ("temperature", True, "got true"),
        ("top_p", 0, "'top_p' must be a number above 0 to 1, got 0"),
        ("top_k", -1, "'top_k' must be a whole number from 0 to 1000000"),
        ("repetition_penalty", 0, "'repetition_penalty' must be a number above 0 to 2"),
        ("seed", -1, "'seed' must be a whole number from 0"),
        ("seed", 2**63, "'seed' must be a whole number from 0"),
        ("stop", "", "'stop' must be a string"),
        ("stop", '["a", ""]', "'stop' must be a string"),
        ("stop", "[]", "'stop' must be a string"),
        ("stop_token_ids", -1, "'stop_token_ids' must be a whole number from 0 to 2147483647, or"),
        ("stop_token_ids", True, "got true"),
        ("stop_token_ids", 2**31, "got 2147483648"),
        ("stop_token_ids", "7", 'got "7"'),
        ("stop_token_ids", "[]", "a JSON list of 1 to 64 of them in a string"),
        ("stop_token_ids", "[1, null]", "'stop_token_ids' must be"),
        ("stop_token_ids", "[1", "'stop_token_ids' must be"),
        ("stop_token_ids", json.dumps([*range(65)]), "a JSON list of 1 to 64"),
        ("ignore_eos", 1, "'ignore_eos' must be true or false, got 1"),
    ],
)
def test_bad_parameter_is_named_with_its_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_sampling(json.dumps({name: value}), GenerationDefaults())
    assert words in str(caught.value)


def test_stream_is_wanted_unless_it_is_false() -> None:
    assert wants_stream("")
    assert not wants_stream('{"stream": false}')
    with pytest.raises(RequestError, match="'stream' must be true or false"):
        wants_stream('{"stream": "no"}')
