"""Which task a repository is for, and why it cannot serve another one; from its small files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_hf.errors import SettingsError
from triton_hf.models.architectures import architecture, text_refusal
from triton_hf.models.registry import CLASSIFY, EMBED, RANK, TEXT
from triton_hf.models.sentence import (
    ABOUT,
    MODULES,
    Read,
    labels,
    read_sentence_model,
    score_activation,
)

_CLASSIFIER = "ForSequenceClassification"


def find_task(read: Read) -> str:
    """Return the name of the task that a repository is for.

    A repository of sentence-transformers is for `embed`, unless it is a cross encoder. A head for
    sequence classification is for `rank` with one label, else for `classify`. All else is `text`.

    Args:
        read: Returns the content of a JSON file by its path, None if there is none.
    """
    config, about = _object(read, "config.json"), _object(read, ABOUT)
    cross = about.get("model_type") == "CrossEncoder"
    if read(MODULES) is not None and not cross:
        return EMBED.name
    if cross or architecture(config).endswith(_CLASSIFIER):
        return RANK.name if len(labels(config)) == 1 else CLASSIFY.name
    return TEXT.name


def task_refusal(read: Read, task: str) -> str | None:
    """Say why a repository cannot serve a task, as the end of a sentence; None if it may."""
    config = _object(read, "config.json")
    if task == TEXT.name:
        return _text_refusal(config, find_task(read))
    try:
        if task == EMBED.name:
            read_sentence_model(read)
        else:
            score_activation(config, _object(read, ABOUT))
    except SettingsError as error:
        return f"cannot be served: {error}"
    if task == EMBED.name:
        return None
    name, found = architecture(config), labels(config)
    if name and not name.endswith(_CLASSIFIER):
        return f"has no head for sequence classification ({name}), which the task {task} needs"
    if task == RANK.name and len(found) != 1:
        return f"has {len(found)} labels, and the task rank needs one; state 'task: classify'"
    return None


def _text_refusal(config: Mapping[str, Any], found: str) -> str | None:
    if why := text_refusal(config):
        if found != TEXT.name:
            return f"{why}; state 'task: {found}'"
        return f"{why}; 'task: embed' serves embeddings" if "is an encoder (" in why else why
    return None


def _object(read: Read, name: str) -> Mapping[str, Any]:
    found = read(name)
    return found if isinstance(found, Mapping) else {}
