"""`--client openai` against the API that the image serves, beside a real Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from embedded_triton.server import Server, running_server
from lib.locust_runs import locust, measured
from lib.openai_server import Api, running_api
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_load import data, record, schema
from triton_load.clients import openai_api
from triton_load.clients.base import Target
from triton_load.errors import LoadTestError
from triton_load.measure import Outcome

DATA = "load_testing/example/data_llama.json"
SCHEMA = "model_repository/llama3-8b/config.pbtxt"
CALM = ("--client=openai", "--max-lag=60000", "--stop-timeout=5")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Api]]:
    """A simulated model that has the name of the documented one, and the API beside it."""
    folder = tmp_path_factory.mktemp("load")
    parameters = {"ttft_ms": "40", "inter_token_ms": "10", "slots": "8", "max_tokens": "16"}
    spec = ModelSpec(name="llama3-8b", engine="simulated", parameters=parameters)
    write_model(folder / "models", spec)
    arguments = [f"--model-repository={folder / 'models'}"]
    with (
        running_server(arguments=arguments, workdir=folder) as server,
        running_api(grpc_port=server.ports.grpc, workdir=folder) as api,
    ):
        yield server, api


@pytest.mark.triton
def test_the_documented_data_go_through_the_api_with_the_tokens_of_its_usage(
    served: tuple[Server, Api], tmp_path: Path
) -> None:
    words = (*CALM, "--data", DATA, "--schema", SCHEMA, "--host", served[1].url, "--max-tokens=10")
    done, found = measured(tmp_path, *words, "-t4s", "-u2", "-r2")
    assert done.returncode == 0, done.stdout + done.stderr
    requests = found.totals.requests
    assert requests > 10
    assert found.config["client"] == "openai"
    for name, each in ((record.TTFT, 1), (record.OUTPUT_TOKENS, 1), (record.INTER_TOKEN, 9)):
        assert found.distributions[name].count == requests * each
    assert found.distributions[record.OUTPUT_TOKENS].quantile(50) == pytest.approx(10, rel=0.01)
    assert found.distributions[record.TTFT].quantile(50) >= 0.04
    assert found.distributions[record.INTER_TOKEN].mean == pytest.approx(0.01, rel=0.5)
    assert found.distributions[record.PROMPT_TOKENS].quantile(50) > 1


@pytest.mark.triton
def test_the_api_and_triton_count_the_same(served: tuple[Server, Api], tmp_path: Path) -> None:
    server, api = served
    counted = {}
    for client, host in (("openai", api.url), ("stream", server.url)):
        words = (f"--client={client}", "--model=llama3-8b", "--data", DATA, "--host", host)
        done, found = measured(tmp_path / client, *CALM[1:], *words, "-t3s", "--max-tokens=8")
        assert done.returncode == 0, done.stdout + done.stderr
        names = (record.PROMPT_TOKENS, record.OUTPUT_TOKENS)
        counted[client] = [found.distributions[name].quantile(50) for name in names]
    assert counted["openai"] == counted["stream"]


@pytest.mark.triton
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "hello you"}], "max_tokens": 5},
        {"model": "other", "prompt": "hello you", "max_tokens": 5, "stop": ["x"], "stream": False},
    ],
    ids=["chat", "completions"],
)
def test_bodies_of_the_api_itself_are_data(
    served: tuple[Server, Api], tmp_path: Path, body: dict[str, Any]
) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps([body]))
    words = (*CALM, "--model=llama3-8b", "--host", served[1].url, f"--data={file}")
    done, found = measured(tmp_path / "out", *words, "-t3s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.totals.requests > 5
    assert found.distributions[record.OUTPUT_TOKENS].quantile(50) == pytest.approx(5, rel=0.01)


@pytest.mark.triton
def test_generated_prompts_go_through_the_api(served: tuple[Server, Api], tmp_path: Path) -> None:
    words = (*CALM, "--model=llama3-8b", "--prompt-tokens=30", "--max-tokens=4", "--ignore-eos")
    done, found = measured(tmp_path, *words, "--host", served[1].url, "-t3s", "--rate=5")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.distributions[record.PROMPT_TOKENS].quantile(50) == pytest.approx(30, abs=3)


@pytest.mark.triton
def test_what_the_api_refuses_is_told_in_its_words(
    served: tuple[Server, Api], tmp_path: Path
) -> None:
    words = (*CALM, "--model=llama3-8b", "--host", served[1].url, "--temperature=99")
    done, found = measured(tmp_path, *words, "-t3s")
    assert done.returncode == 1, done.stdout + done.stderr
    assert found.errors[0].name == "HTTP 400"
    assert found.errors[0].example.startswith("parameter 'temperature'")


@pytest.mark.triton
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--model=other", "--host={api}"), "serves no model 'other'; it serves llama3-8b"),
        (("--model=llama3-8b", "--host={triton}"), "is OpenAI's API there? Triton itself has"),
    ],
)
def test_a_wrong_port_or_model_is_one_sentence_before_any_load(
    served: tuple[Server, Api], words: Sequence[str], sentence: str
) -> None:
    hosts = {"triton": served[0].url, "api": served[1].url.removesuffix("/v1")}
    done = locust("--headless", "-t2s", *CALM, *(word.format(**hosts) for word in words))
    assert done.returncode == 2, done.stdout + done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert sentence in told


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("http://a", "/v1"),
        ("http://a:9000/", "/v1"),
        ("http://a/v1", "/v1"),
        ("https://a/team/v1/", "/team/v1"),
        ("https://a/team", "/team/v1"),
    ],
)
def test_the_api_is_at_v1_of_the_host(host: str, path: str) -> None:
    assert openai_api.base_path(host) == path


def case_of(tmp_path: Path, document: object) -> data.Case:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(document))
    (case,) = data.read_cases(file, schema.of_openai("m"), bodies=True)
    return case


def text(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [value]}


def test_tensors_become_messages_and_parameters_fields(tmp_path: Path) -> None:
    inputs = [text("user_message", "hi"), text("system_message", "be kind")]
    case = case_of(tmp_path, {"inputs": inputs, "parameters": {"max_tokens": 3}})
    roles = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert openai_api.request_of(case) == (
        "chat/completions",
        {"max_tokens": 3, "messages": roles},
    )
    case = case_of(tmp_path, {"inputs": [text("prompt", "Once")]})
    assert openai_api.request_of(case) == ("completions", {"prompt": "Once"})


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"inputs": [text("messages", "{")]}, "input 'messages' is not JSON"),
        ({"inputs": [text("messages", "{}")]}, "must be a JSON list"),
        ({"inputs": [text("x", "y")]}, "has no input 'x'"),
        ({"inputs": [text("system_message", "y")]}, "needs 'user_message' or 'messages' or"),
        (
            {"inputs": [text("prompt", "y")], "parameters": {"stream": False}},
            "parameter 'stream' is set by --client openai",
        ),
    ],
)
def test_data_that_the_api_cannot_take_are_one_sentence(
    tmp_path: Path, document: object, words: str
) -> None:
    with pytest.raises(LoadTestError, match=words):
        openai_api.request_of(case_of(tmp_path, document))


CHUNK = b'data: {"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": %d}}\n\n'
DONE = b"data: [DONE]\n\n"


def answered(body: bytes) -> Outcome:
    """Ask a server of the standard library that sends these bytes."""

    class Sends(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sends)
    Thread(target=server.serve_forever, daemon=True).start()
    target = Target(
        host=f"http://127.0.0.1:{server.server_port}",
        grpc="",
        model=schema.of_openai("m"),
        stream="m",
        timeout=10,
        keep_alive=False,
        insecure=False,
        headers={},
    )
    case = data.Case(name="x", weight=1, inputs=(text("prompt", "y"),), parameters={})
    outcome = Outcome(case="x", started=0.0)
    client = openai_api.OpenAIClient(target)
    client.send(case, outcome)
    client.close()
    server.shutdown()
    return outcome


def test_tokens_of_events_that_carry_several_are_those_of_the_usage() -> None:
    outcome = answered(b": a comment\n\n" + CHUNK * 3 + LAST + USAGE % 7 + DONE)
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens) == (4, 7)
    assert [count for _, count in outcome.tokens] == [2, 2, 3]


def test_without_usage_nobody_counted() -> None:
    outcome = answered(CHUNK * 2 + LAST + DONE)
    assert outcome.error is None
    assert (outcome.prompt_tokens, outcome.output_tokens) == (None, None)
    assert [count for _, count in outcome.tokens] == [1, 1]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (CHUNK + LAST, ("broken stream", "it ended after 1 events without [DONE]")),
        (CHUNK + DONE, ("broken stream", "it ended after 1 events without a reason")),
        (b"", ("broken stream", "it ended after 0 events without [DONE]")),
        (CHUNK + b'data: {"error": {"message": "gone"}}\n\n', ("error in a stream", "gone")),
        (b"data: {\n\n", ("error in a stream", "{")),
    ],
)
def test_a_stream_that_does_not_end_well_has_failed(body: bytes, error: tuple[str, str]) -> None:
    assert answered(body).error == error
