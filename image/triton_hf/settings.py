"""What a model's config.pbtxt says, as typed values.

Triton hands the `parameters` of config.pbtxt over as strings; this module is the only place that
knows their names, types and ranges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from triton_hf.errors import SettingsError

ENGINES = ("transformers", "simulated")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
CPU_STEPS = ("auto", "torch")
WEIGHTS = ("auto", "int8", "int4", "fp8")
CPU_WEIGHTS = ("auto", "int8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """The values a request gets for what it does not say itself."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedSettings:
    """How the simulated engine behaves; times in seconds."""

    time_to_first_token: float = 0.05
    inter_token: float = 0.01
    load: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Everything that config.pbtxt says about one model.

    Attributes:
        cpu_step: What computes on a CPU: `auto` is the native step where it fits, else torch.
        weights: Format of the weights in memory: `auto` is as stored, `int8`, `int4` and `fp8` are
            smaller and faster to read.
        slots: How many requests the engine works on at the same time.
        max_queue: How many more may wait; the next one is refused.
        max_queue_seconds: How long a request may wait for its first slot before it is refused,
            too; 0 is for ever. Below the 60 s after which gateways usually give up, so that the
            reason reaches the client.
        max_prompt_tokens: Longest prompt in tokens, after the chat template.
        max_total_tokens: Longest prompt plus answer in tokens.
        stream_events: Most events a second that all streams of the model send together while more
            than a few are open; an event then carries several tokens. 0 sends every token alone,
            None leaves it to the number of cores.
    """

    engine: str = "transformers"
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
    stream_events: int | None = None
    defaults: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)
    simulated: SimulatedSettings = dataclasses.field(default_factory=SimulatedSettings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Integer:
    low: int
    high: int

    def __call__(self, name: str, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = self.low - 1
        if not self.low <= value <= self.high:
            raise SettingsError(
                f"parameter '{name}' must be a whole number from {self.low} to {self.high}, "
                f"got '{text}'"
            )
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Number:
    low: float
    high: float
    above: bool = False  # the low end itself is not allowed

    def __call__(self, name: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        good = self.low < value <= self.high if self.above else self.low <= value <= self.high
        if not good:
            start = "above" if self.above else "from"
            raise SettingsError(
                f"parameter '{name}' must be a number {start} {self.low:g} to {self.high:g}, "
                f"got '{text}'"
            )
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Choice:
    values: tuple[str, ...]

    def __call__(self, name: str, text: str) -> str:
        if text not in self.values:
            allowed = ", ".join(self.values)
            raise SettingsError(f"parameter '{name}' must be one of {allowed}, got '{text}'")
        return text


def _text(name: str, text: str) -> str:
    if not text or text != text.strip():
        raise SettingsError(f"parameter '{name}' must not be empty or padded with spaces")
    return text


def _boolean(name: str, text: str) -> bool:
    return _Choice(values=("true", "false"))(name, text) == "true"


_MAX_TOKENS = 1_048_576
_SEED = _Integer(low=0, high=2**63 - 1)

_COMMON: dict[str, Callable[[str, str], Any]] = {
    "engine": _Choice(values=ENGINES),
    "slots": _Integer(low=1, high=4096),
    "max_queue": _Integer(low=0, high=1_000_000),
    "max_queue_seconds": _Number(low=0.0, high=86_400.0),
    "max_prompt_tokens": _Integer(low=1, high=_MAX_TOKENS),
    "max_total_tokens": _Integer(low=2, high=_MAX_TOKENS),
    "stream_events": _Integer(low=0, high=1_000_000),
    "device": _Choice(values=DEVICES),
}
_TRANSFORMERS: dict[str, Callable[[str, str], Any]] = {
    "repo_id": _text,
    "revision": _text,
    "gated": _boolean,
    "dtype": _Choice(values=DTYPES),
    "cpu_step": _Choice(values=CPU_STEPS),
    "weights": _Choice(values=WEIGHTS),
}
_DEFAULTS: dict[str, Callable[[str, str], Any]] = {
    "max_tokens": _Integer(low=1, high=_MAX_TOKENS),
    "temperature": _Number(low=0.0, high=2.0),
    "top_p": _Number(low=0.0, high=1.0, above=True),
    "top_k": _Integer(low=0, high=1_000_000),
    "repetition_penalty": _Number(low=0.0, high=2.0, above=True),
    "seed": _SEED,
}
_SIMULATED: dict[str, Callable[[str, str], Any]] = {
    "ttft_ms": _Number(low=0.0, high=600_000.0),
    "inter_token_ms": _Number(low=0.0, high=600_000.0),
    "tokens_per_second": _Number(low=0.0, high=1_000_000.0, above=True),
    "load_seconds": _Number(low=0.0, high=86_400.0),
}


def parameter_names(engine: str) -> tuple[str, ...]:
    """The parameters that a config.pbtxt of a model with this engine may have, in file order."""
    own = _SIMULATED if engine == "simulated" else _TRANSFORMERS
    return tuple(dict.fromkeys((*_COMMON, *own, *_DEFAULTS)))


def parse_settings(parameters: Mapping[str, str]) -> ModelSettings:
    """Turn the parameters of a config.pbtxt into settings.

    Raises:
        SettingsError: A parameter is unknown, out of range, missing, or contradicts another.
    """
    engine = _COMMON["engine"]("engine", parameters.get("engine", "transformers"))
    own = _SIMULATED if engine == "simulated" else _TRANSFORMERS
    known = {**_COMMON, **own, **_DEFAULTS}
    for name in parameters:
        if name not in known:
            raise SettingsError(
                f"unknown parameter '{name}'; engine {engine} knows {', '.join(sorted(known))}"
            )
    values = {name: known[name](name, text) for name, text in parameters.items()}
    defaults = {name: values.pop(name) for name in _DEFAULTS if name in values}
    simulated = {name: values.pop(name) for name in _SIMULATED if name in values}
    settings = ModelSettings(
        **values,
        defaults=GenerationDefaults(**defaults),
        simulated=_simulated_settings(simulated),
    )
    _check(settings)
    return settings


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


def check_weights(weights: str, *, device: str) -> None:
    """Refuse a format of weights that this kind of device does not compute with.

    Raises:
        SettingsError: It is only for GPUs.
    """
    if device == "cpu" and weights not in CPU_WEIGHTS:
        raise SettingsError(
            f"parameter 'weights' {weights} needs an NVIDIA GPU; on a CPU it is one of "
            f"{', '.join(CPU_WEIGHTS)}"
        )


def _check(settings: ModelSettings) -> None:
    check_weights(settings.weights, device=settings.device)
    if settings.engine == "transformers" and not settings.repo_id:
        raise SettingsError("parameter 'repo_id' is missing; it names the repository on the Hub")
    if settings.max_total_tokens <= settings.max_prompt_tokens:
        raise SettingsError(
            f"'max_total_tokens' ({settings.max_total_tokens}) must be larger than "
            f"'max_prompt_tokens' ({settings.max_prompt_tokens}), or no answer fits"
        )
