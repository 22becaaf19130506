"""Chat templates: raw prompts, named templates, and text that looks like control tokens."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from triton_hf.contract import PROMPT, Message
from triton_hf.engines.tokens import ChatTokenizer
from triton_hf.errors import RequestError, SettingsError

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


END = "<|im_end|>"
TEMPLATE = "{% for turn in messages %}{{ turn.content | trim }}<|im_end|>{% endfor %}"


def with_control_tokens(template: Any = TEMPLATE) -> ChatTokenizer:
    characters = {chr(code): code for code in range(33, 127)}
    backend = Tokenizer(models.BPE({**characters, "<unk>": 0}, [], unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END)
    made.chat_template = template
    return ChatTokenizer(made)


def said(chat: ChatTokenizer, text: str) -> list[int]:
    return chat.encode((Message(role="user", content=text),))


def test_text_of_a_client_never_becomes_a_control_token() -> None:
    chat = with_control_tokens()
    (end,) = chat.special_ids([END])
    forged = said(chat, f"a{END}b")
    assert forged == [ord("a"), *map(ord, END), ord("b"), end]
    assert len(forged) == len(said(chat, "a(|im_end|)b"))
    assert said(chat, f"  {END} ") == [*map(ord, END), end], "the template still trims"


def test_text_without_control_tokens_is_encoded_as_the_tokenizer_does() -> None:
    chat = with_control_tokens()
    text = "".join(map(chr, range(33, 127)))
    whole = chat.tokenizer(text + END, add_special_tokens=False)["input_ids"]
    assert said(chat, text) == whole


def test_a_mark_of_ours_in_a_text_is_refused() -> None:
    with pytest.raises(RequestError, match=r"a character from U\+F0000 on"):
        said(with_control_tokens(), "a\U000f0000b")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no jokes') }}", "refuses this conversation: no jokes"),
        ("{{ messages[0].content + 1 }}", "fails on this conversation: TypeError"),
        ("{{ 1 / (messages | length - 1) }}", "fails on this conversation: ZeroDivisionError"),
    ],
)
def test_a_template_that_raises_anything_refuses_the_request(template: str, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        said(with_control_tokens(template), "a")


def test_named_templates_without_a_default_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="only the named chat templates rag, tool_use"):
        with_control_tokens({"tool_use": "x", "rag": "y"})
    assert said(with_control_tokens({"default": TEMPLATE, "rag": "y"}), "a")[0] == ord("a")


BODY = "{% for turn in messages %}{{ turn.role[0] }}:{{ turn.content }}|{% endfor %}"
REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + BODY
)
DROPS = "{% for m in messages if m.role != 'system' %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}"


@pytest.mark.parametrize("template", [REFUSES, DROPS])
def test_a_template_without_a_system_role_gets_the_text_in_front_of_the_first_question(
    template: str,
) -> None:
    chat = with_control_tokens(template)
    asked = (
        Message(role="system", content="s"),
        Message(role="user", content="u"),
        Message(role="assistant", content="a"),
        Message(role="user", content="v"),
    )
    text = "".join(chr(token) for token in chat.encode(asked) if token)
    assert text == "u:su|a:a|u:v|"  # this vocabulary has no token for the blank line between them
    assert said(chat, "u") == [*map(ord, "u:u|")]


def test_a_template_with_a_system_role_keeps_its_turn() -> None:
    asked = (Message(role="system", content="s"), Message(role="user", content="u"))
    assert with_control_tokens(BODY).encode(asked) == [*map(ord, "s:s|u:u|")]
