"""The registry of tasks and engines: the only place that knows their names.

A task owns its tensors, its Triton models and its parameters; an engine computes one task. Classes
are named as `module:Class` and imported when they are used, so a description of a model needs
neither torch nor Triton.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from triton_hf.errors import SettingsError
from triton_hf.models import catalog
from triton_hf.models.parameters import Choice, Parameter, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a model does for a request.

    Attributes:
        name: As in documents and dashboards.
        inputs: Names of the input tensors, BYTES [rows, 1], all optional for Triton.
        text_outputs: Names of the BYTES outputs, [rows, 1].
        integer_outputs: Names of the INT32 outputs, [rows, 1].
        model: Class of the Triton model, `module:Class`.
        companion: Class of the decoupled companion that streams, or None.
        parameters: What a request may set; those with `model` are also defaults of a model.
    """

    name: str
    inputs: tuple[str, ...]
    text_outputs: tuple[str, ...]
    integer_outputs: tuple[str, ...]
    model: str
    companion: str | None
    parameters: Mapping[str, Parameter]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What computes a task.

    Attributes:
        name: The value of the parameter `engine`.
        task: What it computes.
        factory: Class of the engine, `module:Class`.
        parameters: What config.pbtxt may set for it, beside the defaults of the task.
        needs_repository: Whether it loads weights of a repository (`repo_id`).
        paced: Whether its streams merge tokens under load; False if times are what is asked for.
    """

    name: str
    task: Task
    factory: str
    parameters: Mapping[str, Parameter]
    needs_repository: bool
    paced: bool


TEXT = Task(
    name="text",
    inputs=("user_message", "system_message", "messages", "prompt"),
    text_outputs=("text_output", "finish_reason"),
    integer_outputs=("prompt_tokens", "completion_tokens"),
    model="triton_hf.backend.text_model:TextModel",
    companion="triton_hf.backend.stream_model:StreamModel",
    parameters=catalog.SAMPLING,
)

DEFAULT_ENGINE = "transformers"
ENGINES: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (
        EngineKind(
            name=DEFAULT_ENGINE,
            task=TEXT,
            factory="triton_hf.engines.transformers_engine:TransformersEngine",
            parameters={**catalog.QUEUE, **catalog.REPOSITORY, **catalog.COMPUTE},
            needs_repository=True,
            paced=True,
        ),
        EngineKind(
            name="vllm",
            task=TEXT,
            factory="triton_hf.engines.vllm_engine:VllmEngine",
            parameters={**catalog.QUEUE, **catalog.REPOSITORY, **catalog.VLLM},
            needs_repository=True,
            paced=True,
        ),
        EngineKind(
            name="simulated",
            task=TEXT,
            factory="triton_hf.engines.simulated_engine:SimulatedEngine",
            parameters={
                **catalog.QUEUE,
                "device": catalog.COMPUTE["device"],
                **catalog.SIMULATED,
            },
            needs_repository=False,
            paced=False,
        ),
    )
}

ENGINE = Parameter(
    name="engine",
    kind=Choice(values=tuple(ENGINES)),
    default=DEFAULT_ENGINE,
    meaning="what computes the answers",
)


def engine_kind(name: str) -> EngineKind:
    """Return the engine of a name.

    Raises:
        SettingsError: There is no such engine.
    """
    return ENGINES[ENGINE.read_text(name)]


def model_parameters(kind: EngineKind) -> dict[str, Parameter]:
    """What a config.pbtxt with this engine may set, in file order."""
    defaults = [item for item in kind.task.parameters.values() if item.model]
    return table(ENGINE, *kind.parameters.values(), *defaults)


def load_class(path: str) -> Any:
    """Import a class that the registry names as `module:Class`.

    Raises:
        SettingsError: A package that it needs is not in this image.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "triton_hf":
            raise
        raise missing_package(error) from None


def missing_package(error: ModuleNotFoundError) -> SettingsError:
    """Turn a failed import into one sentence."""
    return SettingsError(
        f"this image lacks the package '{error.name}', which the engine of this model needs; use "
        "the full image (the Dockerfile's default target)"
    )
