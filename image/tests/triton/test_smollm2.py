"""The real SmolLM2-135M-Instruct through a real Triton, on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from lib.openai_server import Api, running_api
from lib.triton_client import Client, eventually
from tools.demo_model import ensure_smollm2


@pytest.fixture(scope="module")
def api(smollm2: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    with running_api(grpc_port=smollm2.server.ports.grpc, workdir=folder) as running:
        yield running


def grpc_text(smollm2: Client, history: str) -> str:
    with tritonclient.grpc.InferenceServerClient(
        f"127.0.0.1:{smollm2.server.ports.grpc}"
    ) as connection:
        tensor = tritonclient.grpc.InferInput("messages", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[history.encode()]], dtype=np.object_))
        answer = connection.infer("smollm2", [tensor], parameters={"max_tokens": 24})
        return str(answer.as_numpy("text_output").flat[0].decode())


def templated(messages: list[Any]) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ensure_smollm2().folder)
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def reference() -> Callable[..., str]:
    """Greedy text of transformers itself, for the same messages."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ensure_smollm2().folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answer(*turns: tuple[str, str], tokens: int) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return answer


def test_a_greedy_answer_is_that_of_transformers(smollm2: Client, reference) -> None:
    _, answer = smollm2.generate("smollm2", user_message=QUESTION, max_tokens=24)
    assert "Paris" in answer["text_output"]
    assert answer["text_output"] == reference(("user", QUESTION), tokens=24)


def test_rows_of_different_length_are_answered_as_if_alone(smollm2: Client, reference) -> None:
    rows = [QUESTION, "Say hello.", "List the numbers from one to five, separated by commas."]
    _, answer = smollm2.infer("smollm2", user_message=rows, parameters={"max_tokens": 12})
    texts = answer["outputs"][0]["data"]
    assert texts == [reference(("user", row), tokens=12) for row in rows]


def test_the_system_message_reaches_the_model(smollm2: Client, reference) -> None:
    system = "You are a useful assistant, please respond in Pirate speak"
    _, answer = smollm2.infer(
        "smollm2", system_message=[system], user_message=[QUESTION], parameters={"max_tokens": 12}
    )
    expected = reference(("system", system), ("user", QUESTION), tokens=12)
    assert answer["outputs"][0]["data"] == [expected]


def test_the_end_of_the_answer_is_found_and_can_be_ignored(smollm2: Client) -> None:
    _, short = smollm2.generate("smollm2", user_message=QUESTION, max_tokens=40)
    assert short["finish_reason"] == "stop"
    _, long = smollm2.generate("smollm2", user_message=QUESTION, max_tokens=40, ignore_eos=True)
    assert (long["finish_reason"], long["completion_tokens"]) == ("length", 40)
    assert long["text_output"].startswith(short["text_output"])


def test_a_stream_has_one_event_per_piece_and_the_same_text(smollm2: Client) -> None:
    fields = {"user_message": QUESTION, "max_tokens": 12}
    events = smollm2.stream("smollm2", **fields)
    assert len(events) > 3
    _, whole = smollm2.generate("smollm2", **fields)
    assert "".join(event["text_output"] for event in events) == whole["text_output"]


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(smollm2: Client) -> None:
    fields = {"user_message": "Tell me a story.", "max_tokens": 10, "temperature": 1.0, "seed": 7}
    _, first = smollm2.generate("smollm2", **fields)
    with ThreadPoolExecutor(4) as pool:
        others = [
            pool.submit(smollm2.generate, "smollm2", **{**fields, "seed": seed})
            for seed in (1, 2, 7)
        ]
        texts = [other.result()[1]["text_output"] for other in others]
    assert texts[2] == first["text_output"]
    assert len(set(texts)) > 1


def test_parameters_of_one_row_do_not_touch_the_others(smollm2: Client, reference) -> None:
    def ask(**fields: object) -> str:
        return smollm2.generate("smollm2", user_message=QUESTION, max_tokens=8, **fields)[1][
            "text_output"
        ]

    with ThreadPoolExecutor(3) as pool:
        hot = pool.submit(ask, temperature=2.0, seed=3)
        plain = pool.submit(ask)
        penal = pool.submit(ask, repetition_penalty=1.5)
        expected = reference(("user", QUESTION), tokens=8)
        assert plain.result() == expected
        assert hot.result() != expected
        assert penal.result()


def test_the_text_is_equal_through_infer_stream_grpc_and_both_shapes_of_openais_api(
    smollm2: Client, api: Api
) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    history = json.dumps(messages)
    _, infer = smollm2.infer("smollm2", messages=[history], parameters={"max_tokens": 24})
    expected = infer["outputs"][0]["data"][0]
    events = smollm2.stream("smollm2", messages=history, max_tokens=24)
    assert "".join(event["text_output"] for event in events) == expected
    assert grpc_text(smollm2, history) == expected
    client = api.client()
    fields: dict[str, Any] = {"model": "smollm2", "messages": messages, "max_tokens": 24}
    whole = client.chat.completions.create(**fields)
    assert whole.choices[0].message.content == expected
    chunks = client.chat.completions.create(**fields, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    # The same prompt after the chat template, as a raw one.
    raw = client.completions.create(model="smollm2", prompt=templated(messages), max_tokens=24)
    assert raw.choices[0].text == expected
    assert raw.usage == whole.usage


def test_seeded_answers_to_one_request_differ_and_come_again(smollm2: Client, api: Api) -> None:
    def texts() -> list[str | None]:
        answer = api.client().chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": "Tell me a story."}],
            max_tokens=10,
            temperature=1.0,
            seed=7,
            n=3,
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first
    fields = {"user_message": "Tell me a story.", "max_tokens": 10, "temperature": 1.0, "seed": 7}
    assert smollm2.generate("smollm2", **fields)[1]["text_output"] == first[0]


def test_text_of_many_bytes_per_letter_arrives_whole(smollm2: Client) -> None:
    events = smollm2.stream(
        "smollm2", user_message="Repeat exactly: 🎉 你好 🎉 你好 é", max_tokens=16
    )
    text = "".join(event["text_output"] for event in events[:-1])
    assert "\ufffd" not in text


def test_a_client_that_leaves_frees_its_row(smollm2: Client) -> None:
    stream = smollm2.open_stream(
        "smollm2", user_message="Tell me a story.", max_tokens=900, ignore_eos=True
    )
    with contextlib.closing(stream):
        next(stream.events())
        eventually(lambda: smollm2.metrics("smollm2")["triton_hf_requests_running"] == 1)
    eventually(lambda: smollm2.metrics("smollm2")["triton_hf_requests_running"] == 0)


def test_an_over_long_prompt_is_refused_and_the_next_request_works(smollm2: Client) -> None:
    status, answer = smollm2.infer("smollm2", user_message=["word " * 2000])
    assert (status, "this model takes at most 1024" in answer["error"]) == (400, True)
    assert smollm2.generate("smollm2", user_message="Hi", max_tokens=1)[0] == 200
