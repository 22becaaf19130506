"""What an engine asks of the code that computes a model: one forward pass after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Runner(Protocol):
    """Prefills sequences, and decodes one token for each row of the batch at a time.

    Rows are numbered 0, 1, ... in the order of joining. When a row leaves, the last row takes its
    number. Call everything from one thread, under `torch.inference_mode`. A sequence that is
    dropped before it joins needs no call.

    Attributes:
        device: Where it computes.
    """

    device: torch.device

    @property
    def cpu_levels(self) -> tuple[int, int] | None:
        """Levels of CPU instructions, shown and used: 1 AVX512, 2 VNNI, 3 BF16, 4 AMX.

        None if the runner has no kernels for them.
        """

    @property
    def mixing(self) -> MixingRunner | None:
        """The same runner if one forward pass can prefill and decode together, else None."""

    @property
    def highest(self) -> Sequence[int] | None:
        """For each row of the last logits the token with the largest one, -1 if not finite.

        None if the runner leaves the search to the sampler.
        """

    @property
    def rows(self) -> int:
        """Number of rows in the batch."""

    def resume(self, prompt: Sequence[int]) -> tuple[Any, int]:
        """Return a sequence that holds the cached prefix of a prompt, and the prefix's length.

        At least the last token of the prompt is left for the prefill.
        """

    def extend(self, sequence: Any, tokens: Sequence[int]) -> torch.Tensor:
        """Prefill the next tokens of a sequence; return the logits of the last one, [1, V]."""

    def join(self, sequence: Any) -> None:
        """Make a sequence the last row of the batch."""

    def leave(self, row: int) -> None:
        """Take a row out of the batch; the last row takes its number."""

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; return the logits after it, [rows, V]."""

    def clear(self) -> None:
        """Drop all rows and the prefix cache."""

    def forget(self) -> None:
        """Drop the prefix cache."""

    def check(self) -> None:
        """Run each kind of forward pass once, which also warms up the kernels.

        Raises:
            SettingsError: This runner cannot compute the model.
            ArithmeticError: The logits are NaN or infinite.
        """


class MixingRunner(Runner, Protocol):
    """A runner that prefills several prompts and decodes the batch in one forward pass.

    A call that raises has changed nothing.
    """

    def advance(
        self, tokens: Sequence[int], chunks: Sequence[tuple[Any, Sequence[int]]]
    ) -> torch.Tensor:
        """Add one token to each row and a chunk of its prompt to each sequence.

        Returns:
            The logits after each, rows first, [rows + chunks, V]; valid until the next call.
        """

    def prepare(self) -> bool:
        """Do a little work that a later prompt would wait for; False if nothing is left."""
