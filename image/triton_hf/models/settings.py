"""What a model's config.pbtxt says, as typed values; Triton hands its parameters over as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from triton_hf.errors import SettingsError
from triton_hf.models import catalog
from triton_hf.models.registry import (
    DEFAULT_ENGINE,
    DEFAULT_TASK,
    TEXT,
    EngineKind,
    engine_kind,
    kind_of,
    model_parameters,
)

# Values of `weights` that an earlier version had, on GPUs.
_REMOVED_WEIGHTS = ("int4", "fp8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """The values a request gets for what it does not say itself."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingDefaults:
    """The same for the tasks `embed`, `rank` and `classify`."""

    dimensions: int | None = None
    matryoshka: bool | None = None
    prompt_name: str | None = None
    truncate: bool = False
    raw_scores: bool = False
    top_labels: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedSettings:
    """How the simulated engine behaves; times in seconds."""

    time_to_first_token: float = 0.05
    inter_token: float = 0.01
    load: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that config.pbtxt says about one model; `models.catalog` has the meanings.

    Attributes:
        stated: Names of the defaults that config.pbtxt itself gives; the repository gives others.
    """

    engine: str = DEFAULT_ENGINE
    task: str = DEFAULT_TASK
    repo_id: str = ""
    revision: str | None = None
    gated: bool = False
    dtype: str = "auto"
    device: str = "auto"
    cpu_step: str = "auto"
    weights: str = "auto"
    slots: int = 8
    max_queue: int = 64
    max_queue_seconds: float = 50.0
    max_prompt_tokens: int = 1024
    max_total_tokens: int = 2048
    max_input_tokens: int | None = None
    batch_tokens: int | None = None
    stream_events: int | None = None
    engine_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)
    stated: frozenset[str] = frozenset()
    pooling: PoolingDefaults = dataclasses.field(default_factory=PoolingDefaults)
    simulated: SimulatedSettings = dataclasses.field(default_factory=SimulatedSettings)

    @property
    def kind(self) -> EngineKind:
        """The engine in the registry."""
        return engine_kind(self.engine, self.task)


def parse_settings(parameters: Mapping[str, str]) -> ModelSettings:
    """Turn the parameters of a config.pbtxt into settings.

    Raises:
        SettingsError: A parameter is unknown, out of range, missing, or contradicts another.
    """
    kind = kind_of(parameters)
    known = model_parameters(kind)
    for name in parameters:
        if name not in known:
            raise SettingsError(
                f"unknown parameter '{name}'; {_engine(kind)} knows {', '.join(sorted(known))}"
            )
    if parameters.get("weights") in _REMOVED_WEIGHTS:
        raise SettingsError(
            f"parameter 'weights' {parameters['weights']} is gone; serve a checkpoint that is "
            "quantised already (AWQ, GPTQ or FP8) on a GPU, or use int8 on a CPU"
        )
    values = {name: known[name].read_text(text) for name, text in parameters.items()}
    defaults = {name: values.pop(name) for name in kind.task.parameters if name in values}
    simulated = {name: values.pop(name) for name in catalog.SIMULATED if name in values}
    if kind.task is TEXT:
        values["defaults"] = GenerationDefaults(**defaults)
        values["stated"] = frozenset(defaults)
    else:
        values["pooling"] = PoolingDefaults(**defaults)
    settings = ModelSettings(
        **{**kind.defaults, **values},
        simulated=_simulated_settings(simulated),
    )
    _check(settings)
    return settings


def _engine(kind: EngineKind) -> str:
    return f"engine {kind.name}" if kind.task is TEXT else f"the task {kind.task.name}"


def _simulated_settings(values: Mapping[str, float]) -> SimulatedSettings:
    if "inter_token_ms" in values and "tokens_per_second" in values:
        raise SettingsError("set 'inter_token_ms' or 'tokens_per_second', not both")
    base = SimulatedSettings()
    inter_token = base.inter_token
    if "inter_token_ms" in values:
        inter_token = values["inter_token_ms"] / 1000
    elif "tokens_per_second" in values:
        inter_token = 1 / values["tokens_per_second"]
    first = values.get("ttft_ms", base.time_to_first_token * 1000) / 1000
    return SimulatedSettings(
        time_to_first_token=first,
        inter_token=inter_token,
        load=values.get("load_seconds", base.load),
    )


def _check(settings: ModelSettings) -> None:
    for name in settings.engine_args:
        if name in catalog.VLLM_OWNED:
            raise SettingsError(
                f"parameter 'engine_args' has '{name}', which is set by {catalog.VLLM_OWNED[name]}"
            )
    if settings.kind.needs_repository and not settings.repo_id:
        raise SettingsError("parameter 'repo_id' is missing; it names the repository on the Hub")
    if settings.max_total_tokens <= settings.max_prompt_tokens:
        raise SettingsError(
            f"'max_total_tokens' ({settings.max_total_tokens}) must be larger than "
            f"'max_prompt_tokens' ({settings.max_prompt_tokens}), or no answer fits"
        )
