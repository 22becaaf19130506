"""Each architecture answers as transformers does, alone and 12 at once, or is refused by name."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from lib import architectures as tiny
from triton_hf.contract import Message, Sampling
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.errors import SettingsError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models import architectures
from triton_hf.models.files import json_reader, refusal
from triton_hf.models.settings import ModelSettings

# One for each way to keep and mask a KV cache; `make architectures` tries them all.
USUAL = ("llama", "gemma3", "llama4-chunked", "deepseek-v3-mla", "gpt-oss-sinks", "opt", "mixtral")
ALL = [
    pytest.param(name, marks=() if name in USUAL else pytest.mark.slow) for name in tiny.DECODERS
]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


def make_engine(folder: Path, tmp_path: Path) -> TransformersEngine:
    settings = ModelSettings(
        repo_id="org/tiny",
        device="cpu",
        dtype="float32",
        slots=12,
        max_total_tokens=1024,
        max_prompt_tokens=512,
    )
    engine = TransformersEngine(
        settings=settings, metrics=Metrics(), heartbeat=Heartbeat(tmp_path / "beat.json")
    )
    engine._load = lambda: engine._open(folder)  # type: ignore[method-assign]
    return engine


def ask(engine: TransformersEngine, prompt: str) -> queue.Queue[Any]:
    sampling = Sampling(max_tokens=tiny.NEW_TOKENS, ignore_eos=True)
    events: queue.Queue[Any] = queue.Queue()
    work = engine.encode((Message(role="user", content=prompt),), sampling)
    engine.submit([work], [events.put])
    return events


def text(events: queue.Queue[Any]) -> str:
    found = [events.get(timeout=60)]
    while not found[-1].last:
        found.append(events.get(timeout=60))
    assert found[-1].error is None
    return "".join(event.text for event in found)


@pytest.mark.parametrize("name", ALL)
def test_a_decoder_answers_as_transformers_does_alone_and_12_at_once(name, tmp_path) -> None:
    folder = tiny.write_decoder(tmp_path / "model", name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = {prompt: tiny.greedy_answer(model.eval(), prompt) for prompt in tiny.PROMPTS}
    engine = make_engine(folder, tmp_path)
    engine.start()
    try:
        assert {prompt: text(ask(engine, prompt)) for prompt in expected} == expected
        together = [(prompt, ask(engine, prompt)) for prompt in [*expected] * 3]
        assert [(prompt, text(events)) for prompt, events in together] == [*expected.items()] * 3
    finally:
        engine.stop()


@pytest.mark.parametrize("name", tiny.REFUSED)
def test_others_are_refused_in_one_sentence_before_the_download_and_at_the_load(
    name, tmp_path
) -> None:
    words = tiny.REFUSED[name][-1]
    folder = tiny.write_refused(tmp_path / "model", name)
    names = [path.name for path in folder.iterdir()]
    why = refusal(names, read=json_reader(folder), task="text")
    assert words in (why or "")
    with pytest.raises(SettingsError) as refused:
        make_engine(folder, tmp_path).start()
    assert words in str(refused.value)
    assert "Error" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_window_of_angles_that_is_too_short_is_refused_with_the_length(tmp_path) -> None:
    folder = tiny.write_short(tmp_path / "model")
    with pytest.raises(SettingsError, match=r"'max_total_tokens' is 1024, but .* at most 64"):
        make_engine(folder, tmp_path).start()


def test_an_encoder_that_is_a_decoder_is_not_refused() -> None:
    config = {"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]}
    assert architectures.text_refusal(config) is None


def test_a_config_that_names_nothing_is_left_to_the_load() -> None:
    assert architectures.text_refusal({}) is None
    assert architectures.text_refusal({"architectures": [], "model_type": "llama"}) is None
    assert architectures.cache_refusal({"layer_types": [None, 3]}) is None


def test_the_tables_are_those_of_transformers() -> None:
    """So that a newer version with more model types fails here and not at a user's."""
    masked = set(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    pairs = set(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    assert pairs == architectures.ENCODER_DECODERS
    assert masked - pairs - architectures.CACHELESS == architectures.ENCODERS
    causal = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    classes = {
        kind: getattr(transformers, name if isinstance(name, str) else name[0])
        for kind, name in causal.items()
    }
    stateful = {kind for kind, found in classes.items() if getattr(found, "_is_stateful", False)}
    assert stateful == architectures.RECURRENT
