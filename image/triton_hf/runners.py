"""What an engine asks of the code that computes a model, and which code computes which model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from triton_hf.settings import CPU_WEIGHTS, ModelSettings

if TYPE_CHECKING:
    import torch
    from triton_native.checkpoint import Checkpoint

    from triton_hf.sampler import SamplingRow


class Runner(Protocol):
    """Reads prompts into sequences and steps those that have joined the batch.

    Rows are numbered 0, 1, ... in the order of joining; when one leaves, the last takes its
    number. All calls belong into one thread and `torch.inference_mode`. A sequence that is
    dropped before it has joined needs no call.
    """

    device: torch.device

    @property
    def rows(self) -> int:
        """Rows of the batch."""

    def begin(self) -> Any:
        """Return an empty sequence."""

    def resume(self, prompt: Sequence[int], positions: int) -> tuple[Any, int] | None:
        """Return a sequence with the start of a prompt as far as it is known, and its tokens.

        At least the last token of the prompt is left to be read. None while there is no memory
        for so many positions, where memory is set aside at the start.
        """

    def extend(self, sequence: Any, tokens: Sequence[int]) -> torch.Tensor:
        """Add tokens to a sequence that has not joined; return the last one's logits, [1, V]."""

    def join(self, sequence: Any) -> None:
        """Make a sequence the last row of the batch."""

    def leave(self, row: int) -> None:
        """Take a row out of the batch; the last row takes its number."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; return the logits after it, [rows, V]."""

    def clear(self) -> None:
        """Forget all rows."""

    def forget(self) -> None:
        """Let no later prompt take over what was read of earlier ones."""

    def check(self) -> None:
        """Run each kind of step once.

        Raises:
            SettingsError: The model cannot be computed.
            ArithmeticError: Its logits are no numbers.
        """


class MixingRunner(Runner, Protocol):
    """A runner that also reads several prompts and steps the batch in the same products.

    A call that fails has changed nothing.

    Attributes:
        highest: The token with the largest of the logits that the last call returned, for each of
            their rows; -1 where they are no finite numbers.
    """

    highest: Sequence[int]

    def advance(
        self, tokens: Sequence[int], chunks: Sequence[tuple[Any, Sequence[int]]]
    ) -> torch.Tensor:
        """Add one token to each row and a chunk to each sequence.

        Returns:
            The logits after each, rows first, [rows + chunks, V]; valid until the next call.
        """

    def prepare(self) -> bool:
        """Do a little of what a prompt would have to wait for; False when nothing is left."""


class AheadRunner(Runner, Protocol):
    """A runner that chooses tokens on its device and need not wait until the host has read them.

    Its sequences have room that was set aside when they began.
    """

    def choose_first(self, sequence: Any, logits: torch.Tensor, row: SamplingRow) -> Pending:
        """Choose the token after a prompt; the sequence goes on from it when it has joined."""

    def launch(self, rows: Sequence[SamplingRow]) -> Pending:
        """Add to each row the token that was chosen for it last, and choose the one after."""


class Pending(Protocol):
    """The tokens of one step, which may still be on their way."""

    def wait(self) -> list[int | None]:
        """Return the token of each row, None where its logits are not numbers."""


def make_runner(model: Any, settings: ModelSettings) -> Runner | MixingRunner | AheadRunner:
    """Return what computes this model best here; the model belongs to it from now on.

    Raises:
        SettingsError: The model does not fit into the GPU.
    """
    import torch

    from triton_hf.packed_linear import pack_linears

    if next(model.parameters()).device.type == "cuda":
        from triton_hf.cuda_runner import make_cuda_runner

        recorded = make_cuda_runner(
            model,
            slots=settings.slots,
            positions=settings.max_total_tokens,
            name=settings.repo_id,
        )
        return recorded or _torch_runner(model, settings)
    native = native_runner(model, settings)
    if native is not None:
        return native
    runner = _torch_runner(model, settings)
    with torch.inference_mode():
        pack_linears(model, int8=settings.weights == "int8")
    return runner


def _torch_runner(model: Any, settings: ModelSettings) -> Runner:
    from triton_hf.torch_runner import TorchRunner

    return TorchRunner(model, slots=settings.slots, positions=settings.max_total_tokens)


def native_runner(model: Any, settings: ModelSettings) -> MixingRunner | None:
    """Return the step in C++ for this model, None where torch has to do it; say which and why."""
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
    """Return the step in C++ for a model that is never built, None where it has to be.

    Its code, and all that this imports, is not loaded then.

    Args:
        folder: The model's safetensors files.
        config: Its configuration, of transformers.
        settings: What the model shall do.

    Raises:
        OSError: A file is missing.
        ValueError: The index of the files is no JSON.
        SafetensorError: A file is not what its head says.
    """
    import torch

    if settings.cpu_step == "torch" or settings.dtype not in ("auto", "bfloat16"):
        return None
    if settings.weights not in CPU_WEIGHTS:
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

    from triton_hf.embedded import cache_root

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
    # What is left for torch is to choose tokens; its threads would be in the way of the step.
    torch.set_num_threads(1)
    return runner


def _say(settings: ModelSettings, text: str) -> None:
    print(f"{settings.repo_id}: {text}", file=sys.stderr, flush=True)
