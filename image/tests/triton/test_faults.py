"""What the probes say when a model's process dies, hangs, idles or works."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedded_triton.fetch import EmbeddedError
from embedded_triton.server import Server, free_ports, is_ready, running_server
from lib.triton_client import Client, eventually
from triton_hf.errors import EXIT_ENGINE
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_hf.server import probe


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_model(
        tmp_path / "models",
        ModelSpec(name="m", engine="simulated", parameters={"slots": "1", "inter_token_ms": "50"}),
    )
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with running_server(arguments=arguments, workdir=tmp_path) as running:
        yield running


def run_probe(server: Server, kind: str, *, stale: float = 60) -> tuple[int, str]:
    environment = {
        "TRITON_HF_HTTP_PORT": str(server.ports.http),
        "TRITON_HF_RUNTIME_DIR": str(server.runtime),
        "TRITON_HF_STALE_SECONDS": str(stale),
    }
    command = [sys.executable, "-I", "-S", probe.__file__, kind]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def engine_pid(server: Server, model: str = "m") -> int:
    return int(json.loads((server.runtime / f"health/{model}.json").read_text())["pid"])


def test_a_stub_that_dies_is_seen_by_every_probe_and_its_streams_end_with_an_error(
    server: Server,
) -> None:
    assert run_probe(server, "startup") == (0, "")
    stream = Client(server).open_stream("m", user_message="a b", max_tokens=1000)
    events = stream.events()
    next(events)
    pid = engine_pid(server)
    os.kill(pid, signal.SIGKILL)
    for kind in ("ready", "live"):
        status, words = eventually(lambda kind=kind: failing(server, kind))
        assert (status, f"the process of model 'm' (pid {pid}) has died" in words) == (1, True)
    assert "stopped while it was answering" in list(events)[-1]["error"]
    status, answer = Client(server).post("/v2/models/m_stream/generate", {"user_message": "a"})
    assert (status, "model 'm' is not running" in answer["error"]) == (400, True)


def failing(server: Server, kind: str) -> tuple[int, str]:
    result = run_probe(server, kind)
    assert result[0] != 0
    return result


def test_a_streaming_companion_that_dies_is_seen_by_every_probe(server: Server) -> None:
    assert run_probe(server, "ready") == (0, "")
    pid = engine_pid(server, "m_stream")
    os.kill(pid, signal.SIGKILL)
    for kind in ("ready", "live"):
        status, words = eventually(lambda kind=kind: failing(server, kind))
        assert (status, f"the process of model 'm_stream' (pid {pid}) has died" in words) == (
            1,
            True,
        )


@pytest.mark.parametrize("model", ["m", "m_stream"])
@pytest.mark.parametrize("busy", [True, False])
def test_a_stub_that_hangs_fails_readiness_and_liveness_until_it_goes_on(
    server: Server, model: str, busy: bool
) -> None:
    stream = Client(server).open_stream("m", user_message="a b", max_tokens=1000)
    if busy:
        next(stream.events())
    else:
        stream.close()
        eventually(lambda: Client(server).metrics("m")["triton_hf_requests_running"] == 0)
    pid = engine_pid(server, model)
    os.kill(pid, signal.SIGSTOP)
    try:
        for kind in ("ready", "live"):
            eventually(lambda kind=kind: run_probe(server, kind, stale=2)[0] == 1)
            assert f"model '{model}' has been silent for" in run_probe(server, kind, stale=2)[1]
    finally:
        os.kill(pid, signal.SIGCONT)
    if not busy:  # Triton itself may have given up a stub that left a request unanswered
        for kind in ("ready", "live"):
            eventually(lambda kind=kind: run_probe(server, kind, stale=2)[0] == 0)
    stream.close()


def test_idle_and_busy_models_are_alive(server: Server) -> None:
    def beaten() -> list[float]:
        files = sorted((server.runtime / "health").glob("*.json"))
        assert [file.stem for file in files] == ["m", "m_stream"]
        return [float(json.loads(file.read_text())["monotonic"]) for file in files]

    def both_beat(first: list[float]) -> bool:
        return all(new > old for new, old in zip(beaten(), first, strict=True))

    first = beaten()
    eventually(lambda: both_beat(first))  # idle, and beating
    assert run_probe(server, "live", stale=3)[0] == 0
    with contextlib.closing(Client(server).open_stream("m", user_message="a", max_tokens=1000)):
        first = beaten()
        eventually(lambda: both_beat(first))  # busy, and beating
        assert run_probe(server, "live", stale=3)[0] == 0


def test_sigterm_waits_for_the_answer_that_is_being_made(server: Server) -> None:
    client, answers = Client(server), []
    thread = threading.Thread(
        target=lambda: answers.append(
            client.infer("m", user_message=["a"], parameters={"max_tokens": 60})
        )
    )
    thread.start()
    eventually(lambda: client.metrics("m")["triton_hf_requests_running"] == 1)
    server.process.send_signal(signal.SIGTERM)
    thread.join()
    assert answers[0][0] == 200
    assert answers[0][1]["outputs"][0]["data"] == [" ".join(["a"] * 60)]
    assert server.process.wait(30) == 0
    assert not list((server.runtime / "health").glob("*.json"))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"slots": "many"}, "model 'm': parameter 'slots' must be a whole number from 1 to 4096"),
        ({"slot": "1"}, "model 'm': unknown parameter 'slot'"),
    ],
)
def test_a_bad_parameter_keeps_the_model_from_loading_with_one_sentence(
    tmp_path: Path, parameters: dict[str, str], words: str
) -> None:
    folder = write_model(tmp_path / "models", ModelSpec(name="m", engine="simulated"))
    config = folder / "config.pbtxt"
    for name, value in parameters.items():
        entry = f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'
        config.write_text(config.read_text() + entry)
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with pytest.raises(EmbeddedError, match="failed to load all models"):  # noqa: SIM117
        with running_server(arguments=arguments, workdir=tmp_path):
            pass
    assert words in (tmp_path / "server.log").read_text()


def test_a_model_that_loads_slowly_is_not_ready_and_says_so(tmp_path: Path) -> None:
    write_model(
        tmp_path / "models",
        ModelSpec(name="m", engine="simulated", parameters={"load_seconds": "600"}),
    )
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with pytest.raises(EmbeddedError, match="was not ready after 4 s"):  # noqa: SIM117
        with running_server(arguments=arguments, workdir=tmp_path, wait_seconds=4):
            pass
    assert "simulated engine: loading for 600 s" in (tmp_path / "server.log").read_text()


def test_a_storm_of_streams_that_end_and_break_leaves_the_server_whole(
    simulated: Client,
) -> None:
    # Enough to meet the moment when a stream ends while Triton is asked whether it was cut.
    source = random.Random(11)
    plans = [(source.randint(1, 12), source.random() < 0.4) for _ in range(1500)]
    whole = []

    def ask(plan: tuple[int, bool]) -> None:
        length, cut = plan
        stream = simulated.open_stream("quick", user_message="a b", max_tokens=length)
        events = stream.events()
        first = next(events)
        if cut:
            stream.close()
        else:
            whole.append((length, [first, *events][-1]["completion_tokens"]))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, plans))
    assert simulated.server.process.poll() is None
    assert len(whole) == sum(not cut for _, cut in plans)
    assert all(wanted == got for wanted, got in whole)

    def is_empty() -> None:
        metrics = simulated.metrics("quick")
        assert metrics["triton_hf_requests_running"] == 0
        assert metrics["triton_hf_requests_waiting"] == 0

    eventually(is_empty)


def test_a_model_that_cannot_be_loaded_leaves_its_reason_as_the_last_words_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own last lines are its options; Kubernetes would show those."""
    words = tmp_path / "termination-log"
    monkeypatch.setenv("TERMINATION_LOG", str(words))
    spec = ModelSpec(name="m", engine="simulated", parameters={"slots": "1"})
    write_model(tmp_path / "models", spec)
    config = tmp_path / "models" / "m" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "1"', 'string_value: "many"'))
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with (
        pytest.raises(EmbeddedError),
        running_server(arguments=arguments, workdir=tmp_path),
    ):
        pass
    said = words.read_text()
    assert said.startswith("model 'm': parameter 'slots' must be"), said
    assert len(said.splitlines()) == 1


