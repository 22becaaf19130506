"""Bad input: an error that names the fault, that request alone fails, the next one works."""

from __future__ import annotations

from typing import Any

import pytest

from lib.triton_client import Client


def tensor(**changes: Any) -> dict[str, Any]:
    values = {"name": "user_message", "datatype": "BYTES", "shape": [1, 1], "data": ["a b"]}
    return {"inputs": [{**values, **changes}]}


@pytest.fixture(autouse=True)
def works_afterwards(simulated: Client) -> Any:
    yield
    assert simulated.generate("quick", user_message="a b", max_tokens=2)[1]["text_output"] == "a b"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (tensor(name="user"), "unexpected inference input 'user' for model 'quick'"),
        (tensor(datatype="INT32", data=[1]), "input 'user_message' data-type is 'INT32'"),
        (tensor(shape=[1]), "unexpected shape for input 'user_message'"),
        (tensor(shape=[1, 2], data=["a", "b"]), "unexpected shape for input 'user_message'"),
        (tensor(shape=[2, 1]), "user_message"),
        (tensor(shape=[0, 1], data=[]), "user_message"),
        (tensor(shape=[65, 1], data=["a"] * 65), "batch-size must be <= 64"),
        (tensor(data=[""]), "input 'user_message' is empty"),
        (tensor(data=["w " * 51]), "the prompt has 51 tokens after the chat template"),
        (tensor() | {"outputs": [{"name": "text"}]}, "unexpected inference output 'text'"),
        (tensor() | {"parameters": {"temprature": 1}}, "unknown parameter 'temprature'"),
        (tensor() | {"parameters": {"max_tokens": 0}}, "'max_tokens' must be a whole number"),
        (tensor() | {"parameters": {"max_tokens": 5000}}, "from 1 to 4094 for this prompt of 2"),
        (tensor() | {"parameters": {"top_p": 1.5}}, "'top_p' must be a number above 0 to 1"),
        (tensor() | {"parameters": {"stop": ["a"]}}, "parameter 'stop' has invalid type"),
    ],
)
def test_infer_names_the_fault_with_400(simulated: Client, body: Any, words: str) -> None:
    status, answer = simulated.post("/v2/models/quick/infer", body)
    assert (status, words in answer["error"]) == (400, True), answer


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"user_message": ""}, "input 'user_message' is empty"),
        ({"messages": "{"}, "input 'messages' is not JSON"),
        ({"user_message": "a", "seed": -1}, "'seed' must be a whole number from 0"),
        ({"user_message": "a", "stream": "no"}, "'stream' must be true or false"),
        ({"user_message": "a", "what": 1}, "unknown parameter 'what'"),
    ],
)
def test_a_stream_names_the_fault_with_400(
    simulated: Client, fields: dict[str, Any], words: str
) -> None:
    status, answer = simulated.post("/v2/models/quick_stream/generate_stream", fields)
    assert (status, words in answer["error"]) == (400, True), answer


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "quick/infer",
            b'{"inputs":[{"name":"user_message","datatype":"BYTES","shape":[1,1],"data":["a\xff"]}]}',
        ),
        ("quick/generate", b'{"user_message": "a\xff"}'),
        ("quick_stream/generate_stream", b'{"user_message": "a\xff"}'),
    ],
    ids=["infer", "generate", "generate_stream"],
)
def test_broken_utf8_is_named_and_the_text_of_others_is_not_touched(
    simulated: Client, path: str, body: bytes
) -> None:
    status, answer = simulated.post(f"/v2/models/{path}", body)
    assert (status, "not valid UTF-8" in answer["error"]) == (400, True), answer


def test_an_unknown_model_is_404(simulated: Client) -> None:
    status, answer = simulated.post("/v2/models/nothing/infer", tensor())
    assert (status, "unknown model: 'nothing'" in answer["error"]) == (404, True)


@pytest.mark.parametrize(
    ("body", "expected", "words"),
    [
        (b"nope", 500, "failed to parse the request JSON buffer: Invalid value"),
        (b"{", 500, "failed to parse the request JSON buffer: Missing a name"),
        (b"[]", 500, "Unable to parse 'inputs'"),
        (b"{}", 500, "Unable to parse 'inputs'"),
        (b"", 400, "Raw request must only have 1 input"),
    ],
)
def test_a_body_that_is_no_request_is_refused_with_a_sentence(
    simulated: Client, body: bytes, expected: int, words: str
) -> None:
    # Triton 2.51 itself answers here, before any model is asked; 500 is its word for our 400.
    status, answer = simulated.post("/v2/models/quick/infer", body)
    assert (status, words in answer["error"]) == (expected, True), answer


@pytest.mark.parametrize("path", ["quick/infer", "quick_stream/generate_stream"])
def test_parameters_that_are_no_utf8_are_refused_with_400(simulated: Client, path: str) -> None:
    text = b'"x\xffy": 1'
    whole = b'{"inputs": [{"name": "user_message", "datatype": "BYTES", "shape": [1, 1], '
    whole += b'"data": ["a b"]}], "parameters": {' + text + b"}}"
    stream = b'{"user_message": "a b", ' + text + b"}"
    body = whole if path.endswith("infer") else stream
    status, answer = simulated.post(f"/v2/models/{path}", body)
    assert (status, "must be UTF-8" in answer["error"]) == (400, True), answer


def test_two_rows_on_the_companion_are_refused(simulated: Client) -> None:
    body = {"inputs": tensor(shape=[2, 1], data=["a", "b"])["inputs"]}
    status, answer = simulated.post("/v2/models/quick_stream/generate_stream", body)
    assert status == 400
    assert answer["error"]


def test_a_batch_with_one_bad_row_fails_as_a_whole(simulated: Client) -> None:
    status, answer = simulated.infer("quick", user_message=["a", ""])
    assert (status, "input 'user_message' is empty" in answer["error"]) == (400, True)


def test_one_bad_request_among_many_fails_alone(simulated: Client) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> int:
        bad = number % 4 == 0
        return simulated.generate("quick", user_message="a", top_k=-1 if bad else 1)[0]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(32))) == [400, 200, 200, 200] * 8
