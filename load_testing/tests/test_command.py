"""The documented command on a real Triton, and what it says to bad input before any load."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton.server import Server, running_server
from lib.locust_runs import ROOT, Known, free_port, known_server, locust, measured
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_load import record

SCHEMA = "model_repository/llama3-8b/config.pbtxt"
DATA = "load_testing/example/data_llama.json"
CALM = ("--max-lag=60000",)  # a busy test machine must not make a generator call itself late


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
    # Flags that are not in the README cannot say that this machine may be busy.
    late = done.returncode == 3 and "the generator was late" in done.stdout
    assert done.returncode == 0 or late, done.stdout + done.stderr
    history = (tmp_path / "results_stats_history.csv").read_text().splitlines()
    assert len(history) > 4
    totals = (tmp_path / "results_stats.csv").read_text().splitlines()[-1].split(",")
    assert int(totals[2]) > 10
    assert totals[3] == "0"


@pytest.mark.triton
@pytest.mark.parametrize("client", ["infer", "stream", "grpc"])
def test_every_client_asks_a_real_triton(triton: Server, tmp_path: Path, client: str) -> None:
    grpc = f"--grpc-host=127.0.0.1:{triton.ports.grpc}"
    words = ("--data", DATA, "--schema", SCHEMA, "--host", triton.url, "-t4s", "-u2", "-r2", *CALM)
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
    words = ("--model=llama3-8b", "--prompt-tokens=40", "--host", triton.url, "-t3s", *CALM)
    done, found = measured(tmp_path, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.distributions[record.PROMPT_TOKENS].quantile(50) == pytest.approx(40, abs=2)


@pytest.mark.triton
def test_requests_that_the_server_refuses_are_classed_and_fail_the_run(
    triton: Server, tmp_path: Path
) -> None:
    words = ("--model=llama3-8b", "--temperature=99", "--host", triton.url, "-t3s", *CALM)
    done, found = measured(tmp_path, *words)
    assert done.returncode == 1
    assert found.errors[0].name == "HTTP 400"
    assert "temperature" in found.errors[0].example
    assert found.verdict.result == "fail"


@pytest.fixture(scope="module")
def known() -> Iterator[Known]:
    """A server for those who only ask what it serves."""
    with known_server() as server:
        yield server
        assert server.log() == []


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
    "no place for the report": (
        ["--host={known}", "--model=known", "--out={tmp}/data.json/out"],
        "data.json is no folder that can be written to",
    ),
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
        words = (*CALM, "--client=stream", f"--host={server.host}", "--model=known")
        words = ("--headless", "-t2s", *words)
        refused = locust(*words)
        blind = locust(*words, "--insecure")
        trusted = locust(*words, SSL_CERT_FILE=str(certificate.with_suffix(".crt")))
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (told,) = [line for line in refused.stderr.splitlines() if "error: " in line]
    assert "is not trusted (self-signed certificate); add its CA (SSL_CERT_FILE)" in told
    for done in (blind, trusted):
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.triton
@pytest.mark.parametrize(
    ("port", "sentence"),
    [
        ("http", "does not answer gRPC calls about 'known'"),
        ("tls", "does not answer gRPC calls about 'known'"),
        ("grpc", "serves no ready model 'known' over gRPC"),
    ],
)
def test_a_wrong_grpc_port_is_one_sentence_before_any_load(
    triton: Server, certificate: Path, port: str, sentence: str
) -> None:
    with known_server() as server, known_server(cert=certificate) as secure:
        ports = {
            "http": server.host.rsplit(":", 1)[1],
            "tls": secure.host.rsplit(":", 1)[1],
            "grpc": triton.ports.grpc,  # of a server that has another model
        }
        address = f"127.0.0.1:{ports[port]}"
        words = (f"--host={server.host}", "--model=known", f"--grpc-host={address}")
        done = locust("--headless", "-t2s", "--client=grpc", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert f"{address} {sentence}" in told
    assert "check --grpc-host" in told


def test_a_report_that_cannot_be_written_makes_the_run_invalid(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "run.json").mkdir(parents=True)  # in the way
    with known_server(tokens=3) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        done = locust("--headless", "--only-summary", "-t2s", *words, f"--out={out}")
    assert done.returncode == 3, done.stdout + done.stderr
    summary = done.stdout.partition("verdict: ")[2]
    assert summary.startswith("invalid\n- the report could not be written to")
    assert "Is a directory" in summary
    assert "Traceback" not in done.stderr


def test_no_user_is_no_load_and_no_pass() -> None:
    with known_server(tokens=3) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        done = locust("--headless", "--only-summary", "-t2s", "-u0", *words)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "only 0 requests ended" in done.stdout


def test_a_file_of_locust_that_cannot_be_written_does_not_blame_the_server(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"  # the volume breaks while the test runs
    mine.write_text(
        "import pathlib\nfrom locust import events\n\n\n@events.test_start.add_listener\n"
        f"def spoil(**_):\n    pathlib.Path({str(tmp_path / 'file')!r}).touch()\n"
    )
    with known_server(tokens=3) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        file = f"--json-file={tmp_path / 'file/stats'}"
        files = f"-f=load_testing/locustfile.py,{mine}"
        done = locust(files, "--headless", "--only-summary", "-t2s", *words, file)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "verdict: pass" in done.stdout  # what was measured is still told
    assert done.stdout.endswith("locust died before its end, so the run is invalid\n")


def test_a_locustfile_of_ones_own_hears_of_every_request(tmp_path: Path) -> None:
    mine, heard = tmp_path / "mine.py", tmp_path / "heard"
    mine.write_text(
        "from locust import events\n\n\n@events.llm_request.add_listener\n"
        "def hear(outcome, **_):\n"
        f"    with open({str(heard)!r}, 'a') as file:\n"
        "        print(outcome.output_tokens, file=file)\n"
    )
    with known_server(ttft_ms=20, gap_ms=5, tokens=7) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        files = f"-f=load_testing/locustfile.py,{mine}"
        done = locust(files, "--headless", "-t3s", "-u3", "-r3", "--stop-timeout=5", *words)
        log = server.log()
    assert done.returncode == 0, done.stdout + done.stderr
    assert heard.read_text().split() == ["7"] * len(log) != []


def test_the_locustfile_works_from_a_copy_outside_the_repository(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "load_testing", tmp_path / "load", ignore=shutil.ignore_patterns("tests")
    )
    file = str(tmp_path / "load/locustfile.py")
    with known_server() as server:
        words = (*CALM, "--client=stream", f"--host={server.host}", "--model=known")
        words = ("--only-summary", *words)
        done = locust("-f", file, "--headless", "-t2s", *words)
    assert done.returncode == 0, done.stdout + done.stderr
