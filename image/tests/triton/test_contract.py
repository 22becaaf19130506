"""The contract of a text model, on a real tritonserver with a simulated engine."""

from __future__ import annotations

import json
import queue
import statistics
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from lib.triton_client import Client, eventually

LENGTHS = {"prompt_tokens": "INT32", "completion_tokens": "INT32"}


def outputs(answer: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item["data"] for item in answer["outputs"]}


def test_infer_answers_whole_with_text_reason_and_lengths(simulated: Client) -> None:
    status, answer = simulated.infer(
        "quick", system_message=["be brief"], user_message=["why is it"]
    )
    assert status == 200
    assert outputs(answer) == {
        "text_output": ["why is it why is it why is"],
        "finish_reason": ["length"],
        "prompt_tokens": [5],
        "completion_tokens": [8],
    }
    assert {item["name"]: item["shape"] for item in answer["outputs"]} == {
        "text_output": [1, 1],
        "finish_reason": [1, 1],
        "prompt_tokens": [1, 1],
        "completion_tokens": [1, 1],
    }


def test_n_rows_give_n_answers_in_order(simulated: Client) -> None:
    rows = [f"row{n} x" for n in range(6)]
    status, answer = simulated.infer("quick", user_message=rows, parameters={"max_tokens": 1})
    assert status == 200
    assert outputs(answer)["text_output"] == [f"row{n}" for n in range(6)]


def test_messages_stand_instead_of_the_other_two(simulated: Client) -> None:
    history = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                          {"role": "user", "content": "c"}])  # fmt: skip
    status, answer = simulated.infer("quick", messages=[history], parameters={"max_tokens": 2})
    assert status == 200
    assert outputs(answer)["text_output"] == ["c c"]
    assert outputs(answer)["prompt_tokens"] == [3]


def test_binary_http_and_grpc_give_the_same_answer(simulated: Client) -> None:
    text = np.array([[b"why is it"]], dtype=np.object_)
    answers = []
    for module, port in (
        (tritonclient.http, simulated.server.ports.http),
        (tritonclient.grpc, simulated.server.ports.grpc),
    ):
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        tensor = module.InferInput("user_message", [1, 1], "BYTES")
        tensor.set_data_from_numpy(text)
        result = client.infer("quick", [tensor], parameters={"max_tokens": 3})
        answers.append(result.as_numpy("text_output").tolist())
        client.close()
    assert answers == [[[b"why is it"]]] * 2


def test_generate_takes_a_flat_object(simulated: Client) -> None:
    status, answer = simulated.generate("quick", user_message="a b", max_tokens=3, stop="b")
    assert status == 200
    assert (answer["text_output"], answer["finish_reason"]) == ("a ", "stop")
    assert answer["completion_tokens"] == 2


def test_a_stream_gives_tokens_as_they_are_made(simulated: Client) -> None:
    events = simulated.stream("tight", user_message="a b c", max_tokens=6)
    assert "".join(event["text_output"] for event in events) == "a b c a b c"
    assert [event["finish_reason"] for event in events][-1] == "length"
    assert {event["finish_reason"] for event in events[:-1]} == {""}
    counts = [event["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert len(events) > 1
    assert {event["prompt_tokens"] for event in events} == {3}


def test_a_stream_and_a_whole_answer_have_the_same_text(simulated: Client) -> None:
    fields = {"user_message": "one two three", "max_tokens": 40, "stop": '["four", "two one"]'}
    _, whole = simulated.generate("quick", **fields)
    events = simulated.stream("quick", **fields)
    assert "".join(event["text_output"] for event in events) == whole["text_output"]
    assert events[-1]["completion_tokens"] == whole["completion_tokens"]


def test_many_streams_carry_several_tokens_in_an_event_and_one_carries_one(
    simulated: Client,
) -> None:
    def stream(word: str) -> list[dict[str, Any]]:
        return simulated.stream("paced", user_message=word, max_tokens=60)

    alone = stream("a")
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(stream, "abcdefgh"))
    assert len(alone) > 45  # a busy machine merges some of 60; the crowd has 30 each at most
    for word, events in zip("abcdefgh", crowd, strict=True):
        assert "".join(event["text_output"] for event in events) == " ".join([word] * 60)
        assert events[-1]["completion_tokens"] == 60
    # The first token waits for no other; a busy machine may hold up one sender of the eight.
    assert statistics.median(events[0]["completion_tokens"] for events in crowd) == 1
    # 480 tokens in 1.2 s; 100 events a second, and a first and a last one for each stream.
    assert sum(map(len, crowd)) < 240


def test_the_companion_gives_one_answer_when_no_stream_is_wanted(simulated: Client) -> None:
    status, answer = simulated.generate(
        "quick_stream", user_message="a b", max_tokens=3, stream=False
    )
    assert status == 200
    assert (answer["text_output"], answer["finish_reason"]) == ("a b a", "length")


def test_streams_over_grpc_end_with_the_final_flag(simulated: Client) -> None:
    answers: list[Any] = []
    url = f"127.0.0.1:{simulated.server.ports.grpc}"
    with tritonclient.grpc.InferenceServerClient(url) as client:
        client.start_stream(lambda result, error: answers.append(error or result))
        tensor = tritonclient.grpc.InferInput("user_message", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"a b"]], dtype=np.object_))
        client.async_stream_infer(
            "quick_stream",
            [tensor],
            parameters={"max_tokens": 3},
            enable_empty_final_response=True,
        )
        eventually(lambda: any(finished(answer) for answer in answers))
        client.stop_stream()
    text = b"".join(
        answer.as_numpy("text_output")[0, 0]
        for answer in answers
        if answer.as_numpy("text_output") is not None
    )
    assert text == b"a b a"