BREAKABLE = '''"""A simulated model whose device breaks for good when a request says so."""

from triton_hf.backend.text_model import TextModel as TritonPythonModel  # noqa: F401
from triton_hf.engines.simulated_engine import SimulatedEngine

whole = SimulatedEngine._advance


def check(self):
    if getattr(self, "broken", False):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def advance(self, admitted):
    self.broken = getattr(self, "broken", False) or any(
        "break" in job.work.conversation[-1].content for job in admitted
    )
    check(self)
    return whole(self, admitted)


SimulatedEngine._advance = advance
SimulatedEngine._prove = check
'''


def test_an_engine_that_cannot_go_on_ends_the_server_and_its_peers_finish(
    tmp_path: Path,
) -> None:
    parameters = {"slots": "2", "inter_token_ms": "20", "max_tokens": "150"}
    for name in ("m", "peer"):
        spec = ModelSpec(name=name, engine="simulated", parameters=parameters)
        folder = write_model(tmp_path / "models", spec)
        if name == "m":
            (folder / "1" / "model.py").write_text(BREAKABLE)
    words = tmp_path / "termination-log"
    words.touch()
    arguments = [f"--model-repository={tmp_path / 'models'}"]
    with running_server(
        arguments=arguments, workdir=tmp_path, environment={"TERMINATION_LOG": str(words)}
    ) as server:
        client = Client(server)
        lost = client.open_stream("m", user_message="a", max_tokens=1500).events()
        next(lost)
        peer = client.open_stream("peer", user_message="a").events()
        next(peer)
        answers = [client.infer("m", user_message=[text]) for text in ("break", "b", "c")]
        assert [status for status, _ in answers] == [500] * 3, answers
        assert "the engine failed on this request" in list(lost)[-1]["error"]
        said = eventually(lambda: words.read_text() or False)
        assert said.startswith("model 'm': the engine has ended: 3 faults without a token")
        assert "CUDA error: an illegal memory access was encountered" in said
        for kind in ("ready", "live"):
            assert run_probe(server, kind) == (1, f"triton-hf probe {kind}: {said}")
        assert [event["completion_tokens"] for event in peer][-1] == 150
        assert server.process.wait(30) == 0


