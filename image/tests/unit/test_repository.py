"""The two files of a model, written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_hf.errors import SettingsError
from triton_hf.models.pbtxt import read_config, string_parameters
from triton_hf.models.repository import check_spec, differences, read_model, write_model
from triton_hf.models.specification import ModelSpec
from triton_hf.server.launch import derive_arguments

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"


@pytest.mark.parametrize("folder", sorted(REPOSITORY.glob("*/")), ids=lambda path: path.name)
def test_the_files_of_the_repository_are_what_the_generator_writes(folder: Path) -> None:
    assert differences(folder) == []


def test_llama_is_the_gated_bf16_gpu_model() -> None:
    spec = read_model(REPOSITORY / "llama3-8b")
    assert spec.repository == "meta-llama/Meta-Llama-3-8B-Instruct"
    wanted = {"gated": "true", "dtype": "bfloat16", "device": "cuda"}
    assert wanted.items() <= spec.parameters.items()


def test_a_model_survives_being_written_and_read(tmp_path: Path) -> None:
    spec = ModelSpec(
        name="m", repository="org/name", revision="a" * 40, parameters={"slots": "2", "seed": "1"}
    )
    assert read_model(write_model(tmp_path, spec)) == spec


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec(name="A b", repository="o/n"), "a name has up to 63 of a-z"),
        (ModelSpec(name="../m", repository="o/n"), "a name has up to 63 of a-z"),
        (ModelSpec(name="m_stream", repository="o/n"), "does not end with '_stream'"),
        (ModelSpec(name="m"), "'repository' must be ORG/NAME"),
        (ModelSpec(name="m", repository="../../etc"), "'repository' must be ORG/NAME"),
        (ModelSpec(name="m", engine="simulated", repository="o/n"), "has no 'repository'"),
        (ModelSpec(name="m", engine="magic", repository="o/n"), "'engine' must be one of"),
        (
            ModelSpec(name="m", repository="o/n", parameters={"revision": "x"}),
            "'revision' is a field of the model itself",
        ),
        (ModelSpec(name="m", repository="o/n", parameters={"slots": "x"}), "model 'm': parameter"),
    ],
)
def test_a_wrong_specification_is_named(spec: ModelSpec, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_spec(spec)
    assert words in str(caught.value)


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_HF_RUNTIME_DIR", str(tmp_path / "runtime"))
    return tmp_path / "runtime"


def test_each_text_model_gets_a_decoupled_companion(tmp_path: Path, runtime: Path) -> None:
    models = tmp_path / "models"
    write_model(models, ModelSpec(name="a", engine="simulated"))
    write_model(models, ModelSpec(name="b", engine="simulated"))
    (models / "other").mkdir()
    (models / "other/config.pbtxt").write_text('backend: "python"\n')
    derived = derive_arguments(["--model-repository", str(models), "--load-model=a"])
    assert derived == [f"--model-repository={runtime}/streams", "--load-model=a_stream"]
    assert sorted(path.name for path in (runtime / "streams").iterdir()) == ["a_stream", "b_stream"]
    config = read_config(runtime / "streams/a_stream/config.pbtxt")
    assert config.model_transaction_policy.decoupled
    assert config.max_batch_size == 1
    assert string_parameters(config) == {"model": "a"}


@pytest.mark.usefixtures("runtime")
def test_a_model_that_takes_the_companions_name_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, ModelSpec(name="a", engine="simulated"))
    (tmp_path / "a_stream").mkdir()
    with pytest.raises(SettingsError, match="streaming companion of 'a'; rename it"):
        derive_arguments([f"--model-repository={tmp_path}"])


@pytest.mark.usefixtures("runtime")
def test_a_broken_config_or_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is not a folder"):
        derive_arguments([f"--model-repository={tmp_path / 'none'}"])
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.pbtxt").write_text("backend python")
    with pytest.raises(SettingsError, match=r"m/config.pbtxt is not a model configuration"):
        derive_arguments([f"--model-repository={tmp_path}"])
