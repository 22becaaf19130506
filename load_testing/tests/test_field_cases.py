"""Models, data and environments of other people: it works, or one sentence says why not.

The models are small ones with the traits of those that people bring, on a real Triton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded_triton.server import Server, running_server
from lib.locust_runs import known_server, locust, measured, start_locust

CALM = ("--max-lag=60000",)
ECHO = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        found = [pb.get_input_tensor_by_name(request, "X") for request in requests]
        return [pb.InferenceResponse([pb.Tensor.from_dlpack("Y", x.to_dlpack())]) for x in found]
"""
COUNTER = """
import numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}
    def execute(self, requests):
        answers = []
        for request in requests:
            add, start, number = (
                pb.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("ADD", "START", "CORRID")
            )
            key = int(number.reshape(-1)[0])
            self.sums[key] = (0 if start.any() else self.sums.get(key, 0)) + int(add.sum())
            total = np.full(add.shape, self.sums[key], dtype=np.int32)
            answers.append(pb.InferenceResponse([pb.Tensor("SUM", total)]))
        return answers
"""
# As vLLM's backend, it adds its tensors itself.
LIKE_VLLM = """
import numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(0)
        config.set_model_transaction_policy({"decoupled": True})
        for name, kind, optional in (
            ("text_input", "TYPE_STRING", False),
            ("stream", "TYPE_BOOL", True),
            ("sampling_parameters", "TYPE_STRING", True),
        ):
            config.add_input({"name": name, "data_type": kind, "dims": [1], "optional": optional})
        config.add_output({"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]})
        return config
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for word in ("It", " is", " blue."):
                text = pb.Tensor("text_output", np.array([word.encode()], dtype=object))
                sender.send(pb.InferenceResponse([text]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
HALF = """
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_%(kind)s dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_%(kind)s dims: [ 2 ] } ]
"""
SEQUENCES = """
backend: "python"
max_batch_size: 4
sequence_batching {
  max_sequence_idle_microseconds: 5000000
  control_input [
    { name: "START" control [ { kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } ] },
    { name: "CORRID" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 } ] }
  ]
}
input [ { name: "ADD" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "SUM" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
# All that a vLLM model needs, once in the words of its backend and once served by our stand-in.
BARE = 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
MODELS = {
    "halves": (HALF % {"kind": "FP16"}, ECHO),
    "brains": (HALF % {"kind": "BF16"}, ECHO),
    "counter": (SEQUENCES, COUNTER),
    "vllm_like": ('backend: "python"\n', LIKE_VLLM),
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with models of other people."""
    folder = tmp_path_factory.mktemp("others")
    for name, (config, program) in MODELS.items():
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "config.pbtxt").write_text(config)
        (folder / "models" / name / "1/model.py").write_text(program)
    arguments = [f"--model-repository={folder / 'models'}"]
    with running_server(arguments=arguments, workdir=folder) as server:
        yield server


def data_of(folder: Path, document: object) -> str:
    """An option that names a file with this document."""
    file = folder / "data.json"
    file.write_text(json.dumps(document))
    return f"--data={file}"


def sentence(done_stderr: str) -> str:
    """The one sentence of a refusal."""
    (told,) = [line for line in done_stderr.splitlines() if "error: " in line]
    assert "Traceback" not in done_stderr
    return told


ASKS = [
    {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["Why is the sky blue?"]},
    {"name": "stream", "datatype": "BOOL", "shape": [1], "data": [True]},
]


@pytest.mark.triton
@pytest.mark.parametrize("schema", [True, False])
def test_a_model_whose_backend_adds_its_inputs_is_tested_as_the_server_knows_it(
    triton: Server, tmp_path: Path, *, schema: bool
) -> None:
    (tmp_path / "config.pbtxt").write_text(BARE)
    words = [f"--schema={tmp_path / 'config.pbtxt'}"] if schema else []
    words += ["--client=stream", "--model=vllm_like", data_of(tmp_path, {"inputs": ASKS})]
    done, found = measured(tmp_path / "out", "-t2s", "--host", triton.url, *words, *CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.totals.requests > 5
    words[-1] = data_of(tmp_path, {"inputs": ASKS[1:]})
    refused = locust("--headless", "--host", triton.url, *words)
    assert refused.returncode == 2
    assert "input 'text_input' is required by the server's metadata" in sentence(refused.stderr)


@pytest.mark.triton
@pytest.mark.parametrize(("model", "kind"), [("halves", "FP16"), ("brains", "BF16")])
def test_half_precision_goes_over_grpc_and_is_refused_elsewhere_before_any_load(
    triton: Server, tmp_path: Path, model: str, kind: str
) -> None:
    tensor = {"name": "X", "datatype": kind, "shape": [1, 2], "data": [0.5, 1.5]}
    words = ("--host", triton.url, f"--model={model}", data_of(tmp_path, {"inputs": [tensor]}))
    for client in ("infer", "stream"):
        refused = locust("--headless", "-t2s", f"--client={client}", *words)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert f"input 'X' is {kind}, which Triton takes in no JSON; use --client grpc" in sentence(
            refused.stderr
        )
    grpc = (f"--grpc-host=localhost:{triton.ports.grpc}", "--client=grpc")
    done, found = measured(tmp_path / "out", "-t2s", *grpc, *words, *CALM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert found.totals.requests > 5


@pytest.mark.triton
@pytest.mark.parametrize("client", ["infer", "grpc"])
def test_sequences_go_over_http_and_grpc_and_unknown_tokens_are_no_0(
    triton: Server, tmp_path: Path, client: str
) -> None:
    case = {
        "inputs": [{"name": "ADD", "datatype": "INT32", "shape": [1, 1], "data": [1]}],
        "parameters": {"sequence_id": 42, "sequence_start": True, "sequence_end": True},
    }
    goals = tmp_path / "goals.yaml"
    goals.write_text("output tokens: 5\n")
    words = (f"--client={client}", f"--grpc-host=127.0.0.1:{triton.ports.grpc}")
    words += ("--host", triton.url, "--model=counter", data_of(tmp_path, {"cases": [case]}))
    done, found = measured(tmp_path / "out", "-t2s", *words, *CALM, f"--objectives={goals}")
    assert found.totals.requests > 5
    assert found.totals.failed == 0, found.errors
    assert found.totals.output_tokens_per_second is None
    assert found.objectives[0].measured is None
    assert done.returncode == 1
    assert "output tokens is unknown, objective >= 5 tokens/s" in done.stdout


@pytest.mark.triton
@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"sequence_start": 1}, "'sequence_start' must be true or false with --client grpc, not 1"),
        ({"sequence_id": True}, "'sequence_id' must be a whole number or text"),
        ({"binary_data_output": True}, "'binary_data_output' is known to HTTP alone"),
        ({"stop": None}, "'stop' must be text or true or false or a whole number or a number"),
    ],
)
def test_a_parameter_that_grpc_cannot_carry_is_refused_before_any_load(
    triton: Server, tmp_path: Path, parameters: dict[str, object], words: str
) -> None:
    tensor = {"name": "ADD", "datatype": "INT32", "shape": [1, 1], "data": [1]}
    options = ("--client=grpc", f"--grpc-host=[::1]:{triton.ports.grpc}", "--model=counter")
    file = data_of(tmp_path, {"inputs": [tensor], "parameters": parameters})
    done = locust("--headless", "-t2s", "--host", triton.url, file, *options)
    if "cannot reach [::1]" in done.stderr:
        options = ("--client=grpc", f"--grpc-host=127.0.0.1:{triton.ports.grpc}", options[2])
        done = locust("--headless", "-t2s", "--host", triton.url, file, *options)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in sentence(done.stderr)


def test_the_json_that_is_asked_for_is_alone_on_stdout() -> None:
    with known_server(tokens=3) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        done = locust("--headless", "--json", "-t2s", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)[0]["num_requests"] > 3
    assert "verdict: pass" in done.stderr


@pytest.mark.parametrize("option", ["--tags", "--exclude-tags"])
def test_tags_are_refused_because_nothing_has_any(option: str) -> None:
    with known_server() as server:
        words = ("--client=stream", "--model=known", f"--host={server.host}", option, "x")
        done = locust("--headless", "-t2s", *words)
        assert server.log() == []
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{option} chooses among tasks, and a load test has one" in sentence(done.stderr)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--csv={file}/x", "argument --csv: {file} is no folder that can be written to"),
        ("--html={file}/x.html", "argument --html: {file} is no folder"),
        ("--html={folder}", "argument --html: {folder} is no file that can be written"),
        ("--json-file={file}/x", "argument --json-file: {file} is no folder"),
        ("--json-file=/proc/x", "argument --json-file: /proc is no folder"),
        ("--csv=/proc/x", "argument --csv: /proc is no folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_load(
    tmp_path: Path, option: str, words: str
) -> None:
    (tmp_path / "file").touch()
    names = {"file": tmp_path / "file", "folder": tmp_path}
    with known_server() as server:
        options = ("--client=stream", "--model=known", f"--host={server.host}")
        done = locust("--headless", "-t2s", *options, option.format(**names))
        assert server.log() == []
    assert done.returncode == 2, done.stdout + done.stderr
    assert words.format(**names) in sentence(done.stderr)


def test_a_folder_that_is_not_there_is_made(tmp_path: Path) -> None:
    with known_server(tokens=3) as server:
        words = (*CALM, "--client=stream", "--model=known", f"--host={server.host}")
        names = ("--csv={0}/a/b/x", "--html={0}/c/x.html", "--json-file={0}/d/e/x")
        files = [name.format(tmp_path) for name in names]
        done = locust("--headless", "-t2s", *words, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    made = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert {"a/b/x_stats.csv", "c/x.html", "d/e/x.json"} <= made


@pytest.mark.triton
@pytest.mark.parametrize("client", ["infer", "stream", "grpc"])
def test_a_run_in_which_every_request_fails_fails_for_that_and_repeats_none_at_once(
    triton: Server, tmp_path: Path, client: str
) -> None:
    case = {  # the sequence has not begun, which the server refuses in no time
        "inputs": [{"name": "ADD", "datatype": "INT32", "shape": [1, 1], "data": [1]}],
        "parameters": {"sequence_id": 7},
    }
    words = (f"--client={client}", f"--grpc-host=127.0.0.1:{triton.ports.grpc}")
    words += ("--host", triton.url, "--model=counter", data_of(tmp_path, case))
    done, found = measured(tmp_path / "out", "-t4s", "-u4", "-r4", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert found.totals.failed == found.totals.requests
    assert 8 <= found.totals.requests <= 24
    (reason,) = found.verdict.reasons
    assert reason.startswith(f"all {found.totals.requests} requests failed, most of them so: ")
    assert "sequence" in reason or "correlation ID" in reason


def test_a_worker_that_never_had_a_test_does_not_look_done(tmp_path: Path) -> None:
    port = 5879
    with known_server() as server:
        words = ("--client=stream", "--model=known", f"--host={server.host}")
        worker = start_locust(
            "--worker", f"--master-port={port}", "--master-host=127.0.0.1", *words
        )
        master = start_locust(
            *("--master", f"--master-bind-port={port}", "--master-bind-host=127.0.0.1"),
            *("--headless", "--expect-workers=2", "--expect-workers-max-wait=5", "-t2s", *words),
        )
        told = [process.communicate(timeout=90)[0] for process in (master, worker)]
        assert server.log() == []
    assert "only 1 of 2 workers came" in told[0]
    assert (master.returncode, worker.returncode) == (3, 3), told
