"""`response_format`: what an answer must look like, as a request parameter of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from triton_openai.errors import ApiError

ANY_OBJECT = '{"type":"object","additionalProperties":true}'
# Fields of the object inside, beside the schema itself; they change no answer.
_BESIDE_SCHEMA = ("name", "description", "strict")
_TEXTS = ("regex", "grammar")


def format_parameters(given: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the request parameter for a `response_format`; none for plain text.

    `{"type": "regex", "regex": ...}` and `{"type": "grammar", "grammar": ...}` are extensions.

    Raises:
        ApiError: Its type is unknown, or a field is missing, unknown or of the wrong type.
    """
    if given is None:
        return {}
    kind = given.get("type")
    inside = {"json_schema": "json_schema", **{name: name for name in _TEXTS}}
    if not isinstance(kind, str) or kind not in ("text", "json_object", *inside):
        raise _wrong("type", f"must be one of text, json_object, {', '.join(inside)}")
    _only(given, ("type", inside.get(kind, "type")), "")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": ANY_OBJECT}
    value = given.get(kind)
    if kind in _TEXTS:
        if not isinstance(value, str) or not value:
            raise _wrong(kind, "must be text that is not empty")
        return {kind: value}
    if not isinstance(value, Mapping):
        raise _wrong(kind, "must be an object with 'name' and 'schema'")
    _only(value, ("schema", *_BESIDE_SCHEMA), f"{kind}.")
    schema = value.get("schema")
    if schema is None:
        return {"json_schema": ANY_OBJECT}
    if not isinstance(schema, Mapping):
        raise _wrong(f"{kind}.schema", "must be an object")
    return {"json_schema": msgspec.json.encode(schema).decode()}


def _only(given: Mapping[str, Any], names: tuple[str, ...], path: str) -> None:
    for name in given:
        if name not in names:
            where = f"response_format.{path}{name:.60}"
            raise ApiError(f"Unknown field '{where}'.", param=where, code="unknown_parameter")


def _wrong(path: str, what: str) -> ApiError:
    where = f"response_format.{path}"
    return ApiError(f"'{where}' {what}.", param=where, code="invalid_value")
