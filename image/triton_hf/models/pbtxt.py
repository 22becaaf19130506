"""Reads and writes config.pbtxt with the message types that Triton itself uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_hf.errors import SettingsError
from triton_hf.models.registry import Task, kind_of

STREAM_SUFFIX = "_stream"
MAX_ROWS = 64


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt into a `ModelConfig` message.

    Raises:
        SettingsError: The file cannot be read or is not a model configuration.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise SettingsError(f"{path} is not a model configuration: {error}") from None


def string_parameters(config: Any) -> dict[str, str]:
    """Return the parameters of a `ModelConfig` message."""
    return {key: value.string_value for key, value in config.parameters.items()}


def model_config(parameters: Mapping[str, str]) -> str:
    """Return the config.pbtxt of a model with these parameters, in the order given.

    Raises:
        SettingsError: The parameters `engine` and `task` name no engine.
    """
    return _render(parameters, kind_of(parameters).task, rows=MAX_ROWS, decoupled=False)


def stream_config(model: str, task: Task) -> str:
    """Return the config.pbtxt of the streaming companion of a model."""
    return _render({"model": model}, task, rows=1, decoupled=True)


def _render(parameters: Mapping[str, str], task: Task, *, rows: int, decoupled: bool) -> str:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = model_config_pb2.ModelConfig(backend="python", max_batch_size=rows)
    for name in task.inputs:
        config.input.add(name=name, data_type=model_config_pb2.TYPE_STRING, dims=[1], optional=True)
    for names, kind in (
        (task.text_outputs, model_config_pb2.TYPE_STRING),
        (task.number_outputs, model_config_pb2.TYPE_FP32),
        (task.integer_outputs, model_config_pb2.TYPE_INT32),
    ):
        for name in names:
            width = -1 if name in task.wide_outputs else 1
            config.output.add(name=name, data_type=kind, dims=[width])
    if decoupled:
        config.model_transaction_policy.decoupled = True
    # The engine picks its device itself, and one process holds one copy of the weights.
    config.instance_group.add(kind=model_config_pb2.ModelInstanceGroup.KIND_MODEL, count=1)
    head = text_format.MessageToString(config)
    entries = []
    for name, value in parameters.items():
        # One by one: a protobuf map has no order, and the file should keep the one given.
        entry = model_config_pb2.ModelConfig()
        entry.parameters[name].string_value = value
        entries.append(text_format.MessageToString(entry))
    return head + "".join(entries)
