"""The model store, with the real huggingface_hub against the local mirror."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lib.triton_client import eventually
from tools.hub_mirror.server import Faults, HubServer, running_hub
from triton_hf import progress as progress_module
from triton_hf.errors import (
    EXIT_ACCESS,
    EXIT_DISK,
    EXIT_HUB,
    EXIT_NOT_FOUND,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    StoreError,
)
from triton_hf.models.pbtxt import read_config, string_parameters
from triton_hf.models.specification import ModelSpec
from triton_hf.progress import Progress
from triton_hf.store import commands
from triton_hf.store import sync as sync_module
from triton_hf.store.layout import folder_bytes, locate_weights, marker_path, weights_folder

OPEN, GATED, TOKEN = "org/open", "org/gated", "hf_a_token_that_must_not_be_seen"
COMMIT, GATED_COMMIT = "a" * 40, "b" * 40
# huggingface_hub writes in chunks of 10 MiB: what arrived of a chunk is lost with its connection.
CHUNK_BYTES = 10 * 1024 * 1024
WEIGHTS_BYTES = 26_000_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    root = tmp_path / "hub"
    for name, commit, token in ((OPEN, COMMIT, None), (GATED, GATED_COMMIT, TOKEN)):
        files = root / name / "files"
        files.mkdir(parents=True)
        (files / "config.json").write_text("{}")
        (files / "model.safetensors").write_bytes(os.urandom(WEIGHTS_BYTES))
        (files / "pytorch_model.bin").write_bytes(b"never loaded")
        (root / name / "revision").write_text(commit)
        if token:
            (root / name / "token").write_text(token)
    with running_hub(root) as server:
        yield server


class Sync:
    """Runs `triton-hf sync` as the Job does: in a process of its own."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub = hub
        self.store = folder / "store"
        self.folder = folder
        self.termination = folder / "termination-log"

    def generations(self) -> list[str]:
        """Those that are whole, and nothing else lies beside them."""
        root = self.store / "repository"
        found = sorted(path.name for path in root.iterdir() if path.is_dir())
        assert sorted(path.stem for path in root.glob("*.ready")) == found
        return found

    def start(
        self, models: dict, generation: str, token: str | None = None, words: Sequence[str] = ()
    ) -> subprocess.Popen:
        spec = self.folder / f"spec-{generation}.json"
        spec.write_text(json.dumps({"models": models}))
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "HF_HUB_OFFLINE": "0",
            "TERMINATION_LOG": str(self.termination),
            "PYTHONPATH": str(Path(sync_module.__file__).parents[2]),
        }
        environment.pop("HF_TOKEN", None)
        if token is not None:
            file = self.folder / "token"
            file.write_text(f"{token}\n")
            environment["HF_TOKEN_PATH"] = str(file)
        command = [sys.executable, "-m", "triton_hf", "sync", "--spec", str(spec)]
        command += ["--store", str(self.store), "--generation", generation, *words]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(
        self, models: dict, generation: str, token: str | None = None, words: Sequence[str] = ()
    ) -> tuple[int, str]:
        process = self.start(models, generation, token, words)
        output = process.communicate(timeout=120)[0]
        assert TOKEN not in output
        assert "Traceback" not in output
        return process.returncode, output

    def fails(self, models: dict, exit_code: int, words: str, token: str | None = None) -> None:
        self.termination.unlink(missing_ok=True)  # a container that starts again has a new one
        status, output = self.run(models, "bad", token)
        assert (status, words in output) == (exit_code, True), output
        assert words in self.termination.read_text()
        assert len(self.termination.read_text().strip().splitlines()) == 1
        assert not marker_path(self.store, "bad").exists()
        assert not (self.store / "repository" / "bad").exists()


@pytest.fixture
def sync(hub: HubServer, tmp_path: Path) -> Sync:
    return Sync(hub, tmp_path)


OPEN_MODEL = {"m": {"repository": OPEN, "parameters": {"slots": 4.0}}}


def test_a_generation_holds_weights_and_repository_and_its_marker(sync: Sync) -> None:
    models = {**OPEN_MODEL, "s": {"engine": "simulated", "parameters": {"ttft_ms": 5}}}
    assert sync.run(models, "1")[0] == 0
    folder = weights_folder(sync.store, OPEN, COMMIT)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    parameters = string_parameters(read_config(sync.store / "repository/1/m/config.pbtxt"))
    assert parameters == {
        "engine": "auto", "repo_id": OPEN, "revision": COMMIT, "slots": "4",
    }  # fmt: skip
    assert (sync.store / "repository/1/s/1/model.py").is_file()
    assert json.loads(marker_path(sync.store, "1").read_text())["models"] == {"m": COMMIT}
    assert list((sync.store / "incoming").iterdir()) == []


