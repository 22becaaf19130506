"""A small engine whose answers follow grammars, and random JSON schemas for it."""

from __future__ import annotations

import contextlib
import queue
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from triton_hf.contract import Message, Sampling
from triton_hf.engines.text import TextEvent
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings

TIMEOUT = 60
BEGIN, END = "<s>", "</s>"


def byte_tokenizer() -> Any:
    """Every byte, some pairs of them, and control tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    texts = ["<s>", END, *letters, '":', '{"', '"}', "true", "null", "[]"]
    backend = Tokenizer(
        models.BPE(vocab={text: index for index, text in enumerate(texts)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token=END
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    return tokenizer


@contextlib.contextmanager
def running_engine(folder: Path) -> Iterator[TransformersEngine]:
    """Run an engine with a small random model until the block ends."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,  # wider than the tokenizer, as many models are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=8192,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    made = TransformersEngine(
        settings=ModelSettings(
            repo_id="a/b", slots=8, max_queue=1000, max_total_tokens=3072, max_prompt_tokens=1500
        ),
        metrics=Metrics(),
        heartbeat=Heartbeat(folder / "beat.json"),
    )
    made._load = lambda: made._use(model, byte_tokenizer())  # type: ignore[method-assign]
    made.start()
    try:
        yield made
    finally:
        made.stop()


def answers(engine: TransformersEngine, asked: list[Sampling]) -> list[tuple[str, str | None]]:
    """Text and finish reason of each."""
    works = [engine.encode((Message(role="user", content="go"),), how) for how in asked]
    news: list[queue.Queue[TextEvent]] = [queue.Queue() for _ in works]
    engine.submit(works, [one.put for one in news])
    return [_whole(one) for one in news]


def _whole(news: queue.Queue[TextEvent]) -> tuple[str, str | None]:
    text = ""
    while True:
        event = news.get(timeout=TIMEOUT)
        text += event.text
        if event.last:
            assert event.error is None
            return text, event.finish_reason


def random_schema(numbers: random.Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema whose answers end soon."""
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const", "choice"]
    kind = numbers.choice(kinds + ["object", "array"] * (0 if depth > 2 else 4))
    if kind == "object":
        names = numbers.sample(["a", "b", "long name", "ä", 'q"', "x1"], numbers.randint(0, 4))
        return {
            "type": "object",
            "properties": {name: random_schema(numbers, depth + 1) for name in names},
            "required": [name for name in names if numbers.random() < 0.6],
            "additionalProperties": False,
        }
    if kind == "array":
        low = numbers.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(numbers, depth + 1),
            "minItems": low,
            "maxItems": low + numbers.randint(0, 2),
        }
    if kind == "choice":
        return {"anyOf": [random_schema(numbers, 3) for _ in range(2)]}
    return _value_schema(numbers, kind)


def _value_schema(numbers: random.Random, kind: str) -> dict[str, Any]:
    if kind == "string":
        low = numbers.randint(0, 3)
        return numbers.choice(
            [
                {"type": "string", "minLength": low, "maxLength": low + numbers.randint(0, 5)},
                {"type": "string", "pattern": "^[a-c]{2,4}$"},
                {"type": "string", "format": "uuid"},
            ]
        )
    if kind in ("integer", "number"):
        low = numbers.randint(-1000, 1000)
        return numbers.choice(
            [
                {"type": kind, "minimum": low, "maximum": low + numbers.randint(0, 500)},
                {"type": kind, "exclusiveMinimum": low, "exclusiveMaximum": low + 7},
                {"type": "integer", "multipleOf": numbers.randint(1, 9)},
            ]
        )
    if kind == "enum":
        return {"enum": numbers.sample(["a", "é", 1, 2.5, None, True, [1], {"k": "v"}], 3)}
    if kind == "const":
        return {"const": numbers.choice(["fixed", 7, False, {"a": [None]}])}
    return {"type": kind}
