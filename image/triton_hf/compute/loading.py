"""Chooses the runner of a model: the native CPU kernels where they fit, otherwise torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_hf.compute.model_files import LOCAL
from triton_hf.compute.runner import MixingRunner, Runner
from triton_hf.cpu import usable_cores
from triton_hf.errors import SettingsError
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import cache_root, log

if TYPE_CHECKING:
    from triton_native.checkpoint import Checkpoint


def load_runner(folder: Path, config: Any, settings: ModelSettings) -> Runner:
    """Load the model of a folder into the runner that computes it best here.

    Args:
        folder: Holds the model's safetensors files.
        config: Its configuration, with the names of transformers.
        settings: The settings of the model.

    Raises:
        OSError: A file is missing.
        ValueError: The index of the files is not JSON.
        SafetensorError: A file is not what its header says.
        SettingsError: No runner can compute the model here.
    """
    return stored_runner(folder, config, settings) or make_runner(
        load_model(folder, settings), settings
    )


def load_model(folder: Path, settings: ModelSettings) -> Any:
    """Load a transformers model from a local folder: safetensors only, no code of the repository.

    Raises:
        SettingsError: The folder holds no usable model, or the device is missing.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("parameter 'device' is cuda, but torch sees no NVIDIA GPU here")
    if device == "cuda" and settings.weights != "auto":
        raise SettingsError(
            f"parameter 'weights' is {settings.weights}, which is for CPUs; on a GPU serve a "
            "checkpoint that is quantised already (AWQ, GPTQ or FP8)"
        )
    # Also beside a GPU: torch would start a thread for each core of the node, whatever the quota.
    set_threads()
    dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, **LOCAL
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise unusable(settings, error) from None
    model.train(False)
    if device == "cuda":
        model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def make_runner(model: Any, settings: ModelSettings) -> Runner:
    """Return the runner that computes this model best here; the model belongs to it from now on."""
    import torch

    from triton_hf.compute.packed_linear import pack_linears
    from triton_hf.compute.torch_runner import TorchRunner

    native = native_runner(model, settings)
    if native is not None:
        return native
    runner = TorchRunner(model, slots=settings.slots, positions=settings.max_total_tokens)
    if runner.device.type == "cpu":
        with torch.inference_mode():
            pack_linears(model, int8=settings.weights == "int8")
    return runner


def native_runner(model: Any, settings: ModelSettings) -> MixingRunner | None:
    """Return the native CPU runner of a model, or None and a line in the log that says why."""
    if settings.cpu_step == "torch" or next(model.parameters()).device.type != "cpu":
        return None
    try:
        from triton_native.checkpoint import ModelCheckpoint
        from triton_native.library import UnavailableError
    except ImportError as error:
        _say(settings, f"torch computes the steps: the native step is not installed ({error})")
        return None
    try:
        return _make_native(ModelCheckpoint(model), settings)
    except UnavailableError as error:
        _say(settings, f"torch computes the steps, not the native step: {error}")
        return None


def stored_runner(folder: Path, config: Any, settings: ModelSettings) -> MixingRunner | None:
    """Return the native CPU runner of stored weights, or None if the model must be built first.

    Saves the import of the model's code. Arguments and errors: see `load_runner`.
    """
    import torch

    if settings.cpu_step == "torch" or settings.dtype not in ("auto", "bfloat16"):
        return None
    if settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available()):
        return None
    try:
        from triton_native.checkpoint import FolderCheckpoint
        from triton_native.library import UnavailableError
    except ImportError:
        return None
    with FolderCheckpoint(folder, config) as files:
        try:
            return _make_native(files, settings)
        except UnavailableError:
            return None


def _make_native(checkpoint: Checkpoint, settings: ModelSettings) -> MixingRunner:
    import torch

    from triton_native.runner import NativeRunner

    threads = torch.get_num_threads()
    runner = NativeRunner(
        checkpoint,
        slots=settings.slots,
        positions=settings.max_total_tokens,
        threads=threads,
        cache=cache_root(),
        int8=settings.weights == "int8",
    )
    _say(settings, f"the native step computes, {runner.instructions}, {threads} threads")
    if runner.fallback is not None:
        _say(settings, f"WARNING: {runner.fallback}")
    # Only sampling is left for torch; its threads would get in the way of the kernels.
    torch.set_num_threads(1)
    return runner


def set_threads() -> None:
    """Give torch as many threads as this container has cores, or OMP_NUM_THREADS."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or usable_cores()))


def unusable(settings: ModelSettings, error: Exception) -> SettingsError:
    """Turn an error of a load into one sentence."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "custom code" in first:
        first = "it brings code of its own, which is never run, and transformers has none for it"
    if first.startswith("Unrecognized configuration class"):
        first = "transformers has no class that generates text from text for its model type"
    return SettingsError(f"{settings.repo_id} cannot be loaded: {first}")


def _say(settings: ModelSettings, text: str) -> None:
    log(f"{settings.repo_id}: {text}")
