"""Prompts of an exact length: random words, the same for systems that take text and token ids."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine.systems.base import Prompt

# One token each, with the space before it.
_TEXT = """
time year people way day man thing woman life child world school state family student
group country problem hand part place case week company system program question work government
number night point home water room mother area money story fact month lot right study book
"""
_WORDS = _TEXT.split()
_SYSTEM_WORDS = 12  # the first words differ, so that no cache of prefixes helps anyone

Encode = Callable[[str, str], tuple[int, ...]]
Prompts = Callable[[int, int, str], list[Prompt]]  # from number, length and seed


def prompts_for(folder: Path) -> Prompts:
    """Return what makes prompts for the model of a folder; they differ from seed to seed."""
    from transformers import AutoTokenizer

    encode = encoder(AutoTokenizer.from_pretrained(folder))
    return lambda count, length, seed: make_prompts(encode, count, length=length, seed=seed)


def make_prompts(encode: Encode, count: int, *, length: int, seed: str) -> list[Prompt]:
    """Return prompts that have `length` tokens after the chat template.

    Raises:
        ValueError: The template alone is longer.
    """
    source = random.Random(seed)
    return [_prompt(encode, source, length) for _ in range(count)]


def _prompt(encode: Encode, source: random.Random, length: int) -> Prompt:
    system = " ".join(source.choices(_WORDS, k=_SYSTEM_WORDS))
    words = source.choices(_WORDS, k=length)
    count = length - len(encode(system, "")) + 1
    for _ in range(5):
        user = " ".join(words[: max(count, 1)])
        ids = encode(system, user)
        if len(ids) == length:
            return Prompt(system=system, user=user, ids=ids)
        count += length - len(ids)
    raise ValueError(f"no prompt of {length} tokens: the template takes {len(encode(system, ''))}")


def encoder(tokenizer: Any) -> Encode:
    """Return the function from system and user message to token ids after the chat template."""

    def encode(system: str, user: str) -> tuple[int, ...]:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return tuple(ids["input_ids"] if hasattr(ids, "keys") else ids)

    return encode
