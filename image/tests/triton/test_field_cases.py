"""Requests of other people's clients, as they were reported in public (docs/field-cases.md)."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from lib.triton_client import Client

SKY = "Why is the sky blue?"
TEXTS = (
    *(
        "a\x00b",
        "family \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "line\u2028end\u2029",
        "\ufeffx",
    ),
    *("\ufffe", "\u202eabc", "data: {}\n\ndata: x", "\ufffd", "e\u0301", "a\r\nb", "\U0001f600"),
)


def grpc_text(client: Client, model: str, text: bytes, **parameters: Any) -> str:
    """Ask over gRPC; return the answer's text."""
    asked = triton.InferenceServerClient(f"127.0.0.1:{client.server.ports.grpc}")
    tensor = triton.InferInput("user_message", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=object))
    answer = asked.infer(model, [tensor], parameters=parameters)
    return str(answer.as_numpy("text_output").flatten()[0].decode())


@pytest.mark.parametrize("temperature", [1e-5, 1e-12, 1e-38, 1e-300])
def test_a_tiny_temperature_gives_the_greedy_answer(smollm2: Client, temperature: float) -> None:
    common = {"user_message": SKY, "max_tokens": 8}
    _, greedy = smollm2.generate("smollm2", **common, temperature=0)
    tiny = {"temperature": temperature, "top_p": 1e-9, "seed": 1}
    status, found = smollm2.generate("smollm2", **common, **tiny)
    assert (status, found["text_output"]) == (200, greedy["text_output"])


def test_parameters_in_an_object_of_their_own_count_as_flat_ones_do(smollm2: Client) -> None:
    chosen = {"max_tokens": 8, "temperature": 0.5, "seed": 3}
    _, flat = smollm2.generate("smollm2", user_message=SKY, **chosen)
    _, nested = smollm2.generate("smollm2", user_message=SKY, parameters=chosen)
    assert flat["text_output"] == nested["text_output"] != ""


def test_a_quoted_number_is_refused_by_name_and_range(smollm2: Client) -> None:
    status, found = smollm2.generate("smollm2", user_message="hi", max_tokens="8")
    assert status == 400
    assert "'max_tokens'" in found["error"]
    assert "whole number" in found["error"]


def test_equal_rows_differ_without_a_seed_and_agree_with_one(smollm2: Client) -> None:
    rows = [SKY] * 4
    chosen = {"temperature": 1.2, "max_tokens": 12}
    for parameters, several in ((chosen, True), ({**chosen, "seed": 3}, False)):
        _, found = smollm2.infer("smollm2", user_message=rows, parameters=parameters)
        (texts,) = [one["data"] for one in found["outputs"] if one["name"] == "text_output"]
        assert (len(set(texts)) > 1) == several


def test_texts_of_5_to_50_mb_are_refused_on_both_protocols_within_seconds(smollm2: Client) -> None:
    start = time.monotonic()
    status, found = smollm2.generate("smollm2", user_message="a" * 5_000_000)
    assert status == 400
    assert "characters" in found["error"]
    rows = ["b" * 200_000] * 64
    assert smollm2.infer("smollm2", user_message=rows)[0] == 400
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
        grpc_text(smollm2, "smollm2", b"c" * 50_000_000)
    assert time.monotonic() - start < 20
    assert smollm2.generate("smollm2", user_message="hi", max_tokens=2)[0] == 200


@pytest.mark.parametrize("text", TEXTS)
def test_any_unicode_comes_back_alike_whole_streamed_and_over_grpc(
    simulated: Client, text: str
) -> None:
    words = text.split()  # what the simulated model repeats
    expected, asked = " ".join(words), {"user_message": text, "max_tokens": len(words)}
    status, whole = simulated.generate("quick", **asked)
    assert (status, whole["text_output"]) == (200, expected)
    streamed = simulated.stream("quick", **asked)
    assert "".join(event["text_output"] for event in streamed) == expected
    assert grpc_text(simulated, "quick", text.encode(), max_tokens=len(words)) == expected


@pytest.mark.parametrize("how", ["chunks", "expect"])
def test_a_body_in_chunks_or_after_100_continue_is_answered(simulated: Client, how: str) -> None:
    body = json.dumps({"user_message": "w " * 20, "max_tokens": 2, "system_message": " "}).encode()
    asked = http.client.HTTPConnection("127.0.0.1", simulated.server.ports.http, timeout=20)
    if how == "chunks":
        asked.request("POST", "/v2/models/quick/generate", iter([body[:9], body[9:]]))
    else:
        headers = {"Expect": "100-continue"}
        asked.request("POST", "/v2/models/quick/generate", body, headers)
    answer = asked.getresponse()
    assert (answer.status, json.load(answer)["text_output"]) == (200, "w w")


@pytest.mark.parametrize(
    ("ids", "status"), [("[151645, 999999999]", 200), (2**65, 400), (-1, 400), ("[-1]", 400)]
)
def test_stop_tokens_beyond_the_vocabulary_harm_nothing(
    smollm2: Client, ids: Any, status: int
) -> None:
    found = smollm2.generate("smollm2", user_message="Hi.", max_tokens=4, stop_token_ids=ids)
    assert found[0] == status, found
    assert smollm2.generate("smollm2", user_message="Hi.", max_tokens=2)[0] == 200
