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
        number_outputs: Names of the FP32 outputs, [rows, 1].
        wide_outputs: Outputs that have more than one column, as many as the model says.
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
    number_outputs: tuple[str, ...] = ()
    wide_outputs: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineKind:
    """What computes a task.

    Attributes:
        name: The value of the parameter `engine`.
        task: What it computes.
        factory: Class of the engine or what makes one, `module:name`.
        parameters: What config.pbtxt may set for it, beside the defaults of the task.
        needs_repository: Whether it loads weights of a repository (`repo_id`).
        paced: Whether its streams merge tokens under load; False if times are what is asked for.
        loads_all: Whether it loads quantised weights and models whose state is no KV cache.
        defaults: Settings whose default is another one than with other engines.
    """

    name: str
    task: Task
    factory: str
    parameters: Mapping[str, Parameter]
    needs_repository: bool
    paced: bool
    loads_all: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TEXT = Task(
    name="text",
    inputs=("user_message", "system_message", "messages", "prompt"),
    text_outputs=("text_output", "finish_reason"),
    integer_outputs=("prompt_tokens", "completion_tokens"),
    model="triton_hf.backend.text_model:TextModel",
    companion="triton_hf.backend.stream_model:StreamModel",
    parameters=catalog.SAMPLING,
)

EMBED = Task(
    name="embed",
    inputs=("text", "tokens"),
    text_outputs=(),
    integer_outputs=("prompt_tokens",),
    number_outputs=("embedding",),
    wide_outputs=frozenset({"embedding"}),
    model="triton_hf.backend.pooling_model:PoolingModel",
    companion=None,
    parameters=catalog.EMBEDDING,
)

RANK = Task(
    name="rank",
    inputs=("query", "text"),
    text_outputs=(),
    integer_outputs=("prompt_tokens",),
    number_outputs=("score",),
    model="triton_hf.backend.pooling_model:PoolingModel",
    companion=None,
    parameters=catalog.RANKING,
)

CLASSIFY = Task(
    name="classify",
    inputs=("text", "text_pair"),
    text_outputs=("label",),
    integer_outputs=("prompt_tokens",),
    number_outputs=("score",),
    wide_outputs=frozenset({"label", "score"}),
    model="triton_hf.backend.pooling_model:PoolingModel",
    companion=None,
    parameters=catalog.CLASSIFYING,
)

DEFAULT_TASK = TEXT.name
TASKS = {task.name: task for task in (TEXT, EMBED, RANK, CLASSIFY)}

DEFAULT_ENGINE = "auto"
ENGINES: dict[str, EngineKind] = {
    kind.name: kind
    for kind in (
        EngineKind(
            name=DEFAULT_ENGINE,
            task=TEXT,
            factory="triton_hf.engines.choice:make_engine",
            parameters={**catalog.QUEUE, **catalog.REPOSITORY, **catalog.COMPUTE},
            needs_repository=True,
            paced=True,
        ),
        EngineKind(
            name="transformers",
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
            loads_all=True,
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

# What engines compute beside text.
_OTHER_TASKS: dict[tuple[str, str], EngineKind] = {
    (name, task.name): EngineKind(
        name=name,
        task=task,
        factory="triton_hf.engines.pooling:PoolingEngine",
        parameters={
            **catalog.BATCHING,
            **catalog.REPOSITORY,
            "device": catalog.COMPUTE["device"],
            "dtype": catalog.COMPUTE["dtype"],
        },
        needs_repository=True,
        paced=False,
        defaults={"slots": 64, "max_queue": 512},
    )
    for name in (DEFAULT_ENGINE, "transformers")
    for task in (EMBED, RANK, CLASSIFY)
}

ENGINE = Parameter(
    name="engine",
    kind=Choice(values=tuple(ENGINES)),
    default=DEFAULT_ENGINE,
    meaning="what computes the answers: auto is vllm where the image has it and a GPU is visible, "
    "else transformers; transformers is torch, and the native kernels on CPUs",
)


TASK = Parameter(
    name="task",
    kind=Choice(values=tuple(TASKS)),
    default=f"{DEFAULT_TASK}; model-sync finds it in the repository",
    meaning="what the model does for a request",
)


def engine_kind(name: str, task: str = DEFAULT_TASK) -> EngineKind:
    """Return the engine of a name for a task.

    Raises:
        SettingsError: There is no such engine, or it does not compute the task.
    """
    name, task = ENGINE.read_text(name), TASK.read_text(task)
    if task == ENGINES[name].task.name:
        return ENGINES[name]
    if (name, task) not in _OTHER_TASKS:
        raise SettingsError(
            f"engine {name} does not compute the task {task}; it computes "
            f"{', '.join(tasks_of(name))}"
        )
    return _OTHER_TASKS[name, task]


def tasks_of(engine: str) -> list[str]:
    """Return the names of the tasks that an engine computes, text first.

    Raises:
        SettingsError: There is no such engine.
    """
    first = ENGINES[ENGINE.read_text(engine)].task.name
    return [first, *(task for name, task in _OTHER_TASKS if name == engine)]


def kind_of(parameters: Mapping[str, str]) -> EngineKind:
    """Return the engine that the parameters of a config.pbtxt name.

    Raises:
        SettingsError: There is no such engine, or it does not compute the task.
    """
    return engine_kind(
        parameters.get("engine", DEFAULT_ENGINE), parameters.get("task", DEFAULT_TASK)
    )


def kinds() -> list[EngineKind]:
    """Return every engine for every task that it computes."""
    return [*ENGINES.values(), *_OTHER_TASKS.values()]


def model_parameters(kind: EngineKind) -> dict[str, Parameter]:
    """What a config.pbtxt with this engine may set, in file order."""
    defaults = [item for item in kind.task.parameters.values() if item.model]
    return table(ENGINE, TASK, *kind.parameters.values(), *defaults)


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
