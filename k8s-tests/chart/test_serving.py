"""The rendered command lines on the real programs: sync fills a store, tritonserver serves it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from chart.rendering import CHART, Manifest, render
from embedded_triton.server import Server, running_server

pytestmark = [pytest.mark.chart, pytest.mark.triton]
HEADER = "opened"
KEY = "a-client"
CLOSED = {"server": {"apiKey": {"existingSecret": "keys"}}}


def manifest(values: dict[str, Any] | None = None) -> Manifest:
    return render(values, file=CHART / "ci" / "embedded-values.yaml")


def words(arguments: list[str], store: Path) -> list[str]:
    """Return a rendered command line with what differs outside a pod put in."""
    spec = store.parent / "models.json"
    return [
        word.replace("/etc/triton-hf/models.json", str(spec))
        .replace("=/models", f"={store}")
        .replace("$(TRITON_ADMIN_KEY)", HEADER)
        .replace("$(TRITON_API_KEY)", KEY)
        for word in arguments
    ]


def filled_store(folder: Path) -> Path:
    """Run the model-sync Job's command line on an empty folder."""
    template = manifest().one("Job")["spec"]["template"]
    store = folder / "models"
    store.mkdir()
    models = template["metadata"]["annotations"]["triton-hf/models"]
    (folder / "models.json").write_text(models)
    (container,) = template["spec"]["containers"]
    done = subprocess.run(
        [sys.executable, "-m", "triton_hf", *words(container["args"], store)],
        env={**os.environ, "PYTHONPATH": str(CHART.parents[1] / "image")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tritonserver of the oldest supported version, started as the Deployment does."""
    with serving(manifest(), tmp_path_factory.mktemp("chart")) as running:
        yield running


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same with an API key."""
    with serving(manifest(CLOSED), tmp_path_factory.mktemp("closed")) as running:
        yield running


@contextlib.contextmanager
def serving(rendered: Manifest, folder: Path) -> Iterator[Server]:
    """Run tritonserver with the command line of the Deployment."""
    store = filled_store(folder)
    # Ports and time-outs are the test's own.
    given = [
        word
        for word in words(rendered.server["args"][1:], store)
        if not word.startswith(("--http-port", "--grpc-port", "--metrics-port", "--exit-timeout"))
    ]
    environment = {"TRITON_HF_STORE": str(store), "HF_HUB_OFFLINE": "1"}
    with running_server(arguments=given, workdir=folder, environment=environment) as running:
        yield running


def call(server: Server, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}{path}", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_tritonserver_takes_every_rendered_flag(server: Server) -> None:
    assert server.ready(), server.output()


def test_the_helm_test_passes_on_it(server: Server) -> None:
    script = CHART / "files" / "ask.py"
    (container,) = manifest().one("Pod")["spec"]["containers"]
    models = container["args"][3:]
    assert models == ["simulated"]
    done = subprocess.run(
        [sys.executable, "-c", script.read_text(), server.url, "60", *models],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "simulated: ready; answers " in done.stdout


def test_the_helm_test_fails_with_a_sentence_for_a_model_that_is_not_there(server: Server) -> None:
    script = (CHART / "files" / "ask.py").read_text()
    done = subprocess.run(
        [sys.executable, "-c", script, server.url, "60", "nobody"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("/v2/models/nobody/ready answered 400")
    assert "Traceback" not in done.stderr


def test_the_call_in_the_notes_is_answered(server: Server) -> None:
    status, text = call(server, "/v2/models/simulated/generate", {"user_message": "Why?"})
    assert status == 200
    assert json.loads(text)["text_output"]


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/models/simulated/config",
        "/v2/models/simulated/stats",
        "/v2/logging",
        "/v2/trace/setting",
        "/v2/systemsharedmemory/status",
    ],
)
def test_a_closed_api_wants_the_header(server: Server, path: str) -> None:
    body: dict[str, str] | None = {} if path == "/v2/repository/index" else None
    assert call(server, path, body)[0] == 403
    assert call(server, path, body, **{"triton-admin-key": HEADER})[0] == 200


ADMIN_CALLS: dict[str, Callable[..., Any]] = {
    "repository index": lambda client, **more: client.get_model_repository_index(**more),
    "load": lambda client, **more: client.load_model("simulated", **more),
    "unload": lambda client, **more: client.unload_model("simulated", **more),
    "config": lambda client, **more: client.get_model_config("simulated", **more),
    "statistics": lambda client, **more: client.get_inference_statistics("simulated", **more),
    "trace settings": lambda client, **more: client.get_trace_settings(**more),
    "trace change": lambda client, **more: client.update_trace_settings(
        settings={"trace_count": "0"}, **more
    ),
    "log settings": lambda client, **more: client.get_log_settings(**more),
    "log change": lambda client, **more: client.update_log_settings({"log_info": True}, **more),
    "shared memory": lambda client, **more: client.get_system_shared_memory_status(**more),
    "shared memory of a GPU": lambda client, **more: client.get_cuda_shared_memory_status(**more),
    "shared memory, new": lambda client, **more: client.register_system_shared_memory(
        "mine", "/not-there", 8, **more
    ),
}
# What the header does not open: the models are fixed, and the wheel's Triton knows no GPU.
STAYS_CLOSED = {
    "load": "explicit model load / unload is not allowed",
    "unload": "explicit model load / unload is not allowed",
    "shared memory, new": "Unable to open shared memory region",
}


@pytest.mark.parametrize(("name", "ask"), ADMIN_CALLS.items(), ids=ADMIN_CALLS)
def test_a_closed_api_wants_the_header_over_grpc_too(
    server: Server, name: str, ask: Callable[..., Any]
) -> None:
    wrong = {"triton-grpc-protocol-triton-admin-key": "guessed"}
    right = {"triton-grpc-protocol-triton-admin-key": HEADER}
    with grpcclient.InferenceServerClient(f"127.0.0.1:{server.ports.grpc}") as client:
        for headers in (None, wrong):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask(client, headers=headers)
        if name in STAYS_CLOSED:
            with pytest.raises(InferenceServerException, match=STAYS_CLOSED[name]):
                ask(client, headers=right)
        else:
            ask(client, headers=right)


@pytest.mark.parametrize("path", ["simulated/generate", "simulated_stream/generate_stream"])
def test_with_an_api_key_nobody_else_is_answered(closed: Server, path: str) -> None:
    body = {"user_message": "Why?", "max_tokens": 2}
    assert call(closed, f"/v2/models/{path}", body)[0] == 403
    assert call(closed, f"/v2/models/{path}", body, **{"x-api-key": "guessed"})[0] == 403
    assert call(closed, f"/v2/models/{path}", body, **{"x-api-key": KEY})[0] == 200
    assert closed.ready()


def test_with_an_api_key_grpc_wants_it_too(closed: Server) -> None:
    text = np.array([[b"Why?"]], dtype=np.object_)
    tensor = grpcclient.InferInput("user_message", text.shape, "BYTES")
    tensor.set_data_from_numpy(text)
    with grpcclient.InferenceServerClient(f"127.0.0.1:{closed.ports.grpc}") as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.infer("simulated", [tensor])
        headers = {"triton-grpc-protocol-x-api-key": KEY}
        assert client.infer("simulated", [tensor], headers=headers).as_numpy("text_output").size


def test_the_helm_test_brings_the_api_key(closed: Server) -> None:
    script = (CHART / "files" / "ask.py").read_text()
    (container,) = manifest(CLOSED).one("Pod")["spec"]["containers"]
    names = {entry["name"] for entry in container["env"]}
    assert names == {"API_KEY", "API_KEY_HEADER"}
    (header,) = (e["value"] for e in container["env"] if e["name"] == "API_KEY_HEADER")
    words = [sys.executable, "-c", script, closed.url, "60", "simulated"]
    for key, code in ((KEY, 0), ("guessed", 1)):
        environment = {**os.environ, "API_KEY": key, "API_KEY_HEADER": header}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr


def test_loading_a_model_is_refused_even_with_the_header(server: Server) -> None:
    path = "/v2/repository/models/simulated/load"
    assert call(server, path, {}, **{"triton-admin-key": HEADER})[0] >= 400


def test_latency_summaries_are_on(server: Server) -> None:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        assert "nv_inference_request_summary_us" in answer.read().decode()
