"""Engine `auto`: what is taken where, and that the log says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from triton_hf.engines import choice
from triton_hf.models.registry import engine_kind
from triton_hf.models.settings import parse_settings


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a GPU and an image with vLLM for it."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(choice, "is_cpu_build", lambda: False)
    return tmp_path


def settings(**parameters: str) -> Any:
    return parse_settings({"repo_id": "a/b", **parameters})


def test_vllm_is_taken_where_there_are_both(gpu: Path) -> None:
    assert choice.choose(settings(), devices=gpu)[0] == "vllm"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"device": "cpu"}, "'device' is cpu"),
        ({"weights": "int8"}, "'weights' or 'cpu_step' is set"),
        ({"cpu_step": "torch"}, "'weights' or 'cpu_step' is set"),
    ],
)
def test_a_setting_may_ask_for_the_other(gpu: Path, parameters: dict[str, str], words: str) -> None:
    name, why = choice.choose(settings(**parameters), devices=gpu)
    assert (name, words in why) == ("transformers", True)


def test_no_gpu_or_one_that_is_hidden(gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choice.choose(settings(), devices=gpu) == ("transformers", "there is no NVIDIA GPU here")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (gpu / "nvidia0").rename(gpu / "nvidiactl")
    assert choice.choose(settings(), devices=gpu) == ("transformers", "there is no NVIDIA GPU here")


def test_an_image_without_vllm_or_with_that_for_cpus(
    gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "is_cpu_build", lambda: True)
    assert "for CPUs" in choice.choose(settings(), devices=gpu)[1]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choice.choose(settings(), devices=gpu) == ("transformers", "this image has no vLLM")


def test_the_default_makes_the_engine_that_was_chosen_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "choose", lambda _: ("vllm", "it is a test"))
    assert settings().engine == "auto"
    parts = {"metrics": SimpleNamespace(), "heartbeat": SimpleNamespace()}
    made = choice.make_engine(settings=settings(), **parts)
    factory = engine_kind("vllm").factory
    assert f"{type(made).__module__}:{type(made).__name__}" == factory
    assert "a/b: engine vllm, because it is a test" in capsys.readouterr().err
