"""Generated prompts have the length that was asked for, as the real model's server counts it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton.server import Server, running_server
from lib.locust_runs import measured
from tools.demo_model import REPOSITORY
from tools.hub_mirror.repositories import populate
from tools.hub_mirror.server import running_hub
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_load import record

TEMPLATE_TOKENS = 30  # SmolLM2's chat template adds its own system message and the turns' marks


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the real SmolLM2-135M-Instruct."""
    folder = tmp_path_factory.mktemp("smollm2")
    populate(folder / "hub")
    parameters = {"dtype": "float32", "device": "cpu", "slots": "4"}
    spec = ModelSpec(name="smollm2", repository=REPOSITORY, parameters=parameters)
    write_model(folder / "models", spec)
    arguments = [f"--model-repository={folder / 'models'}"]
    with running_hub(folder / "hub") as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        with running_server(
            arguments=arguments, workdir=folder, environment=environment, wait_seconds=400
        ) as server:
            yield server


@pytest.mark.triton
@pytest.mark.parametrize("asked", [16, 100])
def test_a_prompt_has_the_tokens_asked_for_and_those_of_the_template(
    smollm2: Server, tmp_path: Path, asked: int
) -> None:
    words = ("--model=smollm2", f"--prompt-tokens={asked}", "--max-tokens=1", "--host", smollm2.url)
    done, found = measured(
        tmp_path, *words, "-u2", "-r2", "-t3s", "--stop-timeout=60", "--max-lag=60000"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counted = found.distributions[record.PROMPT_TOKENS]
    assert counted.count >= 2
    lengths = {round(value) for value, _ in counted.buckets()}
    assert lengths == {asked + TEMPLATE_TOKENS}
