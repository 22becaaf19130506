"""Real tritonservers for the tests: a simulated one and one with SmolLM2."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton.server import running_server
from lib.pooling_models import Pooled, write_store
from lib.triton_client import Client
from tools import vllm_environment
from tools.demo_model import REPOSITORY
from tools.hub_mirror.repositories import populate
from tools.hub_mirror.server import HubServer, running_hub
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec

SHM_BYTES = 256 * 1024 * 1024


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    reason = _missing()
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.triton)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


def _missing() -> str | None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the embedded Triton is for Linux on x86-64"
    shm = os.statvfs("/dev/shm")
    if shm.f_bavail * shm.f_frsize < SHM_BYTES:
        return "/dev/shm has less than 256 MB free"
    return None


SIMULATED = {
    "quick": {"ttft_ms": "5", "inter_token_ms": "2", "slots": "8", "max_total_tokens": "4096"},
    "tight": {"ttft_ms": "5", "inter_token_ms": "20", "slots": "1", "max_queue": "1"},
    "hasty": {"ttft_ms": "5", "inter_token_ms": "20", "slots": "1", "max_queue_seconds": "0.2"},
    "paced": {"ttft_ms": "5", "inter_token_ms": "20", "slots": "8", "stream_events": "100"},
}


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server with `quick` (8 slots), `tight` (1 slot, 1 may wait), `hasty` (1 slot, 0.2 s to
    wait for it) and `paced` (100 events/s).
    """  # noqa: D205
    folder = tmp_path_factory.mktemp("simulated")
    for name, parameters in SIMULATED.items():
        write_model(
            folder / "models",
            ModelSpec(
                name=name,
                engine="simulated",
                parameters={"max_prompt_tokens": "50", "max_tokens": "8", **parameters},
            ),
        )
    arguments = [f"--model-repository={folder / 'models'}"]
    with running_server(arguments=arguments, workdir=folder) as server:
        yield Client(server)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The Hub mirror with the open and the gated repository."""
    root = tmp_path_factory.mktemp("hub")
    populate(root)
    with running_hub(root) as server:
        yield server


ENGINES = {
    "transformers": {"dtype": "float32", "device": "cpu", "slots": "4"},
    "vllm": {"dtype": "float32", "slots": "4"},
}


@pytest.fixture(scope="session", params=ENGINES)
def smollm2(
    request: pytest.FixtureRequest, hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A server with the real SmolLM2-135M-Instruct, downloaded from the mirror at load."""
    with serving_smollm2(
        hub, tmp_path_factory.mktemp("smollm2"), engine=request.param, **ENGINES[request.param]
    ) as client:
        yield client


@contextlib.contextmanager
def serving_smollm2(
    hub: HubServer, folder: Path, *, engine: str, **parameters: str
) -> Iterator[Client]:
    """A server with SmolLM2; skips the test where the environment of engine vllm is missing."""
    if engine == "vllm" and (reason := vllm_environment.missing()):
        pytest.skip(reason)
    write_model(
        folder / "models",
        ModelSpec(name="smollm2", engine=engine, repository=REPOSITORY, parameters=parameters),
    )
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",
        "TERMINATION_LOG": str(folder / "termination-log"),
    }
    with running_server(
        arguments=[f"--model-repository={folder / 'models'}"],
        workdir=folder,
        environment=environment,
        packages=vllm_environment.site_packages() if engine == "vllm" else None,
        wait_seconds=400,
    ) as server:
        yield Client(server)


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pooled]:
    """A server with a tiny embedding model, a reranker and a classifier from a synced store."""
    root = tmp_path_factory.mktemp("pooled")
    embedder, ranker = write_store(root)
    with running_server(
        arguments=[f"--model-repository={root / 'store/repository/g1'}"],
        workdir=root,
        environment={"TRITON_HF_STORE": str(root / "store"), "HF_HUB_OFFLINE": "1"},
        wait_seconds=400,
    ) as server:
        yield Pooled(store=root / "store", client=Client(server), embedder=embedder, ranker=ranker)
