"""Engine `auto`: which engine computes a text model here, and why."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from triton_hf.engines.text import TextEngine
from triton_hf.engines.vllm_arguments import is_cpu_build
from triton_hf.models.registry import engine_kind, load_class
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import log


def make_engine(*, settings: ModelSettings, **parts: Any) -> TextEngine:
    """Return the engine for a model; the log says which and why. Arguments as of every engine."""
    name, why = choose(settings)
    log(f"{settings.repo_id}: engine {name}, because {why}")
    engine: TextEngine = load_class(engine_kind(name).factory)(settings=settings, **parts)
    return engine


def choose(settings: ModelSettings, *, devices: Path = Path("/dev")) -> tuple[str, str]:
    """Return the name of the engine and the reason."""
    if settings.device == "cpu":
        return "transformers", "'device' is cpu"
    if settings.weights != "auto" or settings.cpu_step != "auto":
        return "transformers", "'weights' or 'cpu_step' is set, which are its own"
    if not sees_gpu(devices):
        return "transformers", "there is no NVIDIA GPU here"
    if importlib.util.find_spec("vllm") is None:
        return "transformers", "this image has no vLLM"
    if is_cpu_build():
        return "transformers", "the vLLM of this image is the one for CPUs"
    return "vllm", "there are vLLM and an NVIDIA GPU"


def sees_gpu(devices: Path = Path("/dev")) -> bool:
    """Whether an NVIDIA GPU is visible; asks neither torch nor the driver."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(devices.glob("nvidia[0-9]*"))
