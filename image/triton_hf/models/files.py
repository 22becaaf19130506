"""Which files of a repository are loaded, and why some repositories cannot be served.

Decided from the names of all files and the content of the small ones, before any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from triton_hf.models.architectures import cache_refusal, text_refusal

_SMALL = (".json", ".txt", ".model", ".jinja")
_TEMPLATES = "additional_chat_templates/"
_WEIGHTS = ".safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def small_files(names: Iterable[str]) -> list[str]:
    """Return the files that describe a model: those at the root, and its named chat templates."""
    return [
        name
        for name in names
        if name.endswith(_SMALL) and ("/" not in name or name.startswith(_TEMPLATES))
    ]


def weight_files(names: Iterable[str], index: Mapping[str, Any] | None) -> list[str]:
    """Return the files of weights that a load reads.

    Repositories often hold the weights more than once (`consolidated.safetensors`, `original/`).

    Args:
        names: All files of the repository.
        index: The content of `model.safetensors.index.json`, None if there is none.
    """
    if index is not None:
        return sorted({str(name) for name in dict(index.get("weight_map") or {}).values()})
    names = set(names)
    if SINGLE in names:
        return [SINGLE]
    return sorted(name for name in names if name.endswith(_WEIGHTS) and "/" not in name)


def refusal(
    names: Iterable[str], *, config: Mapping[str, Any] | None, adapter: Mapping[str, Any] | None
) -> str | None:
    """Say why a repository cannot be served, as the end of a sentence; None if it can.

    Args:
        names: All files of the repository.
        config: The content of config.json, None if there is none.
        adapter: The content of adapter_config.json, None if there is none.
    """
    names = set(names)
    if config is None and adapter is not None:
        base = adapter.get("base_model_name_or_path") or "another model"
        return f"is an adapter for {base}, not a model; merge it into that model first"
    if (why := unservable(config or {})) is not None:
        return why
    if not any(name.endswith(_WEIGHTS) for name in names):
        return "holds no .safetensors file, and nothing else is loaded"
    return None


def unservable(config: Mapping[str, Any]) -> str | None:
    """Say why a model cannot be served, judged by its config.json alone; None if it may."""
    return text_refusal(config) or cache_refusal(config) or quantisation(config)


def quantisation(config: Mapping[str, Any]) -> str | None:
    """Say that the weights of a model are quantised, as the end of a sentence; None if not."""
    found = config.get("quantization_config")
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    return (
        f"is quantised ({method or 'quantization_config in config.json'}), which this image does "
        "not serve; take the repository with the plain weights, and 'weights: int8' on a CPU"
    )
