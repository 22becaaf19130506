"""From a text, a pair or token ids to the tokens of a model, within its longest input."""

from __future__ import annotations

import threading
from typing import Any

from triton_hf.compute.pooling import Encoded
from triton_hf.errors import RequestError

# Most characters of a text, in those of the longest token: normalisation removes some.
CHARACTERS_OF_TOKENS = 4


class TextEncoder:
    """Tokenizes; safe from any thread.

    Special tokens inside of a client's text are text.
    """

    def __init__(self, tokenizer: Any, *, longest: int, vocabulary: int, lowers: bool) -> None:
        """Encode with a fast tokenizer of transformers.

        Args:
            tokenizer: The tokenizer.
            longest: Most tokens of an input, with the special tokens.
            vocabulary: Number of token ids that the model has.
            lowers: Whether texts are turned into lower case first.
        """
        self._tokenizer = tokenizer
        self._longest = longest
        self._vocabulary = vocabulary
        self._lowers = lowers
        self._most = CHARACTERS_OF_TOKENS * longest * max(map(len, tokenizer.get_vocab()))
        self._lock = threading.Lock()  # truncation is a state of the tokenizer

    def encode(
        self, text: str, *, pair: str | None = None, prompt: str = "", truncate: bool = False
    ) -> Encoded:
        """Return the tokens of a text or of two, with the special tokens around them.

        Raises:
            RequestError: There are more than the longest input, and they are not to be cut.
        """
        characters = len(text) + len(pair or "")
        if characters > self._most and not truncate:
            raise RequestError(
                f"the text has {characters} characters; this model takes at most {self._longest} "
                "tokens ('truncate' cuts it)"
            )
        found = self._tokenize(prompt + text, pair, truncate=truncate)
        ids = found["input_ids"]
        self._check(len(ids))
        types = found.get("token_type_ids")
        return Encoded(
            ids=tuple(ids),
            types=None if types is None else tuple(types),
            prompt=self._length_of_prompt(prompt) if prompt else 0,
        )

    def of_ids(self, ids: list[int], *, truncate: bool = False) -> Encoded:
        """Return token ids of a client as they are.

        Raises:
            RequestError: There are too many or none, or the model has no such token.
        """
        if not ids:
            raise RequestError("input 'tokens' is an empty list")
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise RequestError(
                    f"input 'tokens' holds {token}; token ids of this model go from 0 to "
                    f"{self._vocabulary - 1}"
                )
        ids = ids[: self._longest] if truncate else ids
        self._check(len(ids))
        return Encoded(ids=tuple(ids))

    def _check(self, length: int) -> None:
        if length > self._longest:
            raise RequestError(
                f"the text has {length} tokens; this model takes at most {self._longest} "
                "('truncate' cuts it)"
            )

    def _tokenize(self, text: str, pair: str | None, *, truncate: bool) -> Any:
        if self._lowers:
            text, pair = text.lower(), None if pair is None else pair.lower()
        with self._lock:
            return self._tokenizer(
                text,
                pair,
                truncation=truncate,
                max_length=self._longest if truncate else None,
                split_special_tokens=True,
                verbose=False,
            )

    def _length_of_prompt(self, prompt: str) -> int:
        """Count as sentence-transformers does: with what stands before it, not what ends it."""
        ids = self._tokenize(prompt, None, truncate=False)["input_ids"]
        ends = bool(ids) and ids[-1] in self._tokenizer.all_special_ids
        return len(ids) - int(ends)
