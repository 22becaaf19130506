"""Where the weights come from: the files of a model, or a model in memory.

From files the model is never built, so neither its code nor what that imports is loaded, and there
is one copy of the weights at any time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint(Protocol):
    """A configuration of transformers, and weights by the names that transformers gives them."""

    config: Any
    names: frozenset[str]

    def look(self, name: str) -> tuple[str, str]:
        """Return dtype and device of a weight, without reading it."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, without reading it."""

    def take(self, name: str) -> torch.Tensor:
        """Return a weight, once."""


class FolderCheckpoint:
    """The safetensors files of a folder."""

    def __init__(self, folder: Path, config: Any) -> None:
        """Open the files; use it as a context, which closes them.

        Raises:
            OSError: A file is missing.
            ValueError: The index is no JSON.
            SafetensorError: A file is not what its head says.
        """
        from safetensors import safe_open

        self.config = config
        self._files = contextlib.ExitStack()
        self._of: dict[str, Any] = {}
        with contextlib.ExitStack() as opened:
            for path in _files(folder):
                file = opened.enter_context(safe_open(path, framework="pt"))
                self._of.update(dict.fromkeys(file.keys(), file))
            self._files = opened.pop_all()
        self.names = frozenset(self._of)

    def __enter__(self) -> FolderCheckpoint:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._files.close()

    def look(self, name: str) -> tuple[str, str]:
        """Return dtype and device of a weight, without reading it."""
        kind = self._of[name].get_slice(name).get_dtype()
        return {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}.get(kind, kind), "cpu"

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight, without reading it."""
        return tuple(self._of[name].get_slice(name).get_shape())

    def take(self, name: str) -> torch.Tensor:
        """Return a weight."""
        tensor: torch.Tensor = self._of[name].get_tensor(name)
        return tensor


def _files(folder: Path) -> Iterator[Path]:
    if not (folder / _INDEX).is_file():
        yield folder / _ONE_FILE
        return
    index = json.loads((folder / _INDEX).read_text("utf-8"))
    yield from sorted({folder / name for name in index["weight_map"].values()})


class ModelCheckpoint:
    """A model of transformers in memory, which loses each weight that is taken."""

    def __init__(self, model: Any) -> None:
        """Take the weights of this model."""
        self.config = model.config
        self._weights: dict[str, Any] = dict(model.named_parameters())
        self.names = frozenset(self._weights)

    def look(self, name: str) -> tuple[str, str]:
        """Return dtype and device of a weight."""
        weight = self._weights[name]
        return str(weight.dtype).removeprefix("torch."), weight.device.type

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a weight."""
        return tuple(self._weights[name].shape)

    def take(self, name: str) -> torch.Tensor:
        """Return a weight; the model has only its vectors afterwards."""
        weight = self._weights[name]
        plain: torch.Tensor = weight.detach()
        if weight.dim() > 1:
            weight.data = weight.new_empty(0)
        return plain