def test_what_is_in_the_store_is_not_downloaded_again(sync: Sync) -> None:
    model = {"m": {"repository": OPEN, "revision": COMMIT}}
    assert sync.run(model, "1")[0] == 0
    sync.hub.requests.clear()
    assert sync.run(model, "2")[0] == 0
    assert sync.hub.requests == []


def test_the_gated_model_comes_with_its_token_only(sync: Sync) -> None:
    gated = {"g": {"repository": GATED}}
    sync.fails(gated, EXIT_ACCESS, f"{GATED} is gated and there is no token")
    sync.fails(gated, EXIT_ACCESS, "the Hub does not accept the token", token="hf_wrong_one_12345")


@pytest.mark.parametrize("text", [f"HF_TOKEN={TOKEN}\nOTHER=1", f"'{TOKEN}'", f"{TOKEN} # mine"])
def test_a_token_file_that_holds_more_is_one_sentence_without_it(sync: Sync, text: str) -> None:
    gated = {"m": {"repository": GATED}}
    sync.fails(gated, EXIT_ACCESS, "holds more than a token", token=text)
    assert TOKEN not in sync.termination.read_text()
    assert sync.run(gated, "1", token=TOKEN)[0] == 0


@pytest.mark.parametrize(
    ("model", "exit_code", "words"),
    [
        ({"repository": OPEN, "revision": "v9"}, EXIT_NOT_FOUND, "has no revision 'v9'"),
        ({"repository": OPEN, "revision": "c" * 40}, EXIT_NOT_FOUND, "has no revision 'cccc"),
        ({"repository": "org/none"}, EXIT_ACCESS, "org/none"),
        ({"repository": "none"}, EXIT_USAGE, "'repository' must be ORG/NAME"),
        ({"repository": OPEN, "slots": 3}, EXIT_USAGE, "nothing else"),
        ({"repository": OPEN, "parameters": {"slots": 0}}, EXIT_USAGE, "'slots' must be"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_sentence_and_nothing_changes(
    sync: Sync, model: dict, exit_code: int, words: str
) -> None:
    assert sync.run(OPEN_MODEL, "1")[0] == 0
    before = sorted(str(path) for path in (sync.store / "repository").rglob("*"))
    sync.fails({"x": model}, exit_code, words)
    assert sorted(str(path) for path in (sync.store / "repository").rglob("*")) == before


def test_a_hub_that_fails_for_a_while_is_asked_again(sync: Sync) -> None:
    sync.hub.faults = Faults(status=429, times=2)
    assert sync.run(OPEN_MODEL, "1")[0] == 0
    assert sync.hub.faults.times == 0


def test_a_hub_that_cannot_be_reached_is_one_sentence(sync: Sync, monkeypatch) -> None:
    monkeypatch.setattr(type(sync.hub), "url", "http://127.0.0.1:9")
    sync.fails(OPEN_MODEL, EXIT_HUB, "the Hub at http://127.0.0.1:9 failed")


def test_a_truncated_download_goes_on_where_it_stopped(sync: Sync) -> None:
    sync.hub.faults = Faults(truncate_after=CHUNK_BYTES + 500_000)
    assert sync.run(OPEN_MODEL, "1")[0] == 0
    source = sync.hub.root / OPEN / "files/model.safetensors"
    published = weights_folder(sync.store, OPEN, COMMIT) / "model.safetensors"
    assert published.read_bytes() == source.read_bytes()
    assert any(headers for _, _, headers in sync.hub.requests)


def test_a_killed_sync_publishes_nothing_and_the_next_one_fetches_only_the_missing_files(
    sync: Sync,
) -> None:
    sync.hub.faults = Faults(bytes_per_second=12_000_000)
    process = sync.start(OPEN_MODEL, "1")
    incoming = sync.store / "incoming"
    eventually(lambda: incoming.exists() and folder_bytes(incoming) >= CHUNK_BYTES)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not marker_path(sync.store, "1").exists()
    assert not list((sync.store / "weights").glob("*/*"))
    assert list(incoming.rglob("*.incomplete"))
    sync.hub.faults = Faults()
    sync.hub.requests.clear()
    assert sync.run(OPEN_MODEL, "1")[0] == 0
    fetched = {path for method, path, _ in sync.hub.requests if method == "GET"}
    assert any(path.endswith("model.safetensors") for path in fetched)
    assert not any(path.endswith("/resolve/" + COMMIT + "/config.json") for path in fetched)
    assert not list(sync.store.rglob("*.incomplete"))


def test_two_syncs_at_once_run_one_after_the_other(sync: Sync) -> None:
    sync.hub.faults = Faults(bytes_per_second=13_000_000)
    first = sync.start(OPEN_MODEL, "1")
    second = sync.start(OPEN_MODEL, "2")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert any("waiting for another sync" in output for output in outputs)
    assert any("is in the store already" in output for output in outputs)
    assert marker_path(sync.store, "1").exists()
    assert marker_path(sync.store, "2").exists()


def test_the_current_and_the_previous_generations_are_kept(sync: Sync) -> None:
    simulated = {"s": {"engine": "simulated"}}
    assert sync.run(OPEN_MODEL, "1")[0] == 0
    assert sync.run(simulated, "2")[0] == 0
    assert sync.run(simulated, "3")[0] == 0
    assert weights_folder(sync.store, OPEN, COMMIT).is_dir()
    assert sync.run(simulated, "4", words=["--keep=2"])[0] == 0
    assert sync.generations() == ["3", "4"]
    assert not weights_folder(sync.store, OPEN, COMMIT).exists()


def test_no_release_removes_what_another_one_serves(sync: Sync) -> None:
    simulated = {"s": {"engine": "simulated"}}
    assert sync.run(OPEN_MODEL, "a1", words=["--owner=n/a"])[0] == 0
    for number in range(4):
        assert sync.run(simulated, f"b{number}", words=["--owner=n/b", "--keep=2"])[0] == 0
    assert sync.generations() == ["a1", "b2", "b3"]
    assert weights_folder(sync.store, OPEN, COMMIT).is_dir()
    for number in range(2, 4):
        assert sync.run(simulated, f"a{number}", words=["--owner=n/a", "--keep=2"])[0] == 0
    assert sync.generations() == ["a2", "a3", "b2", "b3"]
    assert not weights_folder(sync.store, OPEN, COMMIT).exists()


SIMULATED = {"s": {"engine": "simulated"}}


def foreign_marker(sync: Sync, text: str, *, config: str = "") -> None:
    """Leave what another version of a release on the same claim may have left."""
    folder = sync.store / "repository" / "foreign" / "m"
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    marker_path(sync.store, "foreign").write_text(text)


@pytest.mark.parametrize(
    "config",
    [
        'parameters { key: "commit" value { string_value: "x" } }',  # no revision
        'parameters { key: "revision" value { string_value: "x" } }',  # no repo_id
        "not { a config",
    ],
)
def test_the_weights_of_a_release_of_another_version_stay(sync: Sync, config: str) -> None:
    assert sync.run(OPEN_MODEL, "1", words=["--owner=n/a"])[0] == 0
    needs = f"{OPEN.replace('/', '--')}/{COMMIT}"
    foreign = {"owner": "n/b", "models": {"m": "other"}, "weights": [needs], "news": [1, 2]}
    foreign_marker(sync, json.dumps(foreign), config=config)
    for number in range(2, 5):
        assert sync.run(SIMULATED, str(number), words=["--owner=n/a", "--keep=1"])[0] == 0
    assert weights_folder(sync.store, OPEN, COMMIT).is_dir()
    assert sync.generations() == ["4", "foreign"]


def test_the_weights_of_a_marker_that_names_only_commits_stay(sync: Sync) -> None:
    assert sync.run(OPEN_MODEL, "1", words=["--owner=n/a"])[0] == 0
    foreign_marker(sync, json.dumps({"owner": "n/b", "models": {"m": COMMIT}}))
    assert sync.run(SIMULATED, "2", words=["--owner=n/a", "--keep=1"])[0] == 0
    assert weights_folder(sync.store, OPEN, COMMIT).is_dir()


def test_nothing_is_removed_for_a_marker_that_cannot_be_read(sync: Sync) -> None:
    assert sync.run(OPEN_MODEL, "1", words=["--owner=n/a"])[0] == 0
    foreign_marker(sync, '{"owner": "n/')
    status, output = sync.run(SIMULATED, "2", words=["--owner=n/a", "--keep=1"])
    assert (status, "foreign.ready cannot be read" in output) == (0, True), output
    assert weights_folder(sync.store, OPEN, COMMIT).is_dir()
    assert sync.generations() == ["2", "foreign"]


def test_a_generation_is_ready_although_nothing_old_can_be_removed(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def stuck(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(sync_module, "collect_garbage", stuck)
    models = [ModelSpec(name="s", engine="simulated")]
    sync_module.sync(models=models, store=tmp_path, generation="1", token=None)
    assert marker_path(tmp_path, "1").exists()
    assert "old generations could not be removed" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_volume_without_locks_is_one_sentence(tmp_path: Path, monkeypatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    models = [ModelSpec(name="s", engine="simulated")]
    with pytest.raises(StoreError, match="does not support file locks") as caught:
        sync_module.sync(models=models, store=tmp_path, generation="1", token=None)
    assert caught.value.exit_code == EXIT_DISK


def test_whatever_goes_wrong_in_a_sync_the_job_says_it_in_one_sentence(
    tmp_path: Path, monkeypatch
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(commands, "sync", broken)
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "log"))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"models": SIMULATED}))
    words = ["--spec", str(spec), "--store", str(tmp_path), "--generation", "1"]
    with pytest.raises(StoreError, match="sync failed: ZeroDivisionError: float division by zero"):
        commands.sync_command(words)
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def repository(hub: HubServer, name: str, **files: object) -> dict:
    """Add a repository to the mirror; return its model."""
    folder = hub.root / name / "files"
    folder.mkdir(parents=True)
    for path, content in files.items():
        target = folder / path.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content))
    (hub.root / name / "revision").write_text("c" * 40)
    return {"m": {"repository": name}}


