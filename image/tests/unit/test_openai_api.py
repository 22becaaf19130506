"""OpenAI's API without a Triton: requests, errors, models, shapes of answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from triton_hf.models.pbtxt import model_config, stream_config
from triton_hf.models.registry import TEXT
from triton_openai import sse
from triton_openai.catalog import Model, text_models
from triton_openai.chat import ChatShape, messages_text
from triton_openai.errors import ApiError, from_triton
from triton_openai.gate import Gate, Keys
from triton_openai.generation import Caller, questions
from triton_openai.server import main
from triton_openai.triton import Piece
from triton_openai.types import Chat, Completion, read_request

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
CALLER = Caller(request_id="r", trace={})
MODEL = Model(name="m", inputs=frozenset({"messages", "prompt"}), whole="m", pieces="m_stream")


def chat(**fields: Any) -> Chat:
    return read_request(json.dumps({**CHAT, **fields}).encode(), Chat)


def asked(request: Chat) -> list[dict[str, Any]]:
    made = questions(model=MODEL, tensor="messages", texts=["t"], request=request, caller=CALLER)
    return [dict(question.parameters) for question in made]


# Requests.


def test_sampling_fields_become_parameters_and_unsaid_ones_are_left_to_the_model() -> None:
    assert asked(chat()) == [{}]
    fields = {"temperature": 0.5, "top_k": -1, "stop": "[", "stop_token_ids": [1], "seed": 3}
    (parameters,) = asked(chat(**fields, max_completion_tokens=4, ignore_eos=True, min_p=0.1))
    assert parameters == {
        "temperature": 0.5,
        "top_k": 0,
        "stop": '["["]',
        "stop_token_ids": "[1]",
        "seed": 3,
        "max_tokens": 4,
        "ignore_eos": True,
        "min_p": 0.1,
    }


def test_each_of_n_answers_has_its_own_seed_within_the_range() -> None:
    seeds = [parameters["seed"] for parameters in asked(chat(n=3, seed=2**63 - 2))]
    assert seeds[0] == 2**63 - 2
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"n": 65}, "n", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_type"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        ({"logprobs": 0}, "logprobs", "unsupported_parameter"),
        ({"tool_choice": 3}, "tool_choice", "invalid_type"),
        ({"prompt": "a"}, "prompt", "unknown_parameter"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat(**fields)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)
    assert f"'{param.split('[')[0]}" in str(caught.value)


def test_a_huge_or_endless_number_is_no_valid_json_or_value() -> None:
    for number in ("1e999", "NaN", "9" * 400):
        body = f'{{"model": "m", "messages": [], "temperature": {number}}}'
        with pytest.raises(ApiError):
            read_request(body.encode(), Chat)


def test_a_completion_takes_no_chat_and_more_answers_than_one_request_may_have_are_refused() -> (
    None
):
    with pytest.raises(ApiError, match="Unknown field 'messages'"):
        read_request(b'{"model": "m", "prompt": "a", "messages": []}', Completion)
    body = json.dumps({"model": "m", "prompt": ["a"] * 33, "n": 2}).encode()
    from triton_openai.completions import prompts_of

    with pytest.raises(ApiError, match="ask for 66 answers"):
        prompts_of(read_request(body, Completion))


def test_messages_reach_the_model_as_roles_and_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [
        {"role": "developer", "content": "s"},
        {"role": "assistant", "content": None, "tool_calls": None, "refusal": None},
        {"role": "user", "content": parts},
    ]
    assert json.loads(messages_text(turns)) == [
        {"role": "system", "content": "s"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "a\nb"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "a"}, "messages[0].role"),
        ({"role": "bot", "content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
)
def test_a_message_that_is_not_done_is_named_by_its_path(
    message: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        messages_text([message])
    assert caught.value.param == param


# Errors.


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        ("INVALID_ARGUMENT", "parameter 'top_p' must be", (400, "top_p", None)),
        (
            "INVALID_ARGUMENT",
            "unknown parameter 'min_p'; this model knows",
            (400, "min_p", "unsupported_parameter"),
        ),
        (
            "INVALID_ARGUMENT",
            "the prompt has 9 tokens; this model takes at most 8",
            (400, None, "context_length_exceeded"),
        ),
        ("INVALID_ARGUMENT", "entry 3 of input 'messages' must", (400, "messages[3]", None)),
        ("UNAVAILABLE", "full, try again in 7 s", (503, None, "unavailable")),
        ("NOT_FOUND", "no model", (404, "model", "model_not_found")),
        ("INTERNAL", "broken", (500, None, None)),
    ],
)
def test_errors_of_triton_become_openais(
    status: str, message: str, expected: tuple[int, str | None, str | None]
) -> None:
    error = from_triton(message, status)
    assert (error.status, error.param, error.code) == expected


def test_the_time_to_come_again_is_a_header_and_addresses_are_not_told() -> None:
    assert from_triton("full, try again in 7 s", "UNAVAILABLE").headers() == {"retry-after": "7"}
    hidden = from_triton("failed to connect to all addresses; ipv4:10.0.0.1:8001", "UNAVAILABLE")
    assert "10.0.0.1" not in str(hidden)


# Models.


def configs(**texts: str) -> dict[str, Any]:
    return {
        name: text_format.Parse(text, model_config_pb2.ModelConfig())
        for name, text in texts.items()
    }


def test_text_models_are_found_with_their_companions_and_others_are_not() -> None:
    parameters = {"repo_id": "a/b", "revision": "0123456789abcdef", "max_total_tokens": "77"}
    found = text_models(
        configs(
            a=model_config(parameters),
            a_stream=stream_config("a", TEXT),
            b=model_config({}),
            image='input { name: "pixels" data_type: TYPE_FP32 dims: 1 }',
            alone_stream=stream_config("gone", TEXT),
        )
    )
    assert set(found) == {"a", "b", "alone_stream"}
    assert (found["a"].whole, found["a"].pieces) == ("a", "a_stream")
    assert (found["b"].whole, found["b"].pieces) == ("b", None)
    assert (found["alone_stream"].whole, found["alone_stream"].pieces) == (None, "alone_stream")
    card = found["a"].card(5)
    assert (card["id"], card["max_model_len"], card["root"]) == ("a", 77, "a/b")
    assert found["a"].fingerprint == "fp_0123456789ab"


def test_a_model_of_an_older_generation_has_no_completions_and_that_is_said() -> None:
    old = Model(name="old", inputs=frozenset({"messages"}), whole="old", pieces=None)
    request = read_request(b'{"model": "old", "prompt": "a"}', Completion)
    with pytest.raises(ApiError, match="no input 'prompt'; use /v1/chat/completions"):
        questions(model=old, tensor="prompt", texts=["a"], request=request, caller=CALLER)


# Keys and the command.


def test_a_key_fits_whole_and_only_as_a_bearer(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    keys = Keys(file=file)
    assert keys.needed
    assert keys.fits(b"Bearer one")
    assert keys.fits(b"bearer two")
    for header in (b"", b"one", b"Basic one", b"Bearer", b"Bearer ", b"Bearer on", b"Bearer onee"):
        assert not keys.fits(header), header
    assert not Keys().needed


def test_an_empty_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.touch()
    assert Keys(file=file).needed
    assert not Keys(file=file).fits(b"Bearer ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--api-key-file", "/none"], "No such file"),
        (["--triton-header", "name"], "write NAME=VARIABLE"),
        (["--triton-header", "name=NOT_SET_HERE"], "set that environment variable"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


# Streams.


async def pieces(*texts: str, wait: float = 0.0) -> AsyncIterator[tuple[int, Piece]]:
    for number, text in enumerate(texts, start=1):
        await asyncio.sleep(wait)
        reason = "stop" if number == len(texts) else ""
        yield (
            0,
            Piece(text=text, finish_reason=reason, prompt_tokens=1, completion_tokens=number),
        )


async def events(chunks: Any) -> tuple[list[bytes], list[Exception]]:
    """Send a stream to a client that stays; return what it got and what was told of faults."""
    sent: list[bytes] = []
    faults: list[Exception] = []

    async def receive() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    stream = sse.EventStream(chunks, on_fault=faults.append)
    await stream.begin(receive)
    await stream.send(receive, send, [])
    return sent, faults


def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    shape = ChatShape(chat(stream=True), MODEL)
    sent, _ = asyncio.run(events(shape.chunks(pieces("a", "b", wait=0.3))))
    assert sent[0] == sse.KEEP_ALIVE
    assert b'"role"' in next(data for data in sent if data != sse.KEEP_ALIVE)
    assert sent[-2:] == [sse.DONE, b""]


@pytest.mark.parametrize(
    ("error", "words", "told"),
    [(ApiError("it is full", status=503), b"it is full", 0), (ValueError("x"), b"see its log", 1)],
)
def test_an_error_after_the_first_chunk_is_an_event_and_no_done(
    error: Exception, words: bytes, told: int
) -> None:
    async def breaking() -> AsyncIterator[list[dict[str, Any]]]:
        yield [{"a": 1}]
        raise error

    sent, faults = asyncio.run(events(breaking()))
    assert sent[0] == b'data: {"a":1}\n\n'
    assert words in sent[1]
    assert sse.DONE not in sent
    assert len(faults) == told


def test_an_error_before_the_first_chunk_is_raised_for_its_status() -> None:
    async def refusing() -> AsyncIterator[list[dict[str, Any]]]:
        raise ApiError("no")
        yield []

    with pytest.raises(ApiError, match="no"):
        asyncio.run(events(refusing()))


# The log.


@pytest.mark.parametrize(
    ("path", "logged"), [("/health", False), ("/health/live", False), ("/v1/models", True)]
)
def test_requests_leave_a_line_in_the_log_and_probes_do_not(
    path: str, logged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def nothing(*_: Any) -> None:
        return None

    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    asyncio.run(Gate(app, keys=Keys())(scope, nothing, nothing))
    assert (path in capsys.readouterr().err) == logged


# The form of an answer.


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"type": "text"}, {}),
        ({"type": "json_object"}, {"json_schema": '{"type":"object","additionalProperties":true}'}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}},
            {"json_schema": '{"type":"null"}'},
        ),
        ({"type": "regex", "regex": "a+"}, {"regex": "a+"}),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ],
)
def test_a_response_format_becomes_a_parameter(given: Any, parameters: dict[str, str]) -> None:
    assert asked(chat(response_format=given)) == [parameters]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"type": "xml"}, "response_format.type"),
        ({"type": "regex"}, "response_format.regex"),
        ({"type": "json_object", "x": 1}, "response_format.x"),
        ({"type": "json_schema", "json_schema": {"x": 1}}, "response_format.json_schema.x"),
        (
            {"type": "json_schema", "json_schema": {"schema": 1}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_wrong_response_format_is_named(given: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(chat(response_format=given))
    assert caught.value.param == param


def test_a_keyword_that_cannot_be_forced_is_named_as_the_clients_field() -> None:
    (question,) = questions(
        model=MODEL,
        tensor="messages",
        texts=["t"],
        request=chat(response_format={"type": "json_object"}),
        caller=CALLER,
    )
    said = "parameter 'json_schema' cannot be compiled: keyword 'not' at /: it cannot be forced"
    error = from_triton(said, "INVALID_ARGUMENT", names=dict(question.names))
    assert error.param == "response_format"
    assert "keyword 'not'" in str(error)
