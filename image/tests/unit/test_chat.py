"""Tokenizers without a chat template: raw prompts only."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from triton_hf.contract import PROMPT, Message
from triton_hf.engines.tokens import ChatTokenizer
from triton_hf.errors import RequestError

VOCABULARY = {"<s>": 0, "one": 1, "two": 2, "<unk>": 3}


def tokenizer(**more: Any) -> ChatTokenizer:
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **more))


def test_a_raw_prompt_gets_the_start_token_and_no_template() -> None:
    chat = tokenizer(chat_template="{{ messages[0].content }} two two")
    assert chat.encode((Message(role=PROMPT, content="one two"),)) == [0, 1, 2]
    assert chat.encode((Message(role="user", content="one"),)) == [1, 2, 2]


def test_a_base_model_takes_prompts_and_refuses_chats_in_one_sentence() -> None:
    base = tokenizer()
    assert base.encode((Message(role=PROMPT, content="two"),)) == [0, 2]
    with pytest.raises(RequestError, match="this model has no chat template"):
        base.encode((Message(role="user", content="one"),))
