"""What a client sees of an installed release, from outside the cluster."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from typing import Any

import openai
import pytest

from lib.prometheus import free_port
from tools import helm
from tools.ask import Door, question
from tools.helm import Release
from tools.install import door as find_door
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def entrance(served: Release) -> Door:
    return find_door(served.place, served)


def test_a_model_answers_through_the_ingress(entrance: Door) -> None:
    outputs = entrance.infer("simulated", "one two three", max_tokens=3)
    assert outputs["text_output"].split() == ["one", "two", "three"]
    assert outputs["completion_tokens"] == 3
    assert outputs["finish_reason"] == "length"


def test_a_model_answers_through_the_http_route(served: Release, entrance: Door) -> None:
    if not served.place.embedded:
        pytest.skip("needs a Gateway; the embedded cluster has one")
    route = dataclasses.replace(entrance, host=f"route-{served.namespace}.test")
    # As for the Ingress: its controller needs a moment to see a new route and its servers.
    outputs = until(lambda: route.infer("simulated", "one two", max_tokens=2), seconds=60)
    assert outputs["completion_tokens"] == 2


@pytest.mark.parametrize("way", ["ingress", "route"])
def test_openais_client_is_answered_whole_and_streamed(
    served: Release, entrance: Door, way: str
) -> None:
    if way == "route" and not served.place.embedded:
        pytest.skip("needs a Gateway; the embedded cluster has one")
    host = entrance.host if way == "ingress" else f"route-{served.namespace}.test"
    client = openai.OpenAI(
        base_url=f"http://{entrance.address}:{entrance.port}/v1",
        api_key="none",
        default_headers={"Host": host},
        max_retries=0,
    )
    # Its controller needs a moment to see a new route and its servers.
    until(lambda: [model.id for model in client.models.list()] == ["simulated"], seconds=60)
    asked: Any = {
        "model": "simulated",
        "messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": 4,
    }
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == "one two three one"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 4
    chunks = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(**asked, temperature=9.0)
    with pytest.raises(openai.NotFoundError, match="none"):
        client.chat.completions.create(**asked | {"model": "none"})


def test_tokens_stream_through_the_ingress(entrance: Door) -> None:
    body = json.dumps({"user_message": "a b c d", "max_tokens": 400}).encode()
    status, answer = entrance.request("POST", "/v2/models/simulated_stream/generate_stream", body)
    events = [json.loads(line[5:]) for line in answer.split(b"\n") if line.startswith(b"data:")]
    assert status == 200
    assert "".join(event["text_output"] for event in events).split() == ["a", "b", "c", "d"] * 100
    assert events[-1]["finish_reason"] == "length"
    assert len(events) >= 2, "the answer came as one piece"


def test_rows_of_a_batch_are_answered_in_order(entrance: Door) -> None:
    rows = [["first"], ["second"], ["third"]]
    tensor = {"name": "user_message", "datatype": "BYTES", "shape": [3, 1], "data": rows}
    body = json.dumps({"inputs": [tensor], "parameters": {"max_tokens": 1}}).encode()
    status, answer = entrance.request("POST", "/v2/models/simulated/infer", body)
    assert status == 200, answer
    outputs = {output["name"]: output for output in json.loads(answer)["outputs"]}
    assert [text.strip() for text in outputs["text_output"]["data"]] == ["first", "second", "third"]
    assert outputs["text_output"]["shape"] == [3, 1]


def tensor(**changes: Any) -> bytes:
    good = {"name": "user_message", "datatype": "BYTES", "shape": [1, 1], "data": [["hello"]]}
    return json.dumps({"inputs": [{**good, **changes}]}).encode()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param(tensor(name="question"), "question", id="wrong tensor name"),
        pytest.param(tensor(datatype="FP32", data=[[1.0]]), "user_message", id="wrong datatype"),
        pytest.param(tensor(shape=[1, 2], data=[["a", "b"]]), "user_message", id="wrong shape"),
        pytest.param(tensor(data=[[""]]), "user_message", id="empty message"),
        pytest.param(question("hello", temperature=9.0), "temperature", id="out of range"),
        pytest.param(question("hello", warmth=1), "warmth", id="unknown parameter"),
        pytest.param(question("word " * 20_000), "tokens", id="over-long prompt"),
        pytest.param(
            tensor(data=[["broken"]]).replace(b"broken", b"a\xff"), "UTF-8", id="no UTF-8"
        ),
    ],
)
def test_a_bad_request_is_refused_with_its_fault_named_and_the_next_one_works(
    entrance: Door, body: bytes, named: str
) -> None:
    status, answer = entrance.request("POST", "/v2/models/simulated/infer", body)
    assert 400 <= status < 500, (status, answer)
    assert named in json.loads(answer)["error"]
    assert entrance.infer("simulated", "still here", max_tokens=1)["completion_tokens"] == 1


def test_a_body_that_is_not_json_is_refused_and_the_next_one_works(entrance: Door) -> None:
    status, answer = entrance.request("POST", "/v2/models/simulated/infer", b"this is not JSON")
    # tritonserver's own answer, before any model is asked: see faults/upstream.md.
    assert status == 500, (status, answer)
    assert "failed to parse the request JSON" in json.loads(answer)["error"]
    assert entrance.infer("simulated", "still here", max_tokens=1)["completion_tokens"] == 1


def test_an_unknown_model_is_not_found_and_the_next_request_works(entrance: Door) -> None:
    status, _ = entrance.request("POST", "/v2/models/nobody/infer", question("hello"))
    assert status == 404
    assert entrance.infer("simulated", "still here", max_tokens=1)["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/simulated/unload"),
        ("GET", "/v2/models/simulated/config"),
        ("GET", "/v2/models/simulated/stats"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/logging"),
        ("GET", "/metrics"),
        ("GET", "/v2"),
    ],
)
def test_what_is_not_for_clients_does_not_pass_the_ingress(
    entrance: Door, method: str, path: str
) -> None:
    status, _ = entrance.request(method, path, b"{}" if method == "POST" else None)
    assert status == 404


@pytest.mark.parametrize("entrance_host", ["ingress", "route"])
@pytest.mark.parametrize(
    "path",
    [
        "//v2/logging",
        "/v2//logging",
        "/v2/models/simulated//config",
        "/v2/models/simulated/ready/../config",
        "/v2/models/simulated/ready/%2e%2e/config",
        "/v2/models/simulated/ready/..%2fconfig",
        "/v2/models/simulated/../../logging",
        "/v2/models/simulated/%2e%2e/%2e%2e/logging",
        "/v2/models/simulated/./config",
        "/v2/models/simulated/%63onfig",
        "/v2/models/simulated/config;/ready",
        "/v2/models/simulated/config%00/ready",
        "/v2/models/simulated/READY",
        "/v2/models/simulated/ready/",
        "/v2/health/ready/../../logging",
    ],
)
def test_no_way_of_writing_a_path_opens_more(
    served: Release, entrance: Door, entrance_host: str, path: str
) -> None:
    if entrance_host == "route":
        if not served.place.embedded:
            pytest.skip("needs a Gateway; the embedded cluster has one")
        entrance = dataclasses.replace(entrance, host=f"route-{served.namespace}.test")
    status, answer = entrance.request("GET", path)
    assert status in (400, 404)
    # Whatever Triton says is JSON.
    assert b"{" not in answer


@pytest.mark.parametrize(
    "path", ["/v2/models/simulated", "/v2/models/simulated/ready", "/v2/models/simulated_stream"]
)
def test_metadata_and_ready_pass_the_ingress(entrance: Door, path: str) -> None:
    assert entrance.request("GET", path)[0] == 200


def test_the_commands_of_the_notes_work_as_pasted(served: Release) -> None:
    notes = helm.run(served.place, "helm", "get", "notes", served.name, "-n", served.namespace)
    commands = [line.strip() for line in notes.splitlines()]
    (forward,) = (line for line in commands if " port-forward " in line)
    (curl,) = (line for line in commands if line.startswith("curl "))
    assert forward.endswith(" &")
    # 8000 may be taken on this machine; what the notes say besides stays as it is.
    port = str(free_port())
    script = f"""
        {forward.replace(" 8000:", f" {port}:")}
        trap "kill $!" EXIT
        for _ in $(seq 100); do
          curl -s -o /dev/null http://localhost:{port}/v2/health/ready && break
          sleep 0.1
        done
        {curl.replace("localhost:8000", f"localhost:{port}")} -sS -w "\n%{{http_code}}"
    """
    done = subprocess.run(
        ["sh", "-ec", script],
        env=served.place.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer, status = done.stdout.rsplit("\n", 1)
    assert status == "200", done.stderr
    assert json.loads(answer.splitlines()[-1])["text_output"]


def test_helm_test_passes(served: Release) -> None:
    assert "Phase:          Succeeded" in served.test()


def test_servers_have_no_token_no_api_access_and_a_read_only_root(served: Release) -> None:
    (pod,) = served.pods()
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert all(c["securityContext"]["readOnlyRootFilesystem"] for c in spec["containers"])
    store = [m for m in spec["containers"][0]["volumeMounts"] if m["mountPath"] == "/models"]
    assert [m.get("readOnly") for m in store] == [True]


def test_the_metrics_of_the_engine_are_on_tritons_own_page(served: Release, entrance: Door) -> None:
    entrance.infer("simulated", "count me", max_tokens=2)
    (pod,) = served.pods()
    page = helm.run(
        served.place,
        *("kubectl", "-n", served.namespace, "exec", pod["metadata"]["name"], "--"),
        *(
            "python3",
            "-c",
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8002/metrics').read().decode())",
        ),
    )
    for name in ("triton_hf_requests_running", "triton_hf_requests_waiting", "triton_hf_slots"):
        assert f'{name}{{model="simulated"}}' in page
    assert "nv_inference_request_success" in page
