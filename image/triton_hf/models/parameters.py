"""The one table of parameters: name, type, range, default, meaning, and where each may be set.

Settings of a model and parameters of a request are read with it. The tables in
model_repository/README.md and the chart's schema are generated from it (`make generate`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

from triton_hf.errors import RequestError, SettingsError

MAX_TOKENS = 1_048_576
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 64
MAX_TOKEN_ID = 2**31 - 1
MAX_DOCUMENT = 65_536
MAX_BIASES = 1024
MAX_BIAS = 100.0


class Kind(Protocol):
    """The type and the range of a parameter."""

    def describe(self) -> str:
        """Say what a value must be, as in "a whole number from 1 to 8"."""

    def from_text(self, text: str) -> Any:
        """Read a value of config.pbtxt; raises ValueError."""

    def from_json(self, value: Any) -> Any:
        """Read a value of a request; raises ValueError."""

    def schema(self) -> Mapping[str, Any]:
        """Return the JSON schema of a value in a values file, where numbers may be text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integer:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def describe(self) -> str:
        return f"a whole number from {self.low} to {self.high}"

    def from_text(self, text: str) -> int:
        return self._checked(int(text))

    def from_json(self, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError
        return self._checked(value)

    def schema(self) -> Mapping[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def _checked(self, value: int) -> int:
        if not self.low <= value <= self.high:
            raise ValueError
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number from `low` to `high`; `above` excludes `low` itself."""

    low: float
    high: float
    above: bool = False

    def describe(self) -> str:
        return f"a number {'above' if self.above else 'from'} {self.low:g} to {self.high:g}"

    def from_text(self, text: str) -> float:
        return self._checked(float(text))

    def from_json(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError
        return self._checked(value)

    def schema(self) -> Mapping[str, Any]:
        low = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", low: self.low, "maximum": self.high}

    def _checked(self, value: float) -> float:
        good = math.isfinite(value) and value <= self.high
        if not good or not (value > self.low if self.above else value >= self.low):
            raise ValueError
        return float(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One of some words."""

    values: tuple[str, ...]

    def describe(self) -> str:
        return f"one of {', '.join(self.values)}"

    def from_text(self, text: str) -> str:
        if text not in self.values:
            raise ValueError
        return text

    def from_json(self, value: Any) -> str:
        return self.from_text(value)

    def schema(self) -> Mapping[str, Any]:
        return {"enum": list(self.values)}


class Flag:
    """True or false."""

    def describe(self) -> str:
        return "true or false"

    def from_text(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"

    def from_json(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def schema(self) -> Mapping[str, Any]:
        return {"type": "boolean"}


class Text:
    """Text that is not empty and not padded with spaces."""

    def describe(self) -> str:
        return "text that is not empty and not padded with spaces"

    def from_text(self, text: str) -> str:
        if not text or text != text.strip():
            raise ValueError
        return text

    def from_json(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return self.from_text(value)

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1}


class Document:
    """Text in a language of its own, of which this table knows only that it is there."""

    def describe(self) -> str:
        return f"text of 1 to {MAX_DOCUMENT} characters"

    def from_text(self, text: str) -> str:
        return self.from_json(text)

    def from_json(self, value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_DOCUMENT or "\0" in value:
            raise ValueError
        value.encode("utf-8")  # a lone surrogate is no text
        return value

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1}


class StopStrings:
    """One string, or a list of strings as JSON in a string, because parameters are scalars."""

    def describe(self) -> str:
        return (
            f"a string, or a JSON list of 1 to {MAX_STOP_STRINGS} strings in a string, "
            "none of them empty"
        )

    def from_text(self, text: str) -> tuple[str, ...]:
        return self.from_json(text)

    def from_json(self, value: Any) -> tuple[str, ...]:
        strings = _listed(value)
        good = isinstance(strings, list) and 1 <= len(strings) <= MAX_STOP_STRINGS
        if not good or not all(isinstance(item, str) and item for item in strings):
            raise ValueError
        return tuple(strings)

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1}


class StopTokens:
    """One token id, or a list of token ids as JSON in a string."""

    def describe(self) -> str:
        return (
            f"a whole number from 0 to {MAX_TOKEN_ID}, or a JSON list of 1 to "
            f"{MAX_STOP_TOKEN_IDS} of them in a string"
        )

    def from_text(self, text: str) -> frozenset[int]:
        return self.from_json(int(text) if text.isdigit() else text)

    def from_json(self, value: Any) -> frozenset[int]:
        numbers = _listed(value)
        good = isinstance(numbers, list) and 1 <= len(numbers) <= MAX_STOP_TOKEN_IDS
        if not good or not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in numbers):
            raise ValueError
        return frozenset(numbers)

    def schema(self) -> Mapping[str, Any]:
        return {"type": ["integer", "string"]}


class TokenBias:
    """A bias for each of some token ids, as a JSON object in a string."""

    def describe(self) -> str:
        return (
            f"a JSON object in a string of 1 to {MAX_BIASES} token ids with numbers from "
            f"-{MAX_BIAS:g} to {MAX_BIAS:g}"
        )

    def from_text(self, text: str) -> tuple[tuple[int, float], ...]:
        return self.from_json(text)

    def from_json(self, value: Any) -> tuple[tuple[int, float], ...]:
        if not isinstance(value, str):
            raise ValueError
        try:
            given = json.loads(value)
        except RecursionError:
            raise ValueError from None
        if not isinstance(given, dict) or not 1 <= len(given) <= MAX_BIASES:
            raise ValueError
        return tuple(_bias(token, bias) for token, bias in given.items())

    def schema(self) -> Mapping[str, Any]:
        return {"type": "string", "minLength": 1}


def _bias(token: str, bias: Any) -> tuple[int, float]:
    good = token.isascii() and token.isdecimal() and len(token) <= len(str(MAX_TOKEN_ID))
    if not good or isinstance(bias, bool) or not isinstance(bias, int | float):
        raise ValueError
    if not -MAX_BIAS <= bias <= MAX_BIAS:
        raise ValueError
    return int(token), float(bias)


class Mapped:
    """Names with any values, as a JSON object in a string; a values file takes a mapping."""

    def describe(self) -> str:
        return 'a JSON object, such as {"block_size": 16}'

    def from_text(self, text: str) -> dict[str, Any]:
        return self.from_json(json.loads(text))

    def from_json(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError
        return value

    def schema(self) -> Mapping[str, Any]:
        return {"type": "object"}


def _listed(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return [value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One row of the table.

    Attributes:
        name: As in config.pbtxt, in values and in requests.
        kind: Its type and range.
        meaning: One sentence for the documents.
        default: Its default as text for the documents; empty if there is none.
        model: Whether config.pbtxt may set it.
        request: Whether a request may set it.
    """

    name: str
    kind: Kind
    meaning: str
    default: str = ""
    model: bool = True
    request: bool = False

    def read_text(self, text: str) -> Any:
        """Read the value of config.pbtxt.

        Raises:
            SettingsError: It has the wrong type or range.
        """
        try:
            return self.kind.from_text(text)
        except (ValueError, TypeError):
            raise SettingsError(
                f"parameter '{self.name}' must be {self.kind.describe()}, got '{text}'"
            ) from None

    def read_json(self, value: Any) -> Any:
        """Read the value of a request.

        Raises:
            RequestError: It has the wrong type or range.
        """
        try:
            return self.kind.from_json(value)
        except (ValueError, TypeError, OverflowError):
            shown = json.dumps(value)
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            raise RequestError(
                f"parameter '{self.name}' must be {self.kind.describe()}, got {shown}"
            ) from None


def table(*parameters: Parameter) -> dict[str, Parameter]:
    """Return parameters by name, in their order."""
    return {parameter.name: parameter for parameter in parameters}
