"""The prefix cache of the torch runner: prefills that later prompts with the same start reuse.

The keys and values of a token depend only on the tokens up to it. So the prefill of an earlier
prompt serves a later one with the same start (a system message, earlier turns) as far as both
agree. The last bits may differ, because the chunks of the prefill differ, as in another batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

# Below this, computing the tokens again is faster than copying their keys and values.
LEAST_TOKENS = 16
# Most prefills that are kept; each new prompt is compared with all of them.
MOST_KEPT = 64


class Read(Protocol):
    """A sequence that knows its prompt.

    Attributes:
        tokens: The tokens whose keys and values it holds.
    """

    tokens: list[int]


S = TypeVar("S", bound=Read)


class PrefixCache(Generic[S]):
    """Finished prefills, least recently used first, kept for prompts that start alike."""

    def __init__(self) -> None:
        self._sequences: list[S] = []

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.tokens) for sequence in self._sequences)

    def add(self, sequence: S) -> None:
        """Keep a sequence, unless it is too short to be of use."""
        if len(sequence.tokens) < LEAST_TOKENS:
            return
        self._sequences.append(sequence)
        if len(self._sequences) > MOST_KEPT:
            self.evict()

    def nearest(self, prompt: Sequence[int]) -> tuple[S | None, int]:
        """Call `nearest` on the kept sequences; the one that is found counts as just used."""
        like, count = nearest(prompt, self._sequences)
        if like is not None:
            self._sequences.remove(like)
            self._sequences.append(like)
        return like, count

    def evict(self) -> None:
        """Drop the least recently used sequence."""
        del self._sequences[0]

    def clear(self) -> None:
        """Drop all sequences."""
        self._sequences.clear()


def nearest(prompt: Sequence[int], sequences: Iterable[S]) -> tuple[S | None, int]:
    """Return the sequence that starts most like a prompt, and with how many of its tokens.

    The last token of the prompt does not count, because the engine needs its logits. Returns
    (None, 0) if no sequence shares enough to be worth a copy.
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
