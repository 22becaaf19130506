"""One forward pass over a batch of texts: embeddings, or the scores of a classification head.

The meaning of pooling, prompts and activations is that of sentence-transformers and transformers.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from triton_hf.compute.loading import set_threads, unusable
from triton_hf.compute.model_files import LOCAL
from triton_hf.errors import SettingsError
from triton_hf.models.architectures import ENCODER_DECODERS
from triton_hf.models.files import SINGLE
from triton_hf.models.sentence import SentenceModel
from triton_hf.models.settings import ModelSettings

# Tensors that a checkpoint may lack, because no output depends on them.
_UNUSED = ("pooler.", "lm_head.")
_LEAST = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """A text as tokens.

    Attributes:
        types: Segment of each token; None if the tokenizer gives none.
        prompt: Tokens at the start that are the prompt's.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] | None = None
    prompt: int = 0


class Network(Protocol):
    """A model with the head of its task."""

    device: Any
    # Longest text in tokens; None if any length is computed.
    longest: int | None
    vocabulary: int
    # Whether rows may be padded to one length.
    batches: bool

    def compute(self, rows: Sequence[Encoded]) -> Any:
        """Return one row of float32 values for each text, [rows, width], on the CPU."""


class _Backbone:
    """A model of transformers and the tensors that it takes."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.longest = _longest(model)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        self.batches = True
        known = inspect.signature(model.forward).parameters
        self._takes_types = "token_type_ids" in known
        self._extra = {"use_cache": False} if "use_cache" in known else {}
        self._pad = int(getattr(model.config, "pad_token_id", None) or 0)

    def run(self, rows: Sequence[Encoded]) -> tuple[Any, torch.Tensor]:
        """Return the output of the model and the mask of the rows, [rows, longest]."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.full((len(rows), longest), self._pad, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        types = torch.zeros((len(rows), longest), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
            mask[index, : len(row.ids)] = 1
            if row.types is not None:
                types[index, : len(row.ids)] = torch.tensor(row.types)
        has_types = self._takes_types and any(row.types is not None for row in rows)
        given = {"token_type_ids": types.to(self.device)} if has_types else {}
        mask = mask.to(self.device)
        output = self.model(
            input_ids=ids.to(self.device), attention_mask=mask, **given, **self._extra
        )
        return output, mask


class EmbeddingNetwork(_Backbone):
    """Text embeddings, as the files of sentence-transformers say."""

    def __init__(self, folder: Path, settings: ModelSettings, sentence: SentenceModel) -> None:
        """Load the model of a folder.

        Raises:
            SettingsError: The folder holds no usable model, or the device is missing.
        """
        from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

        config = AutoConfig.from_pretrained(folder, **LOCAL)
        of_pair = config.model_type in ENCODER_DECODERS
        kind = AutoModelForTextEncoding if of_pair else AutoModel
        super().__init__(_load(kind, folder, settings))
        self._sentence = sentence
        try:
            self._dense = [_Dense(folder, one, self.device) for one in sentence.dense]
        except (OSError, KeyError, SafetensorError) as error:
            raise unusable(settings, error) from None

    def compute(self, rows: Sequence[Encoded]) -> Any:
        """Return one row of float32 values for each text; see `Network`."""
        output, mask = self.run(rows)
        if not self._sentence.pools_prompt:
            for index, row in enumerate(rows):
                mask[index, : row.prompt] = 0
        hidden = output.last_hidden_state.float()
        found = torch.cat([pool(hidden, mask, mode) for mode in self._sentence.pooling], dim=-1)
        for dense in self._dense:
            found = dense(found)
        if self._sentence.normalizes:
            found = torch.nn.functional.normalize(found, dim=-1)
        return found.cpu().numpy()


class ScoringNetwork(_Backbone):
    """The outputs of a head for sequence classification, before any activation."""

    def __init__(self, folder: Path, settings: ModelSettings) -> None:
        """Load the model of a folder.

        Raises:
            SettingsError: The folder holds no usable model, or the device is missing.
        """
        from transformers import AutoModelForSequenceClassification

        super().__init__(_load(AutoModelForSequenceClassification, folder, settings))
        # A decoder finds the end of a text by the padding token.
        self.batches = getattr(self.model.config, "pad_token_id", None) is not None

    def compute(self, rows: Sequence[Encoded]) -> Any:
        """Return one row of float32 values for each text; see `Network`."""
        output, _ = self.run(rows)
        return output.logits.float().cpu().numpy()


def pool(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """Pool embeddings [rows, tokens, width] of the tokens whose `mask` is 1 into [rows, width]."""
    counts = mask.unsqueeze(-1).to(hidden.dtype)
    rows = torch.arange(len(hidden), device=hidden.device)
    if mode == "cls":
        return hidden[rows, mask.argmax(dim=1)]
    if mode == "lasttoken":
        return hidden[rows, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)]
    if mode == "max":
        return hidden.masked_fill(counts == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        positions = torch.arange(1, mask.shape[1] + 1, device=hidden.device).view(1, -1, 1)
        counts = counts * positions
    total = counts.sum(dim=1).clamp(min=_LEAST)
    if mode == "mean_sqrt_len_tokens":
        total = total.sqrt()
    return (hidden * counts).sum(dim=1) / total


def activate(values: Any, activation: str) -> Any:
    """Apply an activation of `models.sentence.ACTIVATIONS` to the outputs of one text."""
    found = torch.as_tensor(values)
    if activation == "Softmax":
        return found.softmax(dim=-1).numpy()
    return getattr(torch.nn, activation)()(found).numpy()


class _Dense:
    def __init__(self, folder: Path, dense: Any, device: Any) -> None:
        tensors = load_file(str(folder / dense.path / SINGLE), device=str(device))
        self._weight = tensors["linear.weight"].float()
        bias = tensors.get("linear.bias")
        self._bias = None if bias is None else bias.float()
        self._activation = getattr(torch.nn, dense.activation)()
        self._residual = dense.residual
        projection = tensors.get("residual.weight")
        self._projection = None if projection is None else projection.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self._activation(
            torch.nn.functional.linear(x, self._weight, self._bias)
        )
        if not self._residual:
            return made
        beside = x if self._projection is None else torch.nn.functional.linear(x, self._projection)
        return made + beside


def _load(kind: Any, folder: Path, settings: ModelSettings) -> Any:
    """Load a model of transformers; a tensor that the files do not hold is an error."""
    set_threads()
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("parameter 'device' is cuda, but torch sees no NVIDIA GPU here")
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        model, report = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **LOCAL
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unusable(settings, error) from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(_UNUSED))
    if missing:
        raise SettingsError(
            f"{settings.repo_id} cannot be loaded: its files lack the tensor {missing[0]} and "
            f"{len(missing) - 1} more, which would have been made up"
        )
    model.train(False)
    return model.to(torch.device(device))


def _longest(model: Any) -> int | None:
    """Return how many tokens the model's positions are enough for."""
    stated = getattr(model.config, "max_position_embeddings", None)
    longest = stated if isinstance(stated, int) and stated > 0 else None
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    table = getattr(getattr(base, "embeddings", None), "position_embeddings", None)
    # RoBERTa and its kin count positions from behind the padding token.
    offset = getattr(table, "padding_idx", None)
    return longest if longest is None or offset is None else longest - offset - 1


def is_finite(values: Any) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(np.isfinite(values).all())
