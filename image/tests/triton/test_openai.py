"""OpenAI's API in front of a real Triton, by OpenAI's own client and LangChain's."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from langchain_openai import ChatOpenAI

from lib.openai_server import Api, running_api
from lib.triton_client import Client, eventually

MESSAGES: list[Any] = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def api(simulated: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(grpc_port=simulated.server.ports.grpc, workdir=folder) as running:
        yield running


def ask(api: Api, **fields: Any) -> Any:
    values = {"model": "quick", "messages": MESSAGES, **fields}
    return api.client().chat.completions.create(**values)


# Whole answers.


def test_a_chat_has_the_models_text_its_finish_reason_and_its_usage(api: Api) -> None:
    answer = ask(api, max_tokens=5)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "one two three one two")
    assert (choice.finish_reason, answer.object) == ("length", "chat.completion")
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
    }


def test_a_stop_string_ends_the_answer_and_is_not_in_it(api: Api) -> None:
    for stop in ("three", ["xyz", "three"]):
        (choice,) = ask(api, stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == ("one two ", "stop")


def test_max_completion_tokens_is_max_tokens(api: Api) -> None:
    assert ask(api, max_completion_tokens=2).choices[0].message.content == "one two"


def test_n_answers_count_the_prompt_once(api: Api) -> None:
    answer = ask(api, n=3, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)


def test_a_completion_continues_the_prompt(api: Api) -> None:
    answer = api.client().completions.create(model="quick", prompt="a b", max_tokens=3)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "a b a")


def test_several_prompts_are_answered_in_order_and_echoed_on_demand(api: Api) -> None:
    answer = api.client().completions.create(
        model="quick", prompt=["a b", "c d"], max_tokens=1, n=2, echo=True
    )
    assert [choice.text for choice in answer.choices] == ["a ba", "a ba", "c dc", "c dc"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 4)


def test_parts_of_text_and_the_role_developer_reach_the_model(api: Api) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = ask(api, messages=messages, max_tokens=3)
    assert answer.choices[0].message.content == "a b a"
    assert answer.usage.prompt_tokens == 2 + 1 + 0 + 2


# Streams.


def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done(api: Api) -> None:
    chunks = list(ask(api, stream=True, stream_options={"include_usage": True}, max_tokens=4))
    first, *middle, reason, usage = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == "one two three one"
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *middle])
    assert reason.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.total_tokens) == ([], 7)
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    body = {"model": "quick", "messages": MESSAGES, "stream": True}
    status, raw, headers = api.post("/chat/completions", body)
    assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert raw.endswith(b"data: [DONE]\n\n")
    assert b'"usage"' not in raw


def test_n_streams_arrive_with_their_index(api: Api) -> None:
    texts = {0: "", 1: "", 2: ""}
    for chunk in ask(api, stream=True, n=3, max_tokens=6):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert set(texts.values()) == {"one two three one two three"}


def test_a_streamed_completion_echoes_once_and_has_the_same_text(api: Api) -> None:
    fields: dict[str, Any] = {"model": "quick", "prompt": ["a b", "c"], "echo": True}
    whole = api.client().completions.create(**fields)
    texts = ["", ""]
    for chunk in api.client().completions.create(**fields, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_the_text_is_equal_through_infer_generate_stream_and_both_apis(
    api: Api, simulated: Client
) -> None:
    _, infer = simulated.infer("quick", messages=[msgspec.json.encode(MESSAGES).decode()])
    stream = simulated.stream("quick", user_message=MESSAGES[0]["content"])
    expected = infer["outputs"][0]["data"][0]
    assert "".join(event["text_output"] for event in stream) == expected
    assert ask(api).choices[0].message.content == expected
    chunks = ask(api, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_langchain_asks_and_streams(api: Api) -> None:
    chat = ChatOpenAI(
        model="quick", base_url=api.url, api_key="none", max_retries=0, stream_usage=True
    )
    answer = chat.invoke("one two three")
    assert answer.content == "one two three one two three one two"
    assert answer.usage_metadata["total_tokens"] == 11
    pieces = list(chat.stream([("system", "be brief"), ("human", "one two three")]))
    assert "".join(str(piece.content) for piece in pieces) == answer.content


# Models and health.


def test_models_are_listed_without_companions_and_retrieved(api: Api) -> None:
    models = api.client().models.list().data
    assert [model.id for model in models] == ["hasty", "paced", "quick", "tight"]
    assert api.client().models.retrieve("quick").model_dump()["max_model_len"] == 4096
    with pytest.raises(openai.NotFoundError) as caught:
        api.client().models.retrieve("quick_stream")
    assert caught.value.code == "model_not_found"


# Refusals.

REFUSED = [
    ({"temperature": 9}, "temperature", None),
    ({"max_completion_tokens": 0}, "max_completion_tokens", None),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", None),
    ({"logit_bias": {"x": 5}}, "logit_bias", None),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools", None),
    ({"response_format": {"type": "json_object"}}, "response_format", None),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"n": 0}, "n", "invalid_type"),
    ({"extra_body": {"best": 1}}, "best", "unknown_parameter"),
    ({"messages": []}, "messages", None),
    (
        {"messages": [{"role": "function", "content": "a"}]},
        "messages[0].role",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "name": "b"}]},
        "messages[0].name",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
        "messages[1]",
        None,
    ),
    ({"messages": [{"role": "user", "content": "a " * 60}]}, None, "context_length_exceeded"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_is_refused_by_name(
    api: Api, fields: dict[str, Any], param: str | None, code: str | None, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(api, stream=stream, **fields)
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    if param:
        assert param.rpartition(".")[2].split("[")[0] in error.message


def test_fields_that_ask_for_nothing_are_accepted(api: Api) -> None:
    answer = ask(
        api,
        user="me",
        metadata={"a": "b"},
        store=False,
        presence_penalty=0,
        logit_bias={},
        logprobs=False,
        response_format={"type": "text"},
        tools=[],
        stop=[],
        temperature=None,
    )
    assert answer.choices[0].finish_reason == "length"


def test_token_ids_and_a_suffix_are_refused_by_name(api: Api) -> None:
    for fields, param in (
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            api.client().completions.create(model="quick", **fields)
        assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


def test_a_model_that_is_not_there_is_404(api: Api) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(api, model="gone")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"{", b"not valid JSON"), (b"[]", b"JSON object"), (b"[" * 100_000, b"not valid JSON")],
)
def test_a_body_that_is_no_request_is_400(api: Api, body: bytes, words: bytes) -> None:
    status, answer, _ = api.post("/chat/completions", body)
    assert (status, words in answer) == (400, True)


def test_a_body_that_is_too_long_is_413_and_a_wrong_path_404(api: Api) -> None:
    assert api.post("/chat/completions", b" " * (9 * 1024 * 1024))[0] == 413
    status, answer, _ = api.post("/moderations", {})
    assert (status, msgspec.json.decode(answer)["error"]["code"]) == (404, "not_found")


def test_a_full_queue_is_503_with_retry_after(api: Api) -> None:
    async def flood() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=api.url, api_key="none", max_retries=0) as client:
            calls = [
                client.chat.completions.create(model="tight", messages=MESSAGES, stream=stream)
                for stream in (False, True) * 4
            ]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for answer in answers:
                if isinstance(answer, openai.AsyncStream):
                    async for _ in answer:
                        pass
            return answers

    answers = asyncio.run(flood())
    refused = [answer for answer in answers if isinstance(answer, openai.APIStatusError)]
    assert 4 <= len(refused) <= 6
    for error in refused:
        assert (error.status_code, error.code) == (503, "unavailable")
        assert int(error.response.headers["retry-after"]) >= 1


# Ids and clients that go away.


def test_a_request_id_is_kept_made_and_logged(api: Api) -> None:
    name = f"mine-{uuid.uuid4().hex}"
    body = {"model": "quick", "messages": MESSAGES}
    _, _, headers = api.post("/chat/completions", body, {"X-Request-Id": name})
    assert headers["x-request-id"] == name
    eventually(lambda: f"request={name}" in api.output())
    _, _, headers = api.post("/chat/completions", body, {"X-Request-Id": "not one\t"})
    assert headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(api: Api, simulated: Client, stream: bool) -> None:
    def running() -> float:
        return simulated.metrics("paced")["triton_hf_requests_running"]

    body = msgspec.json.encode(
        {"model": "paced", "messages": MESSAGES, "max_tokens": 500, "stream": stream}
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.closing(socket.create_connection(("127.0.0.1", api.port))) as connection:
        connection.sendall(head.encode() + body)
        eventually(lambda: running() == 1)
    left = time.monotonic()
    eventually(lambda: running() == 0)
    # 500 tokens take 10 s.
    assert time.monotonic() - left < 5
    eventually(lambda: " 499 " in api.output())


# Keys, drain and a Triton that is not there.


def test_keys_of_a_file_are_needed_read_again_and_never_logged(
    simulated: Client, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-secret\n")
    with running_api(
        grpc_port=simulated.server.ports.grpc,
        workdir=tmp_path,
        arguments=("--api-key-file", str(keys)),
    ) as api:
        assert api.client(key="first-secret").models.list().data
        for key in ("wrong", "second-secret"):
            with pytest.raises(openai.AuthenticationError) as caught:
                api.client(key=key).models.list()
            assert caught.value.code == "invalid_api_key"
        keys.write_text("second-secret\n")
        assert api.client(key="second-secret").models.list().data
        with pytest.raises(openai.AuthenticationError):
            api.client(key="first-secret").models.list()
        assert "secret" not in api.output()


def test_after_sigterm_an_open_stream_ends_whole_and_the_exit_status_is_0(
    simulated: Client, tmp_path: Path
) -> None:
    with running_api(grpc_port=simulated.server.ports.grpc, workdir=tmp_path) as api:
        stream = ask(api, model="paced", stream=True, max_tokens=50)
        first = next(stream)
        api.process.send_signal(signal.SIGTERM)
        chunks = [first, *stream]
        assert chunks[-1].choices[0].finish_reason == "length"
        assert api.process.wait(10) == 0
        with pytest.raises(openai.APIConnectionError):
            ask(api)


def test_without_triton_it_is_alive_not_ready_and_says_503(tmp_path: Path) -> None:
    with running_api(grpc_port=1, workdir=tmp_path) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(api)
        assert (caught.value.status_code, "does not answer" in caught.value.message) == (503, True)
        with pytest.raises(openai.InternalServerError):
            api.client().with_options(base_url=f"http://127.0.0.1:{api.port}").get(
                "/health", cast_to=object
            )
