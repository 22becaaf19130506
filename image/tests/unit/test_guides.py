"""Answers that must follow a JSON schema, a regular expression or a grammar."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from lib.guided import answers, random_schema, running_engine
from triton_hf.contract import Message, Sampling
from triton_hf.engines.schemas import check_schema
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.errors import RequestError
from triton_hf.models.settings import GenerationDefaults
from triton_hf.serving.validation import parse_sampling


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    with running_engine(tmp_path_factory.mktemp("engine")) as running:
        yield running


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


def test_a_token_beyond_the_tokenizer_adds_no_text_and_harms_nothing(
    engine: TransformersEngine,
) -> None:
    """The model has more rows than the tokenizer has tokens, as many models do."""
    beyond = [(token, 100.0) for token in range(280, 300)]
    plain = answers(engine, [Sampling(temperature=1.0, seed=3, max_tokens=12)])
    forced = Sampling(temperature=1.0, seed=3, max_tokens=12, logit_bias=tuple(beyond))
    with pytest.raises(RequestError, match="the vocabulary of this model"):
        answers(engine, [forced])
    hot = [Sampling(temperature=2.0, seed=seed, max_tokens=40) for seed in range(20)]
    for _, reason in answers(engine, hot):
        assert reason in ("stop", "length")
    assert answers(engine, [Sampling(temperature=1.0, seed=3, max_tokens=12)]) == plain


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


def test_a_string_of_bounded_length_has_no_control_characters(engine: TransformersEngine) -> None:
    import xgrammar

    schema = json.dumps({"type": "string", "minLength": 1, "maxLength": 3})
    how = Sampling(guide=("json_schema", schema))
    compiled = engine.encode((Message(role="user", content="go"),), how).guide
    for text, good in (('"ab"', True), ('"é"', True), ('"a\x1c"', False), ('"abcd"', False)):
        matcher = xgrammar.GrammarMatcher(compiled)
        assert (matcher.accept_string(text) and matcher.is_completed()) == good, text
