"""What a system is to the benchmark: it is prepared, started, asked and ended.

Only the standard library is used here: workers run in environments of other projects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class UnavailableError(Exception):
    """A system cannot be measured here; the text says why in one sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, as texts before the chat template and as the token ids after it."""

    system: str
    user: str
    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """When one answer came.

    Attributes:
        start: When it was asked for, on the clock of `time.perf_counter`.
        events: When tokens came and how many there were in all then.
        prompt_tokens: Length of the prompt as the system counted it, None when it does not say.
        fault: Why there is no whole answer; empty when there is.
    """

    start: float
    events: tuple[tuple[float, int], ...] = ()
    prompt_tokens: int | None = None
    fault: str = ""


class Running(Protocol):
    """A system that is ready."""

    @property
    def session(self) -> int:
        """Id of the session that all its processes are in."""

    def ask(self, prompts: Sequence[Prompt], *, tokens: int, clients: int) -> list[Answer]:
        """Answer all prompts with this many tokens each, `clients` of them at any time."""


class System(Protocol):
    """One system with its best known settings for the lent machine.

    Attributes:
        name: Its row in the table.
        precision: Of weights and arithmetic.
        serial: It answers one request after another, so many clients gain nothing.
        settings: What was set, for the reader of the results.
    """

    name: str
    precision: str
    serial: bool
    settings: str

    def prepare(self, *, install: bool) -> None:
        """Fetch and build what it needs; nothing is left to do when it starts.

        Raises:
            UnavailableError: It is not there and may not or cannot be installed.
        """

    def running(self, folder: Path) -> AbstractContextManager[Running]:
        """Run it until the block ends, with its files in this folder.

        Raises:
            UnavailableError: It does not start.
        """
