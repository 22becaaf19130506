"""What a model takes, from its config.pbtxt or from the server's model metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_load.errors import LoadTestError

# Names of datatypes: protobuf's in a config.pbtxt, the protocol's in requests.
DATATYPES: Mapping[str, str] = {
    "TYPE_STRING": "BYTES",
    "TYPE_BOOL": "BOOL",
    "TYPE_UINT8": "UINT8",
    "TYPE_UINT16": "UINT16",
    "TYPE_UINT32": "UINT32",
    "TYPE_UINT64": "UINT64",
    "TYPE_INT8": "INT8",
    "TYPE_INT16": "INT16",
    "TYPE_INT32": "INT32",
    "TYPE_INT64": "INT64",
    "TYPE_FP16": "FP16",
    "TYPE_FP32": "FP32",
    "TYPE_FP64": "FP64",
    "TYPE_BF16": "BF16",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input: its name, datatype as in requests, dims without the batch (-1: any), optional."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What is known of a model.

    Attributes:
        name: Its name on the server.
        batch: Largest batch; 0 when its tensors have no batch dimension.
        inputs: By name.
        outputs: Names of its outputs.
        source: Where this comes from, for messages.
    """

    name: str
    batch: int
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    source: str

    @property
    def is_text_model(self) -> bool:
        """Whether it keeps this project's contract of a text model."""
        return {"user_message", "messages"} <= set(self.inputs)


def read_config(file: Path) -> Model:
    """Read a model's config.pbtxt; a model without `name` has that of its folder.

    It may name no inputs: backends such as vLLM's fill them in, and only the server knows them.

    Raises:
        LoadTestError: There is none, or it is not a model's configuration.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"cannot read the schema {file}: {error}") from error
    config = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise LoadTestError(f"{file} is not a Triton config.pbtxt: {error}") from error
    names = model_config_pb2.DataType
    inputs = {
        item.name: Tensor(
            name=item.name,
            datatype=DATATYPES.get(names.Name(item.data_type), "unknown"),
            dims=tuple(item.dims),
            optional=item.optional,
        )
        for item in config.input
    }
    unknown = [item.name for item in inputs.values() if item.datatype == "unknown"]
    if unknown:
        raise LoadTestError(f"{file}: input '{unknown[0]}' has no data_type")
    return Model(
        name=config.name or file.resolve().parent.name,
        batch=config.max_batch_size,
        inputs=inputs,
        outputs=tuple(item.name for item in config.output),
        source=str(file),
    )


def from_metadata(
    name: str, metadata: Mapping[str, Any], config: Mapping[str, Any] | None = None
) -> Model:
    """Read the server's answers to `GET /v2/models/NAME` and, where it gives one, to `/config`.

    Metadata alone do not say which inputs are optional or how large a batch may be: then all inputs
    of a text model are optional, of others none is; a first dimension of -1 is taken as the batch.

    Raises:
        LoadTestError: It is not such an answer.
    """
    try:
        given = {item["name"]: item for item in metadata["inputs"]}
        batch = _batch(given, config)
        optional = _optional(given, config)
        inputs = {
            key: Tensor(
                name=key,
                datatype=item["datatype"],
                dims=tuple(item["shape"][1:] if batch else item["shape"]),
                optional=key in optional,
            )
            for key, item in given.items()
        }
        outputs = tuple(item["name"] for item in metadata["outputs"])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise LoadTestError(f"the server's metadata of {name} cannot be read: {error!r}") from error
    return Model(
        name=name,
        batch=batch,
        inputs=inputs,
        outputs=outputs,
        source=f"the server's metadata of {name}",
    )


def of_openai(name: str) -> Model:
    """A model that is asked by OpenAI's API, in the words of this project's text models."""
    texts = ("user_message", "system_message", "messages", "prompt")
    return Model(
        name=name,
        batch=1,
        inputs={
            text: Tensor(name=text, datatype="BYTES", dims=(1,), optional=True) for text in texts
        },
        outputs=("prompt_tokens", "completion_tokens"),
        source="OpenAI's API",
    )


def _batch(given: Mapping[str, Any], config: Mapping[str, Any] | None) -> int:
    if config and "max_batch_size" in config:
        return int(config["max_batch_size"])
    batched = bool(given) and all(item["shape"][:1] == [-1] for item in given.values())
    return 2**31 - 1 if batched else 0


def _optional(given: Mapping[str, Any], config: Mapping[str, Any] | None) -> set[str]:
    if config and config.get("input"):
        return {item["name"] for item in config["input"] if item.get("optional")}
    return set(given) if {"user_message", "messages"} <= set(given) else set()
