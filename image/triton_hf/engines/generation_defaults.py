"""How a repository wants its model sampled: what generation_config.json says."""

from __future__ import annotations

import dataclasses
from typing import Any

from triton_hf.errors import RequestError
from triton_hf.models.catalog import SAMPLING
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import log

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def with_repository_defaults(settings: ModelSettings, generation: Any) -> ModelSettings:
    """Return the settings with the repository's sampling values where config.pbtxt states none.

    A value out of our range is left out, and the log says so. `do_sample: false` means greedy;
    `do_sample: true` without a temperature means temperature 1, as in transformers.

    Args:
        settings: The settings of the model.
        generation: A `GenerationConfig` of transformers.
    """
    taken: dict[str, Any] = {}
    for name, value in _sampling(generation).items():
        if name in settings.stated or name not in SAMPLING:
            continue
        try:
            taken[name] = SAMPLING[name].read_json(value)
        except RequestError as error:
            log(f"{settings.repo_id}: WARNING: generation_config.json is not followed: {error}")
    defaults = dataclasses.replace(settings.defaults, **taken)
    _say(settings, defaults, taken)
    return dataclasses.replace(settings, defaults=defaults)


def _sampling(generation: Any) -> dict[str, Any]:
    given = {name: getattr(generation, name, None) for name in _NAMES}
    sampled = getattr(generation, "do_sample", None)
    if sampled is False:
        given = {"repetition_penalty": given["repetition_penalty"]}
    elif sampled and given["temperature"] is None:
        given["temperature"] = 1.0
    return {name: value for name, value in given.items() if value is not None}


def _say(settings: ModelSettings, defaults: Any, taken: dict[str, Any]) -> None:
    parts, known = [], {field.name for field in dataclasses.fields(defaults)}
    for name in ("max_tokens", *_NAMES):
        if name not in known:
            continue
        source = "model" if name in settings.stated else "repository" if name in taken else "server"
        parts.append(f"{name} {getattr(defaults, name):g} ({source})")
    log(f"{settings.repo_id}: sampling defaults: {', '.join(parts)}")