def test_run_server_says_why_an_engine_ended_and_returns_70(tmp_path: Path) -> None:
    spec = ModelSpec(name="m", engine="simulated", parameters={"slots": "1"})
    (write_model(tmp_path / "models", spec) / "1" / "model.py").write_text(BREAKABLE)
    port, log = free_ports().http, tmp_path / "log"
    command = [sys.executable, "-m", "embedded_triton.serve", f"--port={port}"]
    command += [f"--model-repository={tmp_path / 'models'}", "m"]
    environment = {**os.environ, "PYTHONPATH": str(Path(probe.__file__).parents[2])}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stderr=output, stdout=output)
    try:
        eventually(lambda: is_ready(port), seconds=60)
        body = json.dumps({"user_message": "break"}).encode()
        for _ in range(3):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v2/models/m/generate", data=body
            )
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(request, timeout=30)
        assert process.wait(60) == EXIT_ENGINE
    finally:
        process.terminate()
        process.wait(60)
    said = "run_server: tritonserver ended by itself: model 'm': the engine has ended: 3 faults"
    assert said in log.read_text()


def test_a_disk_that_is_full_ends_no_engine_and_stops_no_heart(server: Server) -> None:
    health = server.runtime / "health"
    for model in ("m", "m_stream"):
        (health / f"{model}.partial").unlink(missing_ok=True)
        (health / f"{model}.partial").symlink_to("/dev/full")
    before = json.loads((health / "m.json").read_text())["monotonic"]
    events = Client(server).stream("m", user_message="a", max_tokens=5)
    assert events[-1]["completion_tokens"] == 5
    eventually(lambda: json.loads((health / "m.json").read_text())["monotonic"] > before + 3)
    assert run_probe(server, "live", stale=3) == (0, "")
    assert server.output().count("cannot be written as usual: [Errno 28]") == 2
