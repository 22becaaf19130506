"""Which JSON schemas can be forced: a keyword that the grammar would ignore is refused by name.

A schema that passes has a grammar whose every text validates. The grammar may allow less than the
schema: properties in their order, one way to space.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from triton_hf.contract import Sampling
from triton_hf.errors import RequestError

LONGEST = 65_536  # characters of a schema, and most of a count in it
DEEPEST = 64

_NOTES = frozenset(
    {
        *("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default"),
        *("examples", "deprecated", "readOnly", "writeOnly"),
    }
)
_KEYWORDS: Mapping[str, frozenset[str]] = {
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "integer": frozenset(
        {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
    ),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_FORMATS = frozenset(
    {
        *("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "uri-reference", "uri-template", "json-pointer", "relative-json-pointer"),
    }
)
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
# A schema with one of these has nothing else beside it that counts.
_ALONE = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")


def forceable(sampling: Sampling) -> Sampling:
    """Return sampling whose JSON schema says what every engine can force; checks it first."""
    if sampling.guide is None or sampling.guide[0] != "json_schema":
        return sampling
    kind, text = sampling.guide
    check_schema(text)
    return dataclasses.replace(sampling, guide=(kind, json.dumps(forced(json.loads(text)))))


def check_schema(text: str, *, name: str = "json_schema") -> None:
    """Check a JSON schema that answers are to follow.

    Raises:
        RequestError: It is no JSON schema, or has a keyword that cannot be forced; the text names
            the keyword and where it is.
    """
    if len(text) > LONGEST:
        raise RequestError(
            f"parameter '{name}' has {len(text)} characters; at most {LONGEST} can be compiled"
        )
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"parameter '{name}' is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise RequestError(f"parameter '{name}' must be a JSON object")
    _Check(schema, name).visit(schema, "", 0)


def forced(schema: Any) -> Any:
    """Return a checked schema in the words that xgrammar keeps to.

    Its grammar for `minLength` and `maxLength` allows control characters, which JSON does not, so
    both become a pattern.
    """
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for word in ("properties", "$defs", "definitions"):
        if word in made:
            made[word] = {key: forced(part) for key, part in made[word].items()}
    for word in ("items", "additionalProperties"):
        if word in made:
            made[word] = forced(made[word])
    for word in ("prefixItems", "anyOf", "oneOf", "allOf"):
        if word in made:
            made[word] = [forced(part) for part in made[word]]
    if "minLength" in made or "maxLength" in made:
        low, high = made.pop("minLength", 0), made.pop("maxLength", "")
        made["pattern"] = rf'^[^"\\\x00-\x1f\x7f]{{{low},{high}}}$'
    return made


class _Check:
    def __init__(self, root: Mapping[str, Any], name: str) -> None:
        self._root = root
        self._name = name

    def visit(self, schema: Any, path: str, depth: int) -> None:
        if schema is True:
            return
        if not isinstance(schema, dict):
            raise self._error(f"{path or '/'} must be an object")
        if depth > DEEPEST:
            raise self._error(f"it is nested deeper than {DEEPEST}")
        for kind in ("$defs", "definitions"):
            for key, part in self._mapping(schema, kind, path).items():
                self.visit(part, f"{path}/{kind}/{key}", depth + 1)
        alone = next((word for word in _ALONE if word in schema), None)
        if alone is not None:
            self._visit_alone(schema, alone, path, depth)
        else:
            self._visit_types(schema, path, depth)

    def _visit_alone(self, schema: Mapping[str, Any], word: str, path: str, depth: int) -> None:
        beside = {"type"} if word in ("const", "enum") else set()
        for other in schema.keys() - _NOTES - {word} - beside:
            raise self._error(f"keyword '{other}' beside '{word}' at {path or '/'}")
        value = schema[word]
        if word == "$ref":
            self._resolve(value, path)
        elif word in ("const", "enum"):
            values = [value] if word == "const" else value
            if not isinstance(values, list) or not values:
                raise self._error(f"keyword '{word}' at {path or '/'}: it must be a list")
            kinds = self._types(schema, path) if "type" in schema else None
            if kinds and any(not _is(item, kinds) for item in values):
                raise self._error(f"keyword '{word}' at {path or '/'}: a value has another type")
        else:
            self._visit_branches(value, word, path, depth)

    def _visit_branches(self, parts: Any, word: str, path: str, depth: int) -> None:
        if not isinstance(parts, list) or not parts:
            raise self._error(f"keyword '{word}' at {path or '/'}: it must be a list of schemas")
        if word == "allOf" and len(parts) > 1:
            raise self._error(f"keyword 'allOf' at {path or '/'} with more than one schema")
        if word == "oneOf" and not self._disjoint(parts):
            raise self._error(
                f"keyword 'oneOf' at {path or '/'}, whose schemas may overlap; use 'anyOf'"
            )
        for index, part in enumerate(parts):
            self.visit(part, f"{path}/{word}/{index}", depth + 1)

    def _visit_types(self, schema: Mapping[str, Any], path: str, depth: int) -> None:
        words = schema.keys() - _NOTES - {"type"}
        kinds = self._types(schema, path) if "type" in schema else []
        known = frozenset().union(*(_KEYWORDS[kind] for kind in kinds))
        everywhere = frozenset().union(*_KEYWORDS.values())
        for word in sorted(words - known):
            why = "'type' must be beside it" if word in everywhere else "it cannot be forced"
            raise self._error(f"keyword '{word}' at {path or '/'}: {why}")
        for word in words & set(_COUNTS):
            count = schema[word]
            if type(count) is not int or not 0 <= count <= LONGEST:
                raise self._error(f"keyword '{word}' at {path or '/'} must be 0 to {LONGEST}")
        self._check_values(schema, path)
        for key, part in self._children(schema, path):
            self.visit(part, f"{path}/{key}", depth + 1)

    def _check_values(self, schema: Mapping[str, Any], path: str) -> None:
        if "multipleOf" in schema and (
            len(schema.keys() & _KEYWORDS["integer"]) > 1
            or "number" in self._types(schema, path)
            or type(schema["multipleOf"]) is not int
        ):
            raise self._error(
                f"keyword 'multipleOf' at {path or '/'}: only a whole number alone beside "
                "'type': 'integer' can be forced"
            )
        exact = schema.keys() & {"pattern", "format"}
        if exact and len(schema.keys() & _KEYWORDS["string"]) > 1:
            word = min(exact)
            raise self._error(f"keyword '{word}' at {path or '/'} beside another one for strings")
        if "format" in schema and schema["format"] not in _FORMATS:
            raise self._error(f"keyword 'format' at {path or '/'}: the format is unknown")
        missing = set(map(str, schema.get("required") or ())) - set(schema.get("properties") or ())
        if missing:
            raise self._error(
                f"keyword 'required' at {path or '/'}: '{min(missing)}' is not in 'properties'"
            )

    def _children(self, schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
        for key, part in self._mapping(schema, "properties", path).items():
            yield f"properties/{key}", part
        for word in ("items", "additionalProperties"):
            if word in schema and schema[word] is not False:
                yield word, schema[word]
        parts = schema.get("prefixItems", [])
        if not isinstance(parts, list):
            raise self._error(f"keyword 'prefixItems' at {path or '/'}: it must be a list")
        for index, part in enumerate(parts):
            yield f"prefixItems/{index}", part

    def _mapping(self, schema: Mapping[str, Any], word: str, path: str) -> Mapping[str, Any]:
        value = schema.get(word, {})
        if not isinstance(value, dict):
            raise self._error(f"keyword '{word}' at {path or '/'}: it must be an object")
        return value

    def _types(self, schema: Mapping[str, Any], path: str) -> list[str]:
        given = schema.get("type")
        kinds: list[Any] = given if isinstance(given, list) else [given]
        if not kinds or any(not isinstance(kind, str) or kind not in _KEYWORDS for kind in kinds):
            raise self._error(f"keyword 'type' at {path or '/'}: it must be {', '.join(_KEYWORDS)}")
        return kinds

    def _resolve(self, reference: Any, path: str) -> Any:
        if reference == "#":
            return self._root
        found: Any = self._root
        good = isinstance(reference, str) and reference.startswith("#/")
        for part in reference[2:].split("/") if good else ():
            found = found.get(part) if isinstance(found, dict) else None
        if not good or found is None:
            raise self._error(f"keyword '$ref' at {path or '/'}: '{reference}' is not in it")
        return found

    def _disjoint(self, parts: list[Any]) -> bool:
        """Whether no value can fit two of the schemas, as far as that can be seen."""
        marks = [self._mark(part) for part in parts]
        return None not in marks and len(set(marks)) == len(marks)

    def _mark(self, part: Any) -> Any:
        if isinstance(part, dict) and set(part) <= {"$ref"} | _NOTES and "$ref" in part:
            part = self._resolve(part["$ref"], "")
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return None
        if part["type"] != "object":
            return "number" if part["type"] == "integer" else part["type"]
        for key in part.get("required") or ():
            constant = (part.get("properties") or {}).get(key, {})
            if isinstance(constant, dict) and isinstance(constant.get("const"), str):
                return (key, constant["const"])
        return None

    def _error(self, text: str) -> RequestError:
        return RequestError(f"parameter '{self._name}' cannot be compiled: {text}")


def _is(value: Any, kinds: list[str]) -> bool:
    found = {
        str: {"string"},
        bool: {"boolean"},
        int: {"integer", "number"},
        float: {"number"},
        list: {"array"},
        dict: {"object"},
        type(None): {"null"},
    }[type(value)]
    return bool(found & set(kinds))
