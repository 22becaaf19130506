"""What run_server.sh chooses, says and hands to Docker; a fake `docker` records its words."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("bash", "env", "sed", "awk", "tail", "tr", "cat", "find", "wc", "basename", "dirname")
DOCKER = """#!{python}
import json, os, sys
with open("{record}", "a") as file:
    known = {{name: os.environ.get(name) for name in ("HF_TOKEN", "HF_ENDPOINT")}}
    file.write(json.dumps([sys.argv[1:], known]) + "\\n")
if sys.argv[1:2] == ["info"]:
    if not {engine}:
        sys.exit("Cannot connect to the Docker daemon")
    print('{runtimes}')
if sys.argv[1:3] == ["image", "inspect"]:
    sys.exit(0 if {image} else 1)
"""
DOCUMENTED = ["--shm-size=1G", "--ulimit", "memlock=-1", "--ulimit", "stack=67108864"]


@dataclass
class Machine:
    """A copy of the script, and a PATH with nothing but what a test puts there."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def programs(self) -> Path:
        return self.folder / "bin"

    def add(self, name: str, text: str) -> None:
        file = self.programs / name
        file.write_text(text)
        file.chmod(0o755)

    def docker(self, *, engine: bool = True, nvidia: bool = True, image: bool = True) -> None:
        runtimes = json.dumps({"runc": {}, **({"nvidia": {}} if nvidia else {})})
        text = DOCKER.format(
            python=sys.executable, record=self.folder / "record", engine=engine,
            runtimes=runtimes, image=image,
        )  # fmt: skip
        self.add("docker", text)

    def gpu(self) -> None:
        self.add("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA L4'\necho 'GPU 1: NVIDIA L4'\n")

    def run(
        self, script: str = "run_server.sh", *, stdin: int = subprocess.DEVNULL
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / "project" / script)],
            env={"PATH": str(self.programs), "HOME": str(self.folder), **self.variables},
            capture_output=True,
            text=True,
            stdin=stdin,
            timeout=60,
        )

    def calls(self, verb: str) -> list[tuple[list[str], dict[str, str | None]]]:
        """Return the words and the token of each call of docker with this verb."""
        record = self.folder / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        calls = [json.loads(line) for line in lines]
        return [(words, known) for words, known in calls if words[0] == verb]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """No Docker and no GPU; the Hub answers, and a token is set."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "run_server.sh", project)
    (project / "run-server.sh").symlink_to((ROOT / "run-server.sh").readlink())
    shutil.copytree(ROOT / "model_repository", project / "model_repository")
    (tmp_path / "bin").mkdir()
    for name in (*TOOLS, "readlink"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    variables = {"HF_TOKEN": "hf_one", "PORT": str(free_port()), "OPENAI_PORT": "off"}
    made = Machine(folder=tmp_path, variables=variables)
    made.add("curl", "#!/bin/sh\n")
    return made


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def volume(machine: Machine) -> list[str]:
    repository = machine.folder / "project" / "model_repository"
    kept = ("-v", "triton-downloads:/var/cache/huggingface")
    return ["-v", f"{repository}:/opt/tritonserver/model_repository", *kept]


HOME = ("--env", "HF_HOME=/var/cache/huggingface")


@pytest.mark.parametrize("script", ["run_server.sh", "run-server.sh"])
def test_with_gpu_and_nvidia_runtime_docker_gets_the_documented_words(
    machine: Machine, script: str
) -> None:
    machine.docker()
    machine.gpu()
    (machine.folder / "project" / ".env").write_text("OTHER=1\n")

    done = machine.run(script)

    assert done.returncode == 0, done.stderr
    ((words, _),) = machine.calls("run")
    assert words == [
        *("run", "--gpus", "all", "-i", "--rm", *DOCUMENTED),
        *("--env-file", "./.env", "--env", "HF_TOKEN", *HOME, *volume(machine)),
        *("-p", f"{machine.variables['PORT']}:8000", "triton"),
        *("tritonserver", "--model-repository=model_repository"),
    ]
    assert "models compute on the NVIDIA GPUs of this machine" in done.stderr


def test_on_a_terminal_the_container_gets_it(machine: Machine) -> None:
    machine.docker()
    terminal, end = os.openpty()
    try:
        assert machine.run(stdin=end).returncode == 0
    finally:
        os.close(terminal)
        os.close(end)
    ((words, _),) = machine.calls("run")
    assert words[:4] == ["run", "-i", "-t", "--rm"]


def without_runtime(machine: Machine) -> None:
    machine.docker(nvidia=False)
    machine.gpu()


def without_gpu(machine: Machine) -> None:
    machine.docker()


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (without_runtime, "Docker has no NVIDIA runtime"),
        (without_gpu, "nvidia-smi finds no NVIDIA GPU here"),
    ],
)
def test_on_the_cpu_docker_gets_no_gpus_and_no_model_that_needs_one_and_the_reason_is_said(
    machine: Machine, break_it: Callable[[Machine], None], reason: str
) -> None:
    break_it(machine)

    done = machine.run()

    assert done.returncode == 0, done.stderr
    ((words, _),) = machine.calls("run")
    assert "--gpus" not in words
    assert [word for word in words if word.startswith("--load-model=")] == [
        "--load-model=simulated",
        "--load-model=smollm2-135m",
    ]
    assert "--model-control-mode=explicit" in words
    assert f"models compute on the CPU: {reason}" in done.stderr
    assert "leaving out llama3-8b: it needs an NVIDIA GPU" in done.stderr


def test_a_model_for_gpus_that_was_asked_for_is_refused_with_the_reason(machine: Machine) -> None:
    without_runtime(machine)
    machine.variables["MODELS"] = "llama3-8b"

    done = machine.run()

    assert done.returncode == 1
    assert "llama3-8b needs an NVIDIA GPU: Docker has no NVIDIA runtime" in done.stderr
    assert machine.calls("run") == []


def test_models_may_be_chosen_and_an_unknown_one_is_named(machine: Machine) -> None:
    machine.docker()
    machine.variables["MODELS"] = "simulated"
    assert machine.run().returncode == 0
    ((words, _),) = machine.calls("run")
    assert words[-2:] == ["--model-control-mode=explicit", "--load-model=simulated"]

    machine.variables["MODELS"] = "simulated,nobody"
    done = machine.run()
    assert done.returncode == 1
    assert "there is no model 'nobody' in model_repository/" in done.stderr
    assert "llama3-8b simulated smollm2-135m" in done.stderr
    assert len(machine.calls("run")) == 1


def test_a_gated_model_without_a_token_is_left_out_or_refused(machine: Machine) -> None:
    machine.docker()
    machine.gpu()
    del machine.variables["HF_TOKEN"]

    done = machine.run()
    assert "leaving out llama3-8b: meta-llama/Meta-Llama-3-8B-Instruct is gated" in done.stderr
    ((words, _),) = machine.calls("run")
    assert "--load-model=llama3-8b" not in words

    machine.variables["MODELS"] = "llama3-8b"
    done = machine.run()
    assert done.returncode == 1
    assert "llama3-8b needs a token: copy .env.example to .env and set HF_TOKEN" in done.stderr
    assert len(machine.calls("run")) == 1


@pytest.mark.parametrize("line", ["HF_TOKEN=hf_two", 'HF_TOKEN="hf_two"', "HF_TOKEN='hf_two'"])
def test_the_token_of_the_env_file_reaches_the_container_without_quotes_and_is_not_in_its_words(
    machine: Machine, line: str
) -> None:
    machine.docker()
    machine.gpu()
    del machine.variables["HF_TOKEN"]
    (machine.folder / "project" / ".env").write_text(f"OTHER=1\n{line}\n")

    done = machine.run()

    assert done.returncode == 0, done.stderr
    ((words, known),) = machine.calls("run")
    assert known["HF_TOKEN"] == "hf_two"
    assert words[words.index("--env") + 1] == "HF_TOKEN"
    assert "hf_two" not in " ".join(words) + done.stderr


def test_the_environment_counts_more_than_the_env_file(machine: Machine) -> None:
    machine.docker()
    (machine.folder / "project" / ".env").write_text("HF_TOKEN=hf_two\nMODELS=nobody\n")
    machine.variables["MODELS"] = "simulated"

    assert machine.run().returncode == 0

    ((_, known),) = machine.calls("run")
    assert known["HF_TOKEN"] == "hf_one"


def test_without_the_hub_its_models_are_left_out(machine: Machine) -> None:
    machine.docker()
    machine.add("curl", "#!/bin/sh\nexit 7\n")

    done = machine.run()

    ((words, _),) = machine.calls("run")
    assert words[-1] == "--load-model=simulated"
    assert "leaving out smollm2-135m: the Hub cannot be reached" in done.stderr


def test_a_container_does_not_see_the_models_of_this_machines_cache(machine: Machine) -> None:
    cache = machine.folder / ".cache/huggingface/hub"
    snapshot = cache / "models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/one"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    machine.docker()
    machine.add("curl", "#!/bin/sh\nexit 7\n")

    assert "leaving out smollm2-135m" in machine.run().stderr

    ((words, _),) = machine.calls("run")
    assert words[-1] == "--load-model=simulated"


def test_a_missing_image_is_built_first_as_documented(machine: Machine) -> None:
    machine.docker(image=False)
    machine.gpu()

    done = machine.run()

    assert "image 'triton' is missing: building it" in done.stderr
    assert [words for words, _ in machine.calls("build")] == [["build", "-t", "triton", "."]]
    assert len(machine.calls("run")) == 1


def test_runner_docker_without_docker_fails_in_one_sentence(machine: Machine) -> None:
    machine.variables["RUNNER"] = "docker"

    done = machine.run()

    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "there is no docker here; install it, or set RUNNER=embedded" in sentence


def test_runner_docker_without_its_engine_fails_in_one_sentence_and_builds_nothing(
    machine: Machine,
) -> None:
    machine.docker(engine=False, image=False)
    machine.variables["RUNNER"] = "docker"

    done = machine.run()

    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert "its engine does not answer ('docker info' says why); start it" in sentence
    assert machine.calls("build") == []


def test_without_an_engine_the_embedded_triton_is_taken_and_that_is_said(machine: Machine) -> None:
    machine.docker(engine=False)
    (machine.folder / "project" / ".venv" / "bin").mkdir(parents=True)
    python = machine.folder / "project" / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)

    done = machine.run()

    assert done.returncode == 0, done.stderr
    assert "no Docker engine answers: taking the embedded Triton" in done.stderr
    assert done.stdout.split() == [
        *("-m", "embedded_triton.serve", "--port", machine.variables["PORT"]),
        *("--model-repository", "model_repository", "simulated", "smollm2-135m"),
    ]


def test_openais_api_gets_its_port_beside_tritons_and_the_key_by_name(machine: Machine) -> None:
    machine.docker()
    port = machine.variables["OPENAI_PORT"] = str(free_port())
    machine.variables["TRITON_API_KEY"] = "sk-one"

    done = machine.run()

    assert done.returncode == 0, done.stderr
    ((words, _),) = machine.calls("run")
    text = " ".join(words)
    assert f"-p {machine.variables['PORT']}:8000 -p {port}:9000 triton tritonserver" in text
    assert "--env TRITON_API_KEY --env OPENAI_PORT=9000" in text
    assert f"OpenAI's API on http://localhost:{port}/v1" in done.stderr
    assert "sk-one" not in text + done.stderr


def test_the_embedded_server_gets_the_port_of_openais_api(machine: Machine) -> None:
    (machine.folder / "project" / ".venv" / "bin").mkdir(parents=True)
    python = machine.folder / "project" / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    port = machine.variables["OPENAI_PORT"] = str(free_port())
    done = machine.run()
    assert f"--openai-port {port} --model-repository" in done.stdout


def test_port_9000_that_is_busy_leaves_out_openais_api_and_nothing_else(machine: Machine) -> None:
    machine.docker()
    del machine.variables["OPENAI_PORT"]
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # something else listens there: as good
            stack.enter_context(socket.create_server(("127.0.0.1", 9000)))
        done = machine.run()
    assert done.returncode == 0, done.stderr
    ((words, _),) = machine.calls("run")
    assert words.count("-p") == 1
    assert "leaving out OpenAI's API: port 9000 is in use" in done.stderr


@pytest.mark.parametrize("port", ["0", "http", "same"])
def test_a_port_of_openais_api_that_is_none_or_tritons_is_refused(
    machine: Machine, port: str
) -> None:
    machine.docker()
    machine.variables["OPENAI_PORT"] = machine.variables["PORT"] if port == "same" else port
    done = machine.run()
    assert done.returncode == 1
    assert "OPENAI_PORT" in done.stderr
    assert machine.calls("run") == []


@pytest.mark.parametrize("runner", ["podman", "Docker"])
def test_an_unknown_runner_is_refused(machine: Machine, runner: str) -> None:
    machine.variables["RUNNER"] = runner
    done = machine.run()
    assert done.returncode == 1
    assert f"RUNNER must be docker or embedded, not '{runner}'" in done.stderr


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "080", "8000 "])
def test_a_port_that_is_none_is_refused(machine: Machine, port: str) -> None:
    machine.docker()
    machine.variables["PORT"] = port
    done = machine.run()
    assert done.returncode == 1
    assert f"PORT must be 1 to 65535, not '{port}'" in done.stderr
    assert machine.calls("run") == []


def test_a_busy_port_is_named_before_anything_starts(machine: Machine) -> None:
    machine.docker()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        machine.variables["PORT"] = str(port)
        done = machine.run()
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert f"port {port} is in use; stop what listens there or set PORT" in sentence
    assert machine.calls("run") == []
