"""One text of an embedding, ranking or classification request inside the engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from triton_hf.engines.job import Event, Job
from triton_hf.models.settings import PoolingDefaults

if TYPE_CHECKING:
    from triton_hf.compute.pooling import Encoded

Options = PoolingDefaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingWork:
    """One validated row."""

    encoded: Encoded
    options: Options

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the text, with the special tokens."""
        return len(self.encoded.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolingEvent(Event):
    """The only event of a row.

    Attributes:
        values: The embedding, the score, or the scores of the labels; empty without a result.
        labels: The labels of the scores, the best first; empty for other tasks.
    """

    values: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    prompt_tokens: int = 0

    @property
    def last(self) -> bool:
        """No event follows."""
        return True


class PoolingJob(Job[PoolingWork]):
    """One row while it waits or is computed."""
