"""Prompts that start alike: which earlier one a new one can take its keys and values from.

Those of a token depend on the tokens up to it alone, so what an earlier prompt left behind serves a
later one with the same start (a system message, the turns before) as far as they agree. It is
computed in other pieces then, so the last bits may differ, as they do in another batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

# Fewer tokens than this are read again sooner than they are copied.
LEAST_TOKENS = 16
# Prompts that are kept for later ones at most; each new prompt is compared with all of them.
MOST_KEPT = 64


class Read(Protocol):
    """A sequence that knows its prompt.

    Attributes:
        tokens: The tokens that were read.
    """

    tokens: list[int]


S = TypeVar("S", bound=Read)


class Kept(Generic[S]):
    """Sequences that nobody uses, kept for prompts that start alike; those used last go last."""

    def __init__(self, drop: Callable[[S], None] | None = None) -> None:
        """Call `drop` with what is no longer kept."""
        self._drop = drop
        self._sequences: list[S] = []

    def __iter__(self) -> Iterator[S]:
        """Go through them, the oldest first."""
        return iter(self._sequences)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._sequences)

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        return sum(len(sequence.tokens) for sequence in self._sequences)

    def add(self, sequence: S) -> None:
        """Keep one more, unless it is too short to be of use."""
        self._sequences.append(sequence)
        if len(sequence.tokens) < LEAST_TOKENS:
            self._forget(-1)
        elif len(self) > MOST_KEPT:
            self.forget_oldest()

    def nearest(self, prompt: Sequence[int], others: Iterable[S] = ()) -> tuple[S | None, int]:
        """Do what `nearest` does, with sequences that are in use as well."""
        like, count = nearest(prompt, (*others, *self._sequences))
        if like in self._sequences:
            self._sequences.remove(like)
            self._sequences.append(like)
        return like, count

    def forget_oldest(self) -> None:
        """Keep one less."""
        self._forget(0)

    def clear(self) -> None:
        """Keep nothing."""
        while self._sequences:
            self.forget_oldest()

    def _forget(self, index: int) -> None:
        sequence = self._sequences.pop(index)
        if self._drop is not None:
            self._drop(sequence)


def nearest(prompt: Sequence[int], sequences: Iterable[S]) -> tuple[S | None, int]:
    """Return the sequence that starts most like a prompt, and with how many of its tokens.

    The last token of the prompt does not count: it is read for its logits. None and 0 where all
    share less than is worth a copy.
    """
    wanted = [*prompt[:-1]]
    best, most = None, LEAST_TOKENS - 1
    for sequence in sequences:
        if len(wanted) > most and sequence.tokens[: most + 1] == wanted[: most + 1]:
            best, most = sequence, _shared(sequence.tokens, wanted, most + 1)
    return best, most if best is not None else 0


def _shared(one: list[int], other: list[int], known: int) -> int:
    """Return how many tokens two lists share at their start, at least the known ones."""
    low, high = known, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
