"""What a model's files say is what transformers reads out of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models

from triton_hf.compute.model_files import ModelFiles, plain_config
from triton_hf.engines.text import end_tokens

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
PLAIN = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=None),
    "mistral, window": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=16),
}
OTHERS = {
    "another family": lambda: transformers.GemmaConfig(**SIZES),
    "angles that are scaled": lambda: transformers.LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    ),
    "windows of some layers": lambda: transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
}
NAMES = (*SIZES, "model_type", "hidden_act", "rms_norm_eps", "tie_word_embeddings")


def write(folder: Path, config: Any) -> None:
    config.save_pretrained(folder)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_configuration_says_what_transformers_reads(kind, tmp_path) -> None:
    write(tmp_path, PLAIN[kind]())
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    found = plain_config(tmp_path)
    assert found is not None
    for name in NAMES:
        assert getattr(found, name) == getattr(expected, name), name
    assert found.rope_parameters == expected.rope_parameters
    assert found.head_dim == getattr(expected, "head_dim", None)
    assert found.sliding_window == getattr(expected, "sliding_window", None)


def test_angles_of_older_files_are_the_same(tmp_path) -> None:
    write(tmp_path, PLAIN["llama"]())
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    raw["rope_theta"], raw["rope_scaling"] = raw.pop("rope_parameters")["rope_theta"], None
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    expected = transformers.AutoConfig.from_pretrained(tmp_path)
    found = plain_config(tmp_path)
    assert found is not None
    assert found.rope_parameters == expected.rope_parameters
    raw["rope_scaling"] = {"type": "linear", "factor": 2.0}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert plain_config(tmp_path) is None


@pytest.mark.parametrize("kind", OTHERS)
def test_what_has_to_be_derived_is_left_to_transformers(kind, tmp_path) -> None:
    write(tmp_path, OTHERS[kind]())
    assert plain_config(tmp_path) is None
    assert isinstance(ModelFiles(tmp_path).config, transformers.PreTrainedConfig)


@pytest.mark.parametrize("name", ["hidden_act", "num_key_value_heads", "rms_norm_eps"])
def test_a_value_that_is_missing_is_left_to_transformers(name, tmp_path) -> None:
    write(tmp_path, PLAIN["llama"]())
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del raw[name]
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert plain_config(tmp_path) is None


def test_plain_files_are_read_without_the_compiler_of_torch(tmp_path) -> None:
    write(tmp_path, PLAIN["llama"]())
    script = "import sys; from pathlib import Path\n"
    script += "from triton_hf.compute.model_files import ModelFiles\n"
    script += "ModelFiles(Path(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.parametrize(
    ("generation", "config", "ends"),
    [
        ({"eos_token_id": [1, 5]}, {}, {1, 5, 2}),
        ({"eos_token_id": 5}, {"eos_token_id": 7}, {5, 2}),
        (None, {"eos_token_id": [5, 6]}, {5, 6, 2}),
        (None, {"eos_token_id": 5}, {5, 2}),
        (None, {"eos_token_id": None}, {2}),
    ],
)
def test_the_end_tokens_of_every_file_that_transformers_reads_count(
    generation, config, ends, tmp_path
) -> None:
    """generation_config.json stands above config.json, as for `generate`; the tokenizer adds."""
    write(tmp_path, PLAIN["llama"]())
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "</s>": 2}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    if generation is None:
        path.unlink()
    else:
        path.write_text(json.dumps(generation), encoding="utf-8")
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**raw, **config}), encoding="utf-8")
    files = ModelFiles(tmp_path)
    assert end_tokens(files.generation_config, files.tokenizer) == ends