def finished(answer: Any) -> bool:
    flag = answer.get_response().parameters.get("triton_final_response")
    return bool(flag and flag.bool_param)


def test_many_requests_at_once_get_their_own_answers(simulated: Client) -> None:
    def ask(number: int) -> tuple[str, str]:
        word = f"w{number}"
        if number % 2:
            events = simulated.stream("quick", user_message=word, max_tokens=5)
            return word, "".join(event["text_output"] for event in events)
        return word, simulated.generate("quick", user_message=word, max_tokens=5)[1]["text_output"]

    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(48)))
    assert answers == [(word, " ".join([word] * 5)) for word, _ in answers]


def test_a_client_that_leaves_frees_its_slot(simulated: Client) -> None:
    before = simulated.metrics("tight")["triton_hf_requests_cancelled_total"]
    stream = simulated.open_stream("tight", user_message="a b", max_tokens=1500)
    next(stream.events())
    eventually(lambda: simulated.metrics("tight")["triton_hf_requests_running"] == 1)
    stream.close()
    eventually(lambda: simulated.metrics("tight")["triton_hf_requests_running"] == 0)
    eventually(
        lambda: simulated.metrics("tight")["triton_hf_requests_cancelled_total"] == before + 1
    )
    assert simulated.generate("tight", user_message="a", max_tokens=1)[0] == 200


def test_a_client_of_infer_that_leaves_frees_its_slot(simulated: Client) -> None:
    url = f"127.0.0.1:{simulated.server.ports.grpc}"
    before = simulated.metrics("tight")["triton_hf_requests_cancelled_total"]
    with tritonclient.grpc.InferenceServerClient(url) as client:
        tensor = tritonclient.grpc.InferInput("user_message", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[b"a b"]], dtype=np.object_))
        call = client.async_infer(
            "tight", [tensor], lambda result, error: None, parameters={"max_tokens": 1500}
        )
        eventually(lambda: simulated.metrics("tight")["triton_hf_requests_running"] == 1)
        call.cancel()
        eventually(lambda: simulated.metrics("tight")["triton_hf_requests_running"] == 0)
    eventually(
        lambda: simulated.metrics("tight")["triton_hf_requests_cancelled_total"] == before + 1
    )


def by_infer(client: Client, model: str) -> tuple[Any, str]:
    status, answer = client.infer(model, user_message=["c"])
    return status, answer["error"]


def by_generate(client: Client, model: str) -> tuple[Any, str]:
    status, answer = client.generate(model, user_message="c")
    return status, answer["error"]


def by_generate_stream(client: Client, model: str) -> tuple[Any, str]:
    status, answer = client.post(
        f"/v2/models/{model}_stream/generate_stream", {"user_message": "c"}
    )
    return status, answer["error"]


def by_grpc(client: Client, model: str) -> tuple[Any, str]:
    with (
        tritonclient.grpc.InferenceServerClient(grpc_url(client)) as connection,
        pytest.raises(InferenceServerException) as caught,
    ):
        connection.infer(model, [text_tensor("c")])
    return caught.value.status(), caught.value.message()


def by_grpc_stream(
    client: Client, model: str, headers: dict[str, str] | None = None
) -> tuple[Any, str]:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(grpc_url(client)) as connection:
        connection.start_stream(lambda result, error: answers.put(error or result), headers=headers)
        connection.async_stream_infer(f"{model}_stream", [text_tensor("c")])
        error = answers.get(timeout=30)
        connection.stop_stream()
    assert isinstance(error, InferenceServerException)
    return error.status(), error.message()


def by_grpc_stream_that_wants_codes(client: Client, model: str) -> tuple[Any, str]:
    return by_grpc_stream(client, model, {"triton_grpc_error": "true"})


def grpc_url(client: Client) -> str:
    return f"127.0.0.1:{client.server.ports.grpc}"


def text_tensor(text: str) -> Any:
    tensor = tritonclient.grpc.InferInput("user_message", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()]], dtype=np.object_))
    return tensor


