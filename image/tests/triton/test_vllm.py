"""Engine vllm on a real Triton with real vLLM: refusals, ends, and an EngineCore that is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedded_triton.server import EmbeddedError, Server
from lib.triton_client import Client, eventually
from tools.hub_mirror.server import HubServer
from triton_hf.engines.vllm_core import SILENT_SECONDS

from .conftest import serving_smollm2

LONG = {"user_message": "Tell me a story.", "max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def tight(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """SmolLM2 in vLLM with 1 slot; 1 request may wait."""
    folder = tmp_path_factory.mktemp("tight")
    with serving_smollm2(hub, folder, engine="vllm", slots="1", max_queue="1") as client:
        yield client


def children(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in tasks.read_text().split()]
    return [*found, *(deeper for child in found for deeper in children(child))]


def engine_core(server: Server) -> int:
    stub = int(json.loads((server.runtime / "health/smollm2.json").read_text())["pid"])
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(stub)}
    (found,) = (pid for pid, name in names.items() if name == "VLLM::EngineCor")  # 15 letters
    return found


def test_a_full_queue_refuses_and_a_client_that_leaves_is_aborted_in_vllm(tight: Client) -> None:
    before = tight.metrics("smollm2")
    first = tight.open_stream("smollm2", **LONG)
    next(first.events())
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tight.generate, "smollm2", user_message="Hi", max_tokens=1)
        eventually(lambda: tight.metrics("smollm2")["triton_hf_requests_waiting"] == 1)
        status, answer = tight.infer("smollm2", user_message=["c"])
        assert (status, "the queue is full" in answer["error"]) == (503, True)
        first.close()
        # With one sequence at a time vLLM would finish the long answer first.
        assert waiting.result()[0] == 200

    def counted() -> None:
        now = tight.metrics("smollm2")
        gone = "triton_hf_requests_cancelled_total"
        assert now[gone] - before[gone] == 1
        assert now["triton_hf_generation_tokens_total"] < 900
        assert now["triton_hf_requests_running"] == 0

    eventually(counted)


def test_the_gauges_follow_vllm(tight: Client) -> None:
    stream = tight.open_stream("smollm2", **LONG)
    next(stream.events())
    eventually(lambda: tight.metrics("smollm2")["triton_hf_kv_cache_usage_ratio"] > 0)
    assert tight.metrics("smollm2")["triton_hf_requests_running"] == 1
    stream.close()


def test_parameters_of_sampling_reach_vllm(tight: Client) -> None:
    def ask(**fields: object) -> str:
        question = {"user_message": "Write about the sea.", "max_tokens": 16}
        return str(tight.generate("smollm2", **question, **fields)[1]["text_output"])

    greedy = ask()
    assert ask(temperature=2.0, top_k=1, seed=1) == greedy
    assert ask(temperature=2.0, top_p=1e-6, seed=1) == greedy
    hot = ask(temperature=2.0, seed=1)
    assert hot != greedy
    assert ask(temperature=2.0, seed=1) == hot
    assert ask(temperature=2.0, seed=2) != hot
    assert ask(repetition_penalty=2.0) != greedy
    word = greedy.split()[2]
    assert ask(stop=word) == greedy[: greedy.index(word)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (signal.SIGKILL, "vLLM's EngineCore has died"),
        (signal.SIGSTOP, f"vLLM's EngineCore has not answered for {SILENT_SECONDS:g} s"),
    ],
)
def test_an_idle_server_ends_with_the_reason_when_its_engine_core_is_lost(
    hub: HubServer, tmp_path: Path, fault: signal.Signals, words: str
) -> None:
    with serving_smollm2(hub, tmp_path, engine="vllm") as client:
        assert client.generate("smollm2", user_message="Hi", max_tokens=1)[0] == 200
        core = engine_core(client.server)
        os.kill(core, fault)
        start = time.monotonic()
        eventually(lambda: client.server.process.poll() is not None, seconds=SILENT_SECONDS + 40)
        assert words in (tmp_path / "termination-log").read_text()
        limit = 15 if fault == signal.SIGKILL else SILENT_SECONDS + 20
        assert time.monotonic() - start < limit
        eventually(lambda: not Path(f"/proc/{core}").exists())


def test_a_death_under_load_fails_the_running_requests_at_once(
    hub: HubServer, tmp_path: Path
) -> None:
    with serving_smollm2(hub, tmp_path, engine="vllm") as client:
        stream = client.open_stream("smollm2", **LONG)
        events = stream.events()
        next(events)
        os.kill(engine_core(client.server), signal.SIGKILL)
        last = list(events)[-1]
        assert "the engine has ended: vLLM's EngineCore has died" in last["error"]
        eventually(lambda: client.server.process.poll() is not None)


def test_vllm_that_is_not_in_the_image_is_one_sentence(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.vllm_environment.missing", lambda: None)
    no_vllm: Callable[[], None] = lambda: None  # noqa: E731  # the packages of the tests
    monkeypatch.setattr("tools.vllm_environment.site_packages", no_vllm)
    with pytest.raises(EmbeddedError), serving_smollm2(hub, tmp_path, engine="vllm"):
        pass
    said = (tmp_path / "termination-log").read_text().splitlines()
    assert said == [
        "model 'smollm2': engine vllm needs vLLM, which this image lacks; use the image of the "
        "Dockerfile's target 'vllm', or engine transformers"
    ]
