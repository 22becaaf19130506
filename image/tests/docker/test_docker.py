"""The Docker way of the README on a real engine: build, run, ask, stop, start again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import place
from tools.demo_model import REPOSITORY
from tools.wait import until

from .conftest import CLIENT, Engine

pytestmark = [pytest.mark.docker, pytest.mark.root]
QUESTION = {
    "inputs": [
        {
            "name": name,
            "datatype": "BYTES",
            "shape": [1, 1],
            "data": [[text]],
        }
        for name, text in (("system_message", "Answer briefly."), ("user_message", "Why is it so?"))
    ]
}
DOCUMENTED = ("-i", "--rm", "--shm-size=1G", "--ulimit", "stack=67108864", "--env-file", "./.env")


def ask(engine: Engine, model: str, port: int) -> str:
    """Ask one question by curl, as the README does; return what came back."""
    url = f"http://localhost:{port}/v2/models/{model}/infer"
    return engine.run("curl", "-s", "-X", "POST", url, "-d", json.dumps(QUESTION), check=False)


def answer(engine: Engine, model: str, port: int = 80, *, seconds: float = 60) -> str:
    """Wait for an answer; return its text."""

    def answered() -> str:
        outputs = json.loads(ask(engine, model, port))["outputs"]
        return str(next(one["data"][0] for one in outputs if one["name"] == "text_output"))

    return until(answered, seconds=seconds)


@contextlib.contextmanager
def running(engine: Engine, command: list[str], folder: Path, **more: str) -> Iterator[Path]:
    """Run a command that serves until the block ends, then Ctrl-C; give its log."""
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [*engine.inside, *command],
            cwd=folder,
            env=engine.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )
        try:
            yield log
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
    until(lambda: engine.run("docker", "ps", "--quiet").strip() == "", seconds=30)


@pytest.fixture
def project(tmp_path: Path, engine: Engine, image: str) -> Path:
    """A checkout with a `.env`; its `docker` leaves out a limit that this machine cannot set."""
    for name in ("run_server.sh", "model_repository"):
        source = place.ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / ".env").write_text("HF_TOKEN=hf_none\n")
    client = engine.folder / "bin" / "docker"
    client.unlink()
    if engine.takes_memlock():
        client.symlink_to(CLIENT)
    else:
        client.write_text(
            "#!/bin/bash\nfor word; do shift; case $word in\n"
            'memlock=-1) set -- "${@:1:$#-1}" ;;\n*) set -- "$@" "$word" ;;\nesac; done\n'
            f'exec {CLIENT} "$@"\n'
        )
        client.chmod(0o755)
    return tmp_path


def test_the_image_runs_as_a_user_without_rights(engine: Engine, image: str) -> None:
    (found,) = json.loads(engine.run("docker", "image", "inspect", image))
    assert found["Config"]["User"] == "10001:10001"
    assert engine.run("docker", "run", "--rm", "--entrypoint", "id", image, "-u").strip() == "10001"


def test_the_documented_command_serves_and_answers(engine: Engine, project: Path) -> None:
    for folder in (project / "model_repository").iterdir():
        if folder.is_dir() and folder.name != "simulated":  # the others need the full image
            shutil.rmtree(folder)
    volume = f"{project}/model_repository:/opt/tritonserver/model_repository"
    words = ["docker", "run", *DOCUMENTED, "--ulimit", "memlock=-1", "-v", volume, "-p", "80:8000"]
    command = [*words, "triton", "tritonserver", "--model-repository=model_repository"]
    with running(engine, command, project) as log:
        assert "Why is it so?" in answer(engine, "simulated"), log.read_text()


def test_a_user_that_the_image_does_not_know_can_serve(engine: Engine, project: Path) -> None:
    """As OpenShift runs containers: a uid without an entry in passwd, group 0, HOME is /."""
    volume = f"{project}/model_repository/simulated:/models/simulated"
    words = ["docker", "run", "--rm", "--user", "1000680000:0", "--env", "HOME=/", "-v", volume]
    command = [*words, "-p", "8081:8000", "triton", "tritonserver", "--model-repository=/models"]
    with running(engine, command, project) as log:
        assert "Why is it so?" in answer(engine, "simulated", 8081), log.read_text()


def test_the_script_serves_with_docker_and_ctrl_c_leaves_no_container(
    engine: Engine, project: Path
) -> None:
    chosen = {"RUNNER": "docker", "PORT": "8080", "MODELS": "simulated"}
    with running(engine, [str(project / "run_server.sh")], project, **chosen) as log:
        assert "Why is it so?" in answer(engine, "simulated", 8080), log.read_text()
        url = "http://localhost:9000/v1/models"
        listed = json.loads(until(lambda: engine.run("curl", "-s", "--fail", url), seconds=30))
        assert [one["id"] for one in listed["data"]] == ["simulated"]
    assert "Docker on http://localhost:8080, models: simulated" in log.read_text()


@pytest.mark.slow
def test_smollm2_answers_and_its_weights_are_kept_for_the_next_container(
    engine: Engine, project: Path
) -> None:
    engine.copy(f"localhost/triton-hf:{place.VERSION}", "full:latest")
    mirror = [sys.executable, "-m", "tools.hub_mirror", "--listen", "172.17.0.1:8089"]
    mirror += ["--root", str(place.cache() / "hub")]
    hub = subprocess.Popen([*engine.inside, *mirror], cwd=place.ROOT, env=engine.environment())
    chosen = {"RUNNER": "docker", "PORT": "8080", "MODELS": "smollm2-135m", "IMAGE": "full"}
    chosen |= {"HF_ENDPOINT": "http://172.17.0.1:8089"}
    script = [str(project / "run_server.sh")]
    try:
        with running(engine, script, project, **chosen) as log:
            first = answer(engine, "smollm2-135m", 8080, seconds=180)
            assert first, log.read_text()
    finally:
        hub.terminate()
        hub.wait(10)
    kept = ("-v", "triton-downloads:/kept", "--entrypoint", "ls", "full", "/kept/hub")
    listed = engine.run("docker", "run", "--rm", *kept)
    assert f"models--{REPOSITORY.replace('/', '--')}" in listed
    with running(engine, script, project, **chosen) as log:
        assert answer(engine, "smollm2-135m", 8080, seconds=180), log.read_text()