WAYS = {
    by_infer: 503,
    by_generate: 400,
    by_generate_stream: 400,
    by_grpc: "StatusCode.UNAVAILABLE",
    by_grpc_stream: None,
    by_grpc_stream_that_wants_codes: "StatusCode.UNAVAILABLE",
}


def test_a_full_queue_refuses_at_once_in_words_and_codes_of_each_way(simulated: Client) -> None:
    """What Triton 2.51 makes of it; where that is wrong is in k8s-tests/faults/upstream.md."""
    before = simulated.metrics("tight")["triton_hf_requests_rejected_total{queue_full}"]
    running = simulated.open_stream("tight", user_message="a", max_tokens=1500)
    next(running.events())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(simulated.stream, "tight", user_message="b", max_tokens=1)
        eventually(lambda: simulated.metrics("tight")["triton_hf_requests_waiting"] == 1)
        refusals = {way: way(simulated, "tight") for way in WAYS}
        running.close()
        assert waiting.result()[-1]["text_output"] == "b"
    assert {way: code for way, (code, _) in refusals.items()} == WAYS
    words = "the queue is full: 2 requests in flight and 1 new, 2 allowed; try again in"
    assert [words in text for _, text in refusals.values()] == [True] * len(WAYS), refusals
    eventually(
        lambda: (
            simulated.metrics("tight")["triton_hf_requests_rejected_total{queue_full}"]
            == before + len(WAYS)
        )
    )


def test_a_request_that_waits_too_long_is_refused_and_counted(simulated: Client) -> None:
    before = simulated.metrics("hasty")["triton_hf_requests_rejected_total{queue_deadline}"]
    running = simulated.open_stream("hasty", user_message="a", max_tokens=1500)
    next(running.events())
    refusals = {way: way(simulated, "hasty") for way in WAYS}
    running.close()
    assert {way: code for way, (code, _) in refusals.items()} == WAYS
    words = "no slot became free within 0.2 s ('max_queue_seconds'); try again in"
    assert [words in text for _, text in refusals.values()] == [True] * len(WAYS), refusals
    eventually(
        lambda: (
            simulated.metrics("hasty")["triton_hf_requests_rejected_total{queue_deadline}"]
            == before + len(WAYS)
        )
    )
    assert simulated.generate("hasty", user_message="a", max_tokens=1)[0] == 200


def test_metrics_are_exact_after_success_and_failure(simulated: Client) -> None:
    before = simulated.metrics("quick")
    simulated.infer("quick", user_message=["a b c", "d"], parameters={"max_tokens": 4})
    simulated.stream("quick", user_message="e f", max_tokens=4, stop="f")
    simulated.generate("quick", user_message="e f", max_tokens=0)
    expected = {
        "triton_hf_prompt_tokens_total": 6,
        "triton_hf_generation_tokens_total": 10,
        "triton_hf_requests_finished_total{length}": 2,
        "triton_hf_requests_finished_total{stop}": 1,
        "triton_hf_requests_rejected_total{invalid}": 1,
        "triton_hf_requests_cancelled_total": 0,
        "triton_hf_requests_failed_total": 0,
        "triton_hf_queue_seconds_count": 3,
        "triton_hf_time_to_first_token_seconds_count": 3,
        "triton_hf_inter_token_seconds_count": 7,
        "triton_hf_request_duration_seconds_count": 3,
        "triton_hf_prompt_tokens_sum": 6,
        "triton_hf_generation_tokens_sum": 10,
    }

    def exact() -> None:
        now = simulated.metrics("quick")
        assert {name: now[name] - before[name] for name in expected} == expected

    eventually(exact)
    after = simulated.metrics("quick")
    assert (after["triton_hf_requests_running"], after["triton_hf_requests_waiting"]) == (0, 0)
    assert after["triton_hf_slots"] == 8
    assert after["triton_hf_kv_cache_usage_ratio"] == 0


@pytest.mark.parametrize("model", ["quick", "tight"])
def test_every_series_exists_from_the_start(simulated: Client, model: str) -> None:
    from triton_hf.metrics import FAMILIES, ROUTER_GAUGES

    found = simulated.metrics(model)
    for family in FAMILIES:
        shown = any(name.startswith(family.name) for name in found)
        assert shown or family.optional, family.name
    assert found.keys() >= ROUTER_GAUGES.keys()


def test_the_gauges_of_routers_repeat_ours(simulated: Client) -> None:
    running = simulated.open_stream("tight", user_message="a b", max_tokens=1500)
    next(running.events())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(simulated.generate, "tight", user_message="b", max_tokens=1)

        def shown() -> None:
            now = simulated.metrics("tight")
            assert now["vllm:num_requests_running"] == now["triton_hf_requests_running"] == 1
            assert now["vllm:num_requests_waiting"] == now["triton_hf_requests_waiting"] == 1
            assert now["vllm:kv_cache_usage_perc"] == now["triton_hf_kv_cache_usage_ratio"] > 0

        eventually(shown)
        running.close()
        assert waiting.result()[0] == 200
