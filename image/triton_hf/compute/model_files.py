"""What the files of a model say beside its weights.

Where they are plain they are read here, because the classes of transformers that read any file
import half of torch's compiler, which takes longer than all else that a server does at its start.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from triton_hf.models.files import json_reader, unservable

# No code of a repository, nothing from the network.
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}

# The tokenizer is all in tokenizer.json; other classes may add to it.
_PLAIN_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
_PLAIN_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_NEEDED = frozenset(
    {
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
        *("hidden_act", "tie_word_embeddings"),
    }
)


class ModelFiles:
    """Configuration, tokenizer and generation defaults of a model in a folder.

    Attributes:
        config: The configuration, with the names of transformers; a plain object where its file is
            plain.
        tokenizer: A tokenizer of transformers.
        generation_config: The defaults of `generate`.
    """

    def __init__(self, folder: Path, *, loads_all: bool = False) -> None:
        """Read the files.

        Args:
            folder: Holds them.
            loads_all: Whether the engine has that property (`models.registry.EngineKind`).

        Raises:
            OSError: A file is missing.
            ValueError: A file is not what it should be.
        """
        from transformers import GenerationConfig

        if why := unservable(json_reader(folder), loads_all=loads_all):
            raise ValueError(f"it {why}")
        self.config: Any = None
        if (folder / "generation_config.json").is_file():
            self.config = plain_config(folder)
            self.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        if self.config is None:
            from transformers import AutoConfig

            self.config = AutoConfig.from_pretrained(folder, **LOCAL)
        if not (folder / "generation_config.json").is_file():
            self.generation_config = GenerationConfig.from_model_config(self.config)
        self.tokenizer = load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a folder.

    Raises:
        OSError: A file is missing.
        ValueError: A file is not what it should be.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ValueError("the repository has no fast tokenizer (tokenizer.json)")
    kind = _read(folder / "tokenizer_config.json").get("tokenizer_class")
    if kind in _PLAIN_TOKENIZERS:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, **LOCAL)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **LOCAL)


def plain_config(folder: Path) -> Any | None:
    """Return the configuration where nothing in it has to be derived, else None.

    It has the names that transformers gives the same values.

    Raises:
        ValueError: The file is no JSON.
    """
    raw = _read(folder / "config.json")
    if raw.get("model_type") not in _PLAIN_TYPES or not raw.keys() >= _NEEDED:
        return None
    rotation = raw.get("rope_parameters") or _old_rotation(raw)
    if rotation is None or rotation.get("rope_type") != "default":
        return None
    if not _is_window_plain(raw):
        return None
    missing = {"architectures": None, "head_dim": None, "quantization_config": None}
    window = raw.get("sliding_window") if raw["model_type"] == "mistral" else None
    return SimpleNamespace(
        **missing | raw | {"rope_parameters": rotation, "sliding_window": window}
    )


def _is_window_plain(raw: dict[str, Any]) -> bool:
    """Whether the file itself says which layers have a window: all of Mistral, none of others."""
    if raw["model_type"] == "mistral":
        return "sliding_window" in raw and "layer_types" not in raw
    full = set(raw.get("layer_types", ())) <= {"full_attention"}
    return full and not raw.get("use_sliding_window")


def _old_rotation(raw: dict[str, Any]) -> dict[str, Any] | None:
    """Angles as files of before transformers 5 give them."""
    if "rope_theta" not in raw or raw.get("rope_scaling"):
        return None
    return {"rope_type": "default", "rope_theta": raw["rope_theta"]}


def _read(path: Path) -> dict[str, Any]:
    found = json_reader(path.parent)(path.name)
    return found if isinstance(found, dict) else {}
