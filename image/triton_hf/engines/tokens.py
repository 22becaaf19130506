"""Between text and tokens: chat templates, decoding piece by piece, stop strings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from triton_hf.contract import PROMPT, Conversation
from triton_hf.engines.tools import template_knows_tools, told_turns
from triton_hf.errors import RequestError, SettingsError, in_short

# What a chat template is asked to write in a system turn, to see whether it does.
_PROBE = "is there a system role"


class ChatTokenizer:
    """Applies the chat template and turns tokens back into text."""

    def __init__(self, tokenizer: Any) -> None:
        """Use a transformers tokenizer.

        Raises:
            SettingsError: The tokenizer is not a fast one.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise SettingsError("the repository has no fast tokenizer (tokenizer.json)")
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, dict) and "default" not in template:
            names = ", ".join(sorted(template))
            raise SettingsError(
                f"the repository has only the named chat templates {names} and no default one; "
                "serve a copy of it whose chat_template is the one you want"
            )
        self.tokenizer = tokenizer
        self._special = _SpecialTokens(tokenizer)
        self.size = len(tokenizer)
        self.longest_token = max(map(len, tokenizer.get_vocab()))  # characters
        self._merges_system = not self._takes_system()

    def encode(self, conversation: Conversation) -> list[int]:
        """Return the prompt's token ids, up to where the assistant's answer starts.

        A raw prompt gets no template, only the special tokens with which the tokenizer starts and
        ends a text.

        Raises:
            RequestError: There is no template, or it refuses this conversation (order of roles,
                for example).
        """
        from jinja2 import TemplateError

        if conversation[0].role == PROMPT:
            return list(self.tokenizer(conversation[0].content)["input_ids"])
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                "this model has no chat template, so it is not a chat model: send input 'prompt'"
            )
        turns = [
            {
                "role": turn.role,
                "content": self._special.hide(turn.content),
                **self._special.hide_all(turn.extra),
            }
            for turn in conversation
        ]
        use, more = conversation[0].tools, {}
        if use is not None and use.choice != "none":
            tools = self._special.hide_all(list(use.tools))
            if template_knows_tools(self.template):
                more = {"tools": tools}
            else:
                turns = told_turns(turns, tools)
        if self._merges_system:
            turns = _without_system(turns)
        try:
            text = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False, **more
            )
        except TemplateError as error:
            raise RequestError(
                f"the model's chat template refuses this conversation: {error}"
            ) from None
        except Exception as error:  # templates compute with what a client sent
            raise RequestError(
                f"the model's chat template fails on this conversation: {in_short(error)}"
            ) from None
        return self._special.encode(str(text))

    def _takes_system(self) -> bool:
        """Whether the chat template writes a system turn, or there is no template."""
        if not getattr(self.tokenizer, "chat_template", None):
            return True
        turns = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "u"}]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
        except Exception:  # as templates refuse what they do not know
            return False
        return _PROBE in str(text)

    @property
    def template(self) -> str | None:
        """The chat template of a conversation with tools; None if there is none."""
        found = getattr(self.tokenizer, "chat_template", None)
        return found.get("tool_use", found["default"]) if isinstance(found, dict) else found

    def special_ids(self, texts: Iterable[str]) -> frozenset[int]:
        """Return the ids of the texts that are special tokens, which no answer shows as text."""
        return self._special.ids(texts)

    def decoder(self) -> TokenDecoder:
        """Return a decoder for one answer."""
        return TokenDecoder(self.tokenizer)


def _without_system(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put a first system turn in front of the user turn that follows it."""
    if len(turns) < 2 or (turns[0]["role"], turns[1]["role"]) != ("system", "user"):
        return turns
    text = f"{turns[0]['content']}\n\n{turns[1]['content']}"
    return [{**turns[1], "content": text}, *turns[2:]]


class _SpecialTokens:
    """Keeps the text of clients from becoming control tokens.

    A special token inside of a client's text is hidden from the chat template by a character of the
    private-use area, and encoded as plain text afterwards. All other text is encoded as ever.
    """

    _FIRST = 0xF0000  # plane 15, of which no tokenizer has tokens

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        self._ids = {str(token): int(number) for number, token in added.items() if token.special}
        self._tokenizer = tokenizer
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._marks = {text: chr(self._FIRST + at) for at, text in enumerate(longest_first)}
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        marks = "".join(self._marks.values())
        self._split = re.compile(f"([{marks}])" if marks else r"(?!)")
        self._plain: Any = None
        if self._ids:
            self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._plain.encode_special_tokens = True
            self._plain.no_padding()
            self._plain.no_truncation()
        self._texts = {mark: text for text, mark in self._marks.items()}

    def ids(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset(self._ids[text] for text in texts if text in self._ids)

    def hide(self, text: str) -> str:
        """Replace the special tokens of a client's text by their marks."""
        if self._split.search(text):
            raise RequestError("the text has a character from U+F0000 on, which is not allowed")
        return self._pattern.sub(lambda match: self._marks[match.group()], text)

    def hide_all(self, value: Any) -> Any:
        """Do the same for every text in a value, names among them."""
        if isinstance(value, str):
            return self.hide(value)
        if isinstance(value, Mapping):
            return {self.hide(str(key)): self.hide_all(item) for key, item in value.items()}
        return [self.hide_all(item) for item in value] if isinstance(value, list) else value

    def encode(self, text: str) -> list[int]:
        """Encode a rendered template, which writes the special tokens that count itself."""
        ids: list[int] = []
        for part in self._split.split(text):
            if part in self._texts:
                plain = self._plain.encode(self._texts[part], add_special_tokens=False)
                ids += plain.ids
            elif part:
                ids += self._tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids


class TokenDecoder:
    """Turns the tokens of one answer into text, piece by piece.

    A character that spans several tokens is held back until it is whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Start with no tokens."""
        self._tokenizer = tokenizer
        self._begin()

    def push(self, token: int) -> str:
        """Add a token; return the new text, which may be empty."""
        self._ids.append(token)
        try:
            piece = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        except Exception:  # tokenizers raises a bare Exception
            # Later bytes have spoilt a character that was shown already. The stream cannot go on
            # from there, so a new one starts behind them.
            self._begin()
            self._ids.append(token)
            piece = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._shown += piece
        return piece

    def _begin(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._shown = ""

    def flush(self) -> str:
        """Return what is still held back, when no more tokens come.

        The start of a character whose other bytes never came is dropped: it would show as U+FFFD.
        """
        whole = self._tokenizer.decode(
            self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        held = str(whole[len(self._shown) :]) if whole.startswith(self._shown) else ""
        return held.rstrip("\ufffd")


class TextAssembler:
    """Joins pieces of text and cuts at the first stop string.

    Text that may be the start of a stop string is held back until the next pieces decide, so a
    client never sees half of a stop string.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Watch for these stop strings."""
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add a piece; return the text that may be shown now."""
        if self.stopped:
            return ""
        text = self._held + piece
        hits = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if hits:
            self.stopped, self._held = True, ""
            return text[: min(hits)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that starts `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
