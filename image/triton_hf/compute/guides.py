"""Grammars that answers must follow: compiled by xgrammar, then a mask of tokens for each step."""

from __future__ import annotations

import threading
from typing import Any

from triton_hf.errors import RequestError, in_short

# Compiled grammars are kept up to so many bytes; clients send the same few again and again.
CACHE_BYTES = 64 * 1024 * 1024


class GuideCompiler:
    """Compiles the grammars of one model; safe from any thread.

    xgrammar and its table of the vocabulary are loaded with the first grammar: they take seconds.
    """

    def __init__(self, tokenizer: Any, *, vocabulary: int, end_tokens: frozenset[int]) -> None:
        """Compile for a fast tokenizer of transformers.

        Args:
            tokenizer: It.
            vocabulary: Width of the model's logits.
            end_tokens: Tokens that end an answer; only they are left when a grammar is complete.
        """
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._lock = threading.Lock()
        self._compiler: Any = None

    def compile(self, kind: str, text: str) -> Any:
        """Return the compiled grammar.

        Args:
            kind: `json_schema`, `regex`, `grammar` or `structural_tag`.
            text: It; a schema or a structural tag is JSON.

        Raises:
            RequestError: It cannot be compiled.
        """
        with self._lock:
            compiler = self._compiler = self._compiler or self._load()
        try:
            if kind == "json_schema":
                return compiler.compile_json_schema(text, any_whitespace=False)
            if kind == "regex":
                return compiler.compile_regex(text)
            if kind == "grammar":
                return compiler.compile_grammar(text)
            return compiler.compile_structural_tag(text)
        except Exception as error:  # xgrammar raises bare RuntimeErrors
            # Its log line begins with a time and a place in its source.
            reason = str(error).rpartition("Error: ")[2].strip() or in_short(error)
            reason = reason.partition(".cc:")[2].partition(": ")[2] or reason
            raise RequestError(
                f"parameter '{kind}' cannot be compiled: {' '.join(reason.split())[:300]}"
            ) from None

    def _load(self) -> Any:
        try:
            import xgrammar
        except ModuleNotFoundError:
            raise RequestError(
                "this image has no xgrammar, so answers cannot be held to a grammar"
            ) from None
        if not self._end_tokens:
            raise RequestError("this model has no end token, so its answers follow no grammar")
        tokens = xgrammar.TokenizerInfo.from_huggingface(
            self._tokenizer,
            vocab_size=self._vocabulary,
            stop_token_ids=sorted(self._end_tokens),
        )
        return xgrammar.GrammarCompiler(tokens, max_threads=1, cache_limit_bytes=CACHE_BYTES)


class Guide:
    """Where one answer is in its grammar."""

    def __init__(self, compiled: Any) -> None:
        """Start at the beginning of what `GuideCompiler.compile` returned."""
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._size = compiled.tokenizer_info.vocab_size
        self._mask = xgrammar.allocate_token_bitmask(1, self._size)
        self._apply = xgrammar.apply_token_bitmask_inplace

    def mask(self, logits: Any) -> None:
        """Set the logits of one row, [V], to minus infinity where a token would break the grammar.

        A mask that allows every token is not applied.
        """
        if self._matcher.is_terminated():
            return
        if self._matcher.fill_next_token_bitmask(self._mask, 0):
            self._apply(logits[: self._size], self._mask[0].to(logits.device))
        logits[self._size :] = float("-inf")

    def accept(self, token: int) -> None:
        """Go on behind a token that was sampled from masked logits."""
        if not self._matcher.is_terminated():
            self._matcher.accept_token(token)
