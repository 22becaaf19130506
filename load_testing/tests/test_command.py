"""The documented command on a real Triton, and what it says to bad input before any load."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, Known, known_server, locust, measured

from triton_hf.embedded import Server, running_server
from triton_hf.repository import write_model
from triton_hf.specification import ModelSpec
from triton_load import record

SCHEMA = "model_repository/llama3-8b/config.pbtxt"
DATA = "load_testing/example/data_llama.json"


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with a simulated model that has the name of the documented one."""
    folder = tmp_path_factory.mktemp("load")
    parameters = {"ttft_ms": "20", "inter_token_ms": "2", "slots": "8", "max_tokens": "16"}
    write_model(
        folder / "models", ModelSpec(name="llama3-8b", engine="simulated", parameters=parameters)
    )
    arguments = [f"--model-repository={folder / 'models'}"]
    with running_server(arguments=arguments, workdir=folder) as server:
        yield server


@pytest.mark.triton
def test_the_command_of_the_readme_runs_as_written(triton: Server, tmp_path: Path) -> None:
    csv = tmp_path / "results"
    done = locust(
        *("--csv", str(csv), "--headless", "-t5s", "--csv-full-history", "-u", "1", "-r", "1"),
        *("--data", DATA, "--schema", SCHEMA, "--host", triton.url),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    history = (tmp_path / "results_stats_history.csv").read_text().splitlines()
    assert len(history) > 4
    totals = (tmp_path / "results_stats.csv").read_text().splitlines()[-1].split(",")
    assert int(totals[2]) > 10
    assert totals[3] == "0"


@pytest.mark.triton
@pytest.mark.parametrize("client", ["infer", "stream", "grpc"])
def test_every_client_asks_a_real_triton(triton: Server, tmp_path: Path, client: str) -> None:
    grpc = f"--grpc-host=127.0.0.1:{triton.ports.grpc}"
    words = ("--data", DATA, "--schema", SCHEMA, "--host", triton.url, "-t4s", "-u2", "-r2")
    done, found = measured(
        tmp_path, f"--client={client}", grpc, *words, "--max-tokens=10", "--stop-timeout=5"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.totals.requests > 20
    assert found.totals.failed == found.totals.unfinished == 0
    assert found.distributions[record.OUTPUT_TOKENS].maximum == pytest.approx(10, rel=0.01)
    assert (record.TTFT in found.distributions) is (client == "stream")


@pytest.mark.triton
def test_generated_prompts_have_their_length(triton: Server, tmp_path: Path) -> None:
    words = ("--model=llama3-8b", "--prompt-tokens=40", "--host", triton.url, "-t3s")
    done, found = measured(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.distributions[record.PROMPT_TOKENS].quantile(50) == pytest.approx(40, abs=2)


@pytest.mark.triton
def test_requests_that_the_server_refuses_are_classed_and_fail_the_run(
    triton: Server, tmp_path: Path
) -> None:
    words = ("--model=llama3-8b", "--temperature=99", "--host", triton.url, "-t3s")
    done, found = measured(tmp_path, *words)
    assert done.returncode == 1
    assert found.errors[0].name == "HTTP 400"
    assert "temperature" in found.errors[0].example
    assert found.verdict.result == "fail"


@pytest.fixture(scope="module")
def known() -> Iterator[Known]:
    with known_server() as server:
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


BAD = {
    "no host": (["--model=known"], "--host is missing"),
    "no model": (["--host={known}"], "which model?"),
    "no URL": (["--host=localhost:8000", "--model=known"], "--host must be http://"),
    "unknown host": (["--host=http://no.such.host.invalid", "--model=x"], "unknown host 'no.such"),
    "nobody there": (["--host=http://127.0.0.1:{free}", "--model=x"], "Connection refused"),
    "TLS to a plain port": (["--host=https://127.0.0.1:{port}", "--model=x"], "TLS with https://"),
    "wrong model": (["--host={known}", "--model=other"], "serves no model 'other'"),
    "no data file": (["--host={known}", "--model=known", "--data=none.json"], "cannot read the"),
    "data not JSON": (["--host={known}", "--model=known", "--data=README.md"], "is not JSON"),
    "data for another model": (
        ["--host={known}", "--model=known", "--data={tmp}/data.json"],
        "known has no input 'prompt'",
    ),
    "no pbtxt": (["--host={known}", "--schema=none.pbtxt"], "cannot read the schema"),
    "bad pbtxt": (["--host={known}", "--schema=README.md"], "is not a Triton config.pbtxt"),
    "objective": (
        ["--host={known}", "--model=known", "--objectives={tmp}/goals.yaml"],
        "unknown objective 'p95 latence'",
    ),
    "shape without end": (["--host={known}", "--model=known", "--shape=ramp"], "needs --peak"),
    "two sources": (["--host={known}", "--data=x", "--prompt-tokens=3"], "exclude each other"),
    "gRPC without address": (
        ["--host={known}", "--model=known", "--client=grpc"],
        "--grpc-host must be HOST:PORT",
    ),
    "rate": (["--host={known}", "--model=known", "--rate=-1"], "--rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2_before_any_load(
    known: Known, tmp_path: Path, case: str
) -> None:
    tensor = {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": ["x"]}
    (tmp_path / "data.json").write_text(json.dumps({"inputs": [tensor]}))
    (tmp_path / "goals.yaml").write_text("p95 latence: 3 s\n")
    words, sentence = BAD[case]
    names = {
        "known": known.host,
        "free": free_port(),
        "port": known.host.rsplit(":", 1)[1],
        "tmp": tmp_path,
    }
    done = locust("--headless", "-t2s", *(word.format(**names) for word in words))
    assert done.returncode == 2, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(told) == 1, done.stderr
    assert sentence in told[0]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody but itself has signed, with its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs openssl to make a certificate")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    words = ["req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    words += ["-keyout", str(file), "-out", str(file.with_suffix(".crt"))]
    subprocess.run([program, *words], check=True, capture_output=True)
    file.write_text(file.read_text() + file.with_suffix(".crt").read_text())
    return file


def test_a_certificate_is_trusted_only_when_one_says_so(certificate: Path) -> None:
    with known_server(cert=certificate, tokens=3) as server:
        words = ("--headless", "-t2s", "--client=stream", f"--host={server.host}", "--model=known")
        refused = locust(*words)
        blind = locust(*words, "--insecure")
        trusted = locust(*words, SSL_CERT_FILE=str(certificate.with_suffix(".crt")))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (told,) = [line for line in refused.stderr.splitlines() if "error: " in line]
    assert "is not trusted (self-signed certificate); add its CA (SSL_CERT_FILE)" in told
    for done in (blind, trusted):
        assert done.returncode == 0, done.stdout + done.stderr


def test_bad_input_sends_no_request() -> None:
    with known_server() as server:
        done = locust("--headless", "-t2s", f"--host={server.host}", "--model=known", "--data=no")
        assert done.returncode == 2
        assert server.log() == []


def test_the_locustfile_works_from_a_copy_outside_the_repository(
    known: Known, tmp_path: Path
) -> None:
    shutil.copytree(
        ROOT / "load_testing", tmp_path / "load", ignore=shutil.ignore_patterns("tests")
    )
    file = str(tmp_path / "load/locustfile.py")
    done = locust("-f", file, "--headless", "-t2s", "--client=stream", "--only-summary",
                  f"--host={known.host}", "--model=known")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
