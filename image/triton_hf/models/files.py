"""Which files of a repository are loaded, and why some repositories cannot be served.

Decided from the names of all files and the content of the small ones, before any weight is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from triton_hf.models.architectures import cache_refusal
from triton_hf.models.registry import DEFAULT_TASK
from triton_hf.models.sentence import Read, module_kinds
from triton_hf.models.tasks import task_refusal

_SMALL = (".json", ".txt", ".model", ".jinja")
_TEMPLATES = "additional_chat_templates/"
_WEIGHTS = ".safetensors"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# A module of sentence-transformers, such as 1_Pooling.
_MODULE = re.compile(r"\d+_\w+/[^/]+")


def json_reader(folder: Path) -> Read:
    """Return a function that reads the JSON files of a folder, None for one that is not there.

    It raises ValueError for a file that is no JSON.
    """

    def read(name: str) -> Any:
        try:
            return json.loads((folder / name).read_text("utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:  # also what is not UTF-8
            raise ValueError(f"{name} is no JSON: {error}") from None

    return read


def small_files(names: Iterable[str]) -> list[str]:
    """Return the files that describe a model: at the root, its chat templates, its modules."""
    return [
        name
        for name in names
        if name.endswith(_SMALL)
        and ("/" not in name or name.startswith(_TEMPLATES) or _MODULE.fullmatch(name))
    ]


def module_weights(modules: Any) -> list[str]:
    """Return the files of weights of the linear layers that modules.json names; None has none.

    Raises:
        SettingsError: It is not what sentence-transformers writes.
    """
    steps = [] if modules is None else module_kinds(modules)
    return [f"{path}/{SINGLE}" for kind, path in steps if kind == "Dense"]


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
    names: Iterable[str], *, read: Read, task: str = DEFAULT_TASK, loads_all: bool = False
) -> str | None:
    """Say why a repository cannot be served, as the end of a sentence; None if it can.

    Args:
        names: All files of the repository.
        read: Returns the content of a JSON file by its path, None if there is none.
        task: Name of the task.
        loads_all: Whether the engine has that property (`models.registry.EngineKind`).
    """
    names = set(names)
    adapter = read("adapter_config.json")
    if read("config.json") is None and isinstance(adapter, Mapping):
        base = adapter.get("base_model_name_or_path") or "another model"
        return f"is an adapter for {base}, not a model; merge it into that model first"
    if why := unservable(read, task, loads_all=loads_all):
        return why
    if not any(name.endswith(_WEIGHTS) for name in names):
        return "holds no .safetensors file, and nothing else is loaded"
    return None


def unservable(read: Read, task: str = DEFAULT_TASK, *, loads_all: bool = False) -> str | None:
    """Say why a model cannot be served, judged by its JSON files alone; None if it may.

    Arguments: see `refusal`.
    """
    if why := task_refusal(read, task):
        return why
    if loads_all:
        return None
    found = read("config.json")
    config = found if isinstance(found, dict) else {}
    return (cache_refusal(config) if task == DEFAULT_TASK else None) or quantisation(config)


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