def test_only_the_weights_that_a_load_reads_are_downloaded(sync: Sync) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    names = ("model-1", "model-2", "consolidated", "original__model")
    weights = {f"{name}.safetensors": "w" for name in names}
    files = {"config.json": {}, "model.safetensors.index.json": index, "original__params.json": {}}
    models = repository(sync.hub, "org/doubled", **files, **weights)
    assert sync.run(models, "1")[0] == 0
    folder = weights_folder(sync.store, "org/doubled", "c" * 40)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert found == [
        *("config.json", "model-1.safetensors", "model-2.safetensors"),
        "model.safetensors.index.json",
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"adapter_config.json": {"base_model_name_or_path": "org/base"}},
            "org/odd is an adapter for org/base, not a model",
        ),
        (
            {"config.json": {"quantization_config": {"quant_method": "gptq"}}},
            "org/odd is quantised (gptq), which this image does not serve",
        ),
        (
            {"config.json": {}, "model.safetensors.index.json": {"weight_map": {"a": "gone.st"}}},
            "org/odd lacks gone.st, which model.safetensors.index.json names",
        ),
        ({"config.json": "{"}, "org/odd has a config.json that is not JSON"),
        (
            {"config.json": {"model_type": "bert", "architectures": ["BertForMaskedLM"]}},
            "org/odd is an encoder (BertForMaskedLM), which generates no text; 'task: embed'",
        ),
        (
            {"config.json": {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}},
            "org/odd keeps a recurrent state (mamba)",
        ),
        (
            {"config.json": {}, "modules.json": [{"idx": 0, "path": "", "type": "x.CNN"}]},
            "org/odd cannot be served: modules.json has a module 'CNN'",
        ),
        (
            {
                "config.json": {},
                "modules.json": [
                    {"idx": 0, "path": "", "type": "x.Transformer"},
                    {"idx": 1, "path": "1_Pooling", "type": "x.Pooling"},
                    {"idx": 2, "path": "2_Dense", "type": "x.Dense"},
                ],
            },
            "org/odd lacks 2_Dense/model.safetensors, which modules.json names",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_weight_is_downloaded(
    sync: Sync, files: dict, words: str
) -> None:
    models = repository(sync.hub, "org/odd", **files, **{"model.safetensors": "w"})
    sync.fails(models, EXIT_NOT_FOUND, words)
    assert not [path for _, path, _ in sync.hub.requests if path.endswith(".safetensors")]


def test_an_engine_that_loads_all_gets_quantised_weights(sync: Sync) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    files = {"config.json": config, "model.safetensors": "w"}
    models = repository(sync.hub, "org/quantised", **files)
    status, output = sync.run({"m": {**models["m"], "engine": "vllm"}}, "1")
    assert status == 0, output


EMBEDDER = {
    "config.json": {"model_type": "bert", "architectures": ["BertModel"]},
    "modules.json": [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ],
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    "2_Dense/config.json": {},
    "2_Dense/model.safetensors": "d",
    "2_Dense/pytorch_model.bin": "not loaded",
    "onnx/model.onnx": "not loaded",
    "model.safetensors": "w",
}


def test_the_task_is_found_in_the_files_and_only_what_it_loads_is_downloaded(sync: Sync) -> None:
    models = repository(sync.hub, "org/embedder", **EMBEDDER)
    status, output = sync.run(models, "1")
    assert status == 0, output
    config = read_config(sync.store / "repository" / "1" / "m" / "config.pbtxt")
    assert string_parameters(config)["task"] == "embed"
    assert [output.name for output in config.output] == ["embedding", "prompt_tokens"]
    (folder,) = (sync.store / "weights" / "org--embedder").iterdir()
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {name for name in EMBEDDER if "not loaded" not in str(EMBEDDER[name])}


def test_parameters_of_another_task_than_the_one_found_are_named(sync: Sync) -> None:
    models = repository(sync.hub, "org/embedder", **EMBEDDER)
    wrong = {"m": {**models["m"], "parameters": {"top_p": "1"}}}
    sync.fails(wrong, EXIT_USAGE, "model 'm': unknown parameter 'top_p'; the task embed knows")
    stated = {"m": {**models["m"], "task": "rank"}}
    sync.fails(stated, EXIT_NOT_FOUND, "has no head for sequence classification (BertModel)")


def test_a_short_commit_is_told_to_be_written_in_full(sync: Sync) -> None:
    model = {"m": {"repository": OPEN, "revision": COMMIT[:8]}}
    sync.fails(model, EXIT_NOT_FOUND, "a commit has 40 characters, write it in full")


def test_the_log_of_a_sync_has_lines_and_no_bars(sync: Sync) -> None:
    status, output = sync.run(OPEN_MODEL, "1")
    assert (status, "\r" in output, "Fetching" in output) == (0, False, False), output


@contextlib.contextmanager
def small_volume(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small volume needs root")
def test_a_full_disk_is_one_sentence_and_what_was_published_stays(sync: Sync) -> None:
    with small_volume(sync.store, "4m"):
        assert sync.run({"s": {"engine": "simulated"}}, "1")[0] == 0
        sync.fails(OPEN_MODEL, EXIT_DISK, "is full (")
        assert marker_path(sync.store, "1").exists()
        subprocess.run(["mount", "-o", "remount,size=80m", sync.store], check=True)
        assert sync.run(OPEN_MODEL, "2")[0] == 0


def wait(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "triton_hf", "wait", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(sync_module.__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_wait_ends_when_the_marker_appears(tmp_path: Path) -> None:
    process = wait("--store", str(tmp_path), "--generation", "7", "--timeout", "60")
    assert process.stderr is not None
    assert "waiting for generation 7" in process.stderr.readline()
    marker_path(tmp_path, "7").parent.mkdir()
    marker_path(tmp_path, "7").touch()
    assert process.wait(30) == 0
    process.stderr.close()


def test_wait_gives_up_with_one_sentence(tmp_path: Path) -> None:
    process = wait("--store", str(tmp_path), "--generation", "7", "--timeout", "0.1")
    output = process.communicate(timeout=30)[1]
    assert process.returncode == EXIT_TIMEOUT
    assert "did not get generation 7 within 0.1 s" in output


def test_a_server_with_a_store_never_downloads(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_HF_STORE", str(tmp_path))
    with pytest.raises(StoreError, match="is not in the store"):
        locate_weights(repo_id=OPEN, revision=COMMIT)
    weights_folder(tmp_path, OPEN, COMMIT).mkdir(parents=True)
    found = locate_weights(repo_id=OPEN, revision=COMMIT)
    assert found == weights_folder(tmp_path, OPEN, COMMIT)


def test_progress_is_said_while_a_folder_grows(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress_module, "PROGRESS_SECONDS", 0.01)
    (tmp_path / "file").write_bytes(b"x" * 2_000_000)
    said: list[str] = []
    with Progress().watching(lambda: f"m: {folder_bytes(tmp_path) / 1e6:.0f} MB so far"):
        eventually(lambda: bool(said.append(capsys.readouterr().err) or "2 MB" in "".join(said)))
