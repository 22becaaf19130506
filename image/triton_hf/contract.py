"""The contract of a text request: a conversation, and how to sample its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolUse:
    """The functions that an answer may call.

    Attributes:
        tools: In OpenAI's form.
        choice: `none`, `auto`, `required` or `function:NAME`.
        parallel: Whether an answer may call more than one.
    """

    tools: tuple[Mapping[str, Any], ...]
    choice: str = "auto"
    parallel: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        extra: What the chat template gets beside role and content, such as `tool_calls`.
        tools: On the first turn, the tools of the whole conversation.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tools: ToolUse | None = None


Conversation = tuple[Message, ...]
# Role of the only message of a raw prompt, which gets no chat template. No client can send it.
PROMPT = "prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to sample one answer.

    Attributes:
        max_tokens: Most tokens of the answer. None if the request did not say; the default of the
            model is then cut to what fits.
        default_max_tokens: The default of the model.
        temperature: 0 means greedy.
        top_k: 0 means all tokens.
        logit_bias: Pairs of a token id and what is added to its logit.
        stop_token_ids: Tokens that end the answer in addition to the model's end tokens, also with
            `ignore_eos`. An engine without a vocabulary has none of them.
        guide: Kind (`json_schema`, `regex`, `grammar`, `structural_tag`) and text of what the
            answer must follow.
    """

    max_tokens: int | None = None
    default_max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    guide: tuple[str, str] | None = None
    tools: ToolUse | None = None
