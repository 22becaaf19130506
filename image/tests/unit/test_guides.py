"""Answers that must follow a JSON schema, a regular expression or a grammar."""

from __future__ import annotations

import json
import queue
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from triton_hf.contract import Message, Sampling
from triton_hf.engines.schemas import check_schema
from triton_hf.engines.text import TextEvent
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.errors import RequestError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import GenerationDefaults, ModelSettings
from triton_hf.serving.validation import parse_sampling

TIMEOUT = 60
END = "</s>"


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
        tokenizer_object=backend, bos_token="<s>", eos_token=END
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    return tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300,  # wider than the tokenizer, as many models are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    made = TransformersEngine(
        settings=ModelSettings(repo_id="a/b", slots=8, max_queue=1000, max_total_tokens=2048),
        metrics=Metrics(),
        heartbeat=Heartbeat(tmp_path_factory.mktemp("engine") / "beat.json"),
    )
    made._load = lambda: made._use(model, byte_tokenizer())  # type: ignore[method-assign]
    made.start()
    yield made
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


# Random schemas.


def random_schema(numbers: random.Random, depth: int = 0) -> dict[str, Any]:
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
    return random_value_schema(numbers, kind)


def random_value_schema(numbers: random.Random, kind: str) -> dict[str, Any]:
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


def test_answers_to_200_random_schemas_validate_at_temperature_1_5(
    engine: TransformersEngine,
) -> None:
    numbers = random.Random(7)
    schemas = [random_schema(numbers) for _ in range(200)]
    asked = [
        Sampling(
            temperature=1.5,
            seed=index,
            max_tokens=1500,
            guide=("json_schema", json.dumps(schema)),
        )
        for index, schema in enumerate(schemas)
    ]
    for schema, (text, reason) in zip(schemas, answers(engine, asked), strict=True):
        assert reason == "stop", (schema, text)
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)


def test_rows_with_and_without_a_grammar_do_not_touch_each_other(
    engine: TransformersEngine,
) -> None:
    plain = [Sampling(temperature=1.0, seed=seed, max_tokens=30) for seed in range(4)]
    alone = answers(engine, plain)
    guide = ("regex", "(ab|cd){3,5}!")
    mixed = [
        Sampling(temperature=temperature, seed=5, max_tokens=30, guide=guide)
        for temperature in (0.0, 1.5, 0.0, 1.5)
    ]
    found = answers(engine, [how for pair in zip(plain, mixed, strict=True) for how in pair])
    assert found[::2] == alone
    for text, reason in found[1::2]:
        assert (bool(re.fullmatch("(ab|cd){3,5}!", text)), reason) == (True, "stop")
    assert found[1] == found[5]


def test_a_grammar_and_a_structural_tag_are_followed(engine: TransformersEngine) -> None:
    tag = {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "x{1,3}"},
                   "end": "</a>"},
    }  # fmt: skip
    asked = [
        Sampling(max_tokens=60, guide=("grammar", 'root ::= "yes" | "no"')),
        Sampling(max_tokens=60, temperature=1.5, guide=("structural_tag", json.dumps(tag))),
    ]
    (word, _), (tagged, _) = answers(engine, asked)
    assert word in ("yes", "no")
    assert re.fullmatch("<a>x{1,3}</a>", tagged)


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (("json_schema", "{"), "'json_schema' is not JSON"),
        (("json_schema", "[]"), "must be a JSON object"),
        (("regex", "(?=a)b"), "'regex' cannot be compiled"),
        (("regex", "(["), "'regex' cannot be compiled"),
        (("grammar", "nothing"), "'grammar' cannot be compiled"),
        (("structural_tag", "{}"), "'structural_tag' cannot be compiled"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    engine: TransformersEngine, guide: tuple[str, str], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        engine.encode((Message(role="user", content="go"),), Sampling(guide=guide))
    assert "\n" not in str(caught.value)
    assert "project/cpp" not in str(caught.value)


# Keywords.


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {}}, "not"),
        ({"type": "object", "properties": {"a": {"if": {}}}}, "if"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "object", "patternProperties": {}}, "patternProperties"),
        ({"minimum": 3}, "minimum"),
        ({"type": "number", "multipleOf": 2}, "multipleOf"),
        ({"type": "integer", "multipleOf": 2, "minimum": 1}, "multipleOf"),
        ({"type": "string", "format": "colour"}, "format"),
        ({"type": "string", "pattern": "a", "minLength": 1}, "pattern"),
        ({"type": "int"}, "type"),
        ({"type": "integer", "enum": ["a"]}, "enum"),
        ({"enum": []}, "enum"),
        ({"$ref": "#/$defs/none"}, "$ref"),
        ({"$ref": "https://x/y"}, "$ref"),
        ({"$ref": "#", "minimum": 1}, "minimum"),
        ({"allOf": [{"type": "integer"}, {"type": "number"}]}, "allOf"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "required": ["a"]}, "required"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
    ],
)
def test_a_keyword_that_would_be_ignored_is_named(schema: dict[str, Any], keyword: str) -> None:
    with pytest.raises(RequestError, match=rf"keyword '{re.escape(keyword)}'"):
        check_schema(json.dumps(schema))


def test_what_pydantic_writes_is_taken() -> None:
    cat = {"type": "object", "properties": {"kind": {"const": "cat", "type": "string"}},
           "required": ["kind"]}  # fmt: skip
    dog = {**cat, "properties": {"kind": {"const": "dog", "type": "string"}}}
    check_schema(
        json.dumps(
            {
                "$defs": {"Cat": cat, "Dog": dog},
                "title": "Pet",
                "type": "object",
                "properties": {
                    "pet": {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]},
                    "age": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None},
                    "names": {"items": {"type": "string"}, "type": "array", "title": "Names"},
                },
                "required": ["pet"],
            }
        )
    )


def test_one_request_follows_one_thing() -> None:
    with pytest.raises(RequestError, match="send 'json_schema' or 'regex', not both"):
        parse_sampling('{"json_schema": "{}", "regex": "a"}', GenerationDefaults())
    with pytest.raises(RequestError, match="'ignore_eos' and 'regex' contradict"):
        parse_sampling('{"ignore_eos": true, "regex": "a"}', GenerationDefaults())
