"""What a model is, as a person wrote it: one entry of `models` in the chart's values."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_hf.errors import EXIT_USAGE, SettingsError, StoreError
from triton_hf.models.pbtxt import STREAM_SUFFIX
from triton_hf.models.registry import (
    DEFAULT_ENGINE,
    DEFAULT_TASK,
    engine_kind,
    kind_of,
    model_parameters,
    tasks_of,
)
from triton_hf.models.settings import parse_settings

# Triton takes more, but a name is also part of a URL path, a metric label and a Helm key.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One entry of the specification: what a person wrote under `models.<name>`.

    Attributes:
        task: Name of the task; None if it is to be found in the repository, and text without one.
    """

    name: str
    engine: str = DEFAULT_ENGINE
    task: str | None = None
    repository: str | None = None
    revision: str | None = None
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_spec(path: Path) -> list[ModelSpec]:
    """Read and check the specification file.

    Raises:
        StoreError: It is not readable, or an entry is wrong; the text names the entry.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}", exit_code=EXIT_USAGE) from None
    models = document.get("models") if isinstance(document, dict) else None
    if not isinstance(models, dict) or not models:
        raise StoreError(
            f'{path} must be {{"models": {{NAME: ...}}}} with at least one model',
            exit_code=EXIT_USAGE,
        )
    try:
        return [_model_spec(name, entry) for name, entry in sorted(models.items())]
    except SettingsError as error:
        raise StoreError(str(error), exit_code=EXIT_USAGE) from None


def _model_spec(name: str, entry: Any) -> ModelSpec:
    known = {"engine", "task", "repository", "revision", "parameters"}
    if not isinstance(entry, dict) or set(entry) - known:
        raise SettingsError(f"model '{name}' may have {', '.join(sorted(known))}, nothing else")
    parameters = entry.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise SettingsError(f"model '{name}': 'parameters' must be an object")
    spec = ModelSpec(
        name=name,
        engine=entry.get("engine") or DEFAULT_ENGINE,
        task=entry.get("task"),
        repository=entry.get("repository"),
        revision=entry.get("revision"),
        parameters={key: _parameter_text(value) for key, value in parameters.items()},
    )
    check_spec(spec)
    return spec


def _parameter_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # Helm turns whole numbers into 8.0
    if isinstance(value, dict):
        return json.dumps(_whole_numbers(value), sort_keys=True)
    return str(value)


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_spec(spec: ModelSpec) -> None:
    """Check everything about a model that can be known without downloading it.

    Raises:
        SettingsError: The text names the model and the field.
    """
    if not _NAME.fullmatch(spec.name) or spec.name.endswith(STREAM_SUFFIX):
        raise SettingsError(
            f"model '{spec.name}': a name has up to 63 of a-z, 0-9, '.', '_' and '-', and does "
            f"not end with '{STREAM_SUFFIX}'"
        )
    try:
        kind = engine_kind(spec.engine, spec.task or DEFAULT_TASK)
    except SettingsError as error:
        raise SettingsError(f"model '{spec.name}': {error}") from None
    if not kind.needs_repository:
        if spec.repository is not None:
            raise SettingsError(f"model '{spec.name}': a {kind.name} model has no 'repository'")
    elif not isinstance(spec.repository, str) or not _REPOSITORY.fullmatch(spec.repository):
        raise SettingsError(f"model '{spec.name}': 'repository' must be ORG/NAME on the Hub")
    if reserved := {"engine", "task", "repo_id", "revision"} & set(spec.parameters):
        raise SettingsError(
            f"model '{spec.name}': '{sorted(reserved)[0]}' is a field of the model itself, "
            "not of its 'parameters'"
        )
    try:
        _check_parameters(spec)
    except SettingsError as error:
        raise SettingsError(f"model '{spec.name}': {error}") from None


def _check_parameters(spec: ModelSpec) -> None:
    """Check the parameters; while the task is not known, those of any task are right.

    Raises:
        SettingsError: The text names the parameter.
    """
    parameters = all_parameters(spec)
    try:
        parse_settings(parameters)
    except SettingsError:
        if spec.task is not None:
            raise
        for task in tasks_of(spec.engine)[1:]:
            with contextlib.suppress(SettingsError):
                parse_settings({**parameters, "task": task})
                return
        raise


def all_parameters(spec: ModelSpec) -> dict[str, str]:
    """Parameters of config.pbtxt for a model, in file order."""
    values = {"engine": spec.engine, **spec.parameters}
    if spec.task not in (None, DEFAULT_TASK):
        values["task"] = str(spec.task)
    if spec.repository is not None:
        values["repo_id"] = spec.repository
    if spec.revision is not None:
        values["revision"] = spec.revision
    first = ("engine", "task", "repo_id", "revision", *model_parameters(kind_of(values)))
    ordered = {name: values[name] for name in first if name in values}
    return {**ordered, **values}
