"""What is sent: cases from a data file, each checked against the model before any load.

A data file is JSON. It holds the body of one infer call, `{"inputs": [...], "parameters": {...}}`,
or a list of such, or `{"cases": [...]}`; a case may also have a `name` and a `weight`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triton_load.errors import LoadTestError
from triton_load.schema import Model, Tensor

_INTEGERS: Mapping[str, tuple[int, int]] = {
    **{f"UINT{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
_WANTED = "write an infer call's body, {'inputs': [...]}, or a list of them"
_CASE_KEYS = {"name", "weight", "inputs", "parameters", "outputs", "id"}
_TENSOR_KEYS = {"name", "datatype", "shape", "data", "parameters"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of request: what is sent, and how often compared with the others.

    Attributes:
        name: For reports.
        weight: Its share of the requests, relative to the other cases'.
        inputs: Tensors as in an infer call: name, datatype, shape, data.
        parameters: Request parameters.
    """

    name: str
    weight: float
    inputs: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, Any]

    def body(self) -> dict[str, Any]:
        """The body of `POST /v2/models/M/infer`."""
        body: dict[str, Any] = {"inputs": [dict(item) for item in self.inputs]}
        if self.parameters:
            body["parameters"] = dict(self.parameters)
        return body

    def fields(self) -> dict[str, Any]:
        """The body of `/generate_stream`: tensors of one element as plain fields.

        Raises:
            LoadTestError: A tensor has more than one element.
        """
        fields: dict[str, Any] = {}
        for item in self.inputs:
            values = _flat(item["data"])
            if len(values) != 1:
                raise LoadTestError(
                    f"case '{self.name}': input '{item['name']}' has {len(values)} elements; "
                    "a stream takes one"
                )
            fields[item["name"]] = values[0]
        return fields | dict(self.parameters)


def read_cases(file: Path, model: Model, *, bodies: bool = False) -> tuple[Case, ...]:
    """Read the cases of a data file and check each against a model.

    With `bodies`, a case may also be the body of a call of OpenAI's API.

    Raises:
        LoadTestError: The file cannot be read, or a case does not fit: the text names the field.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        raise LoadTestError(f"cannot read the data {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LoadTestError(f"{file} is not JSON in UTF-8: {error}") from error
    try:
        document = json.loads(text)
    except ValueError as error:
        raise LoadTestError(f"{file} is not JSON: {error}{_as_lines(text)}") from error
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        raise LoadTestError(
            f"{file} is in perf_analyzer's format ({{'data': [...]}}), which is not read; {_WANTED}"
        )
    found = document.get("cases", [document]) if isinstance(document, dict) else document
    if not isinstance(found, list) or not found:
        raise LoadTestError(
            f"{file} must hold an infer call's body, a list of them, or {{'cases': [...]}}"
        )
    if bodies:
        found = [_from_body(item) for item in found]
    return tuple(_case(item, index, file, model) for index, item in enumerate(found))


def _from_body(item: Any) -> Any:
    """The body of a call of OpenAI's API as a case; anything else as it is."""
    if not isinstance(item, dict) or "inputs" in item:
        return item
    asked = [name for name in ("messages", "prompt") if name in item]
    if len(asked) != 1:
        return item
    left_out = (*asked, "name", "weight", "model", "stream", "stream_options")
    text = item["prompt"] if asked == ["prompt"] else json.dumps(item["messages"])
    tensor = {"name": asked[0], "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    return {key: item[key] for key in ("name", "weight") if key in item} | {
        "inputs": [tensor],
        "parameters": {key: value for key, value in item.items() if key not in left_out},
    }


def _as_lines(text: str) -> str:
    """What to add when a text is JSON Lines."""
    first, _, rest = text.strip().partition("\n")
    try:
        json.loads(first)
        json.loads(rest.strip().partition("\n")[0])
    except ValueError:
        return ""
    return f"; it is JSON Lines, of which none is read; {_WANTED}"


def _other_format(item: Any) -> str:
    """What to add when something is known that others call their data."""
    keys = set(item) if isinstance(item, dict) else set()
    known = {
        "OpenAI's API": {"prompt"} if "model" in keys else {"messages"},
        "ShareGPT": {"conversations"},
        "genai-perf": {"text_input"},
    }
    found = [name for name, wanted in known.items() if wanted <= keys]
    return f"; this is in the format of {found[0]}" if found else ""


def _case(item: Any, index: int, file: Path, model: Model) -> Case:
    where = f"{file}: case {index + 1}"
    if not isinstance(item, dict) or not isinstance(item.get("inputs"), list):
        raise LoadTestError(f"{where} needs 'inputs', a list of tensors{_other_format(item)}")
    if unknown := set(item) - _CASE_KEYS:
        raise LoadTestError(f"{where}: unknown key '{min(unknown)}'; known: {sorted(_CASE_KEYS)}")
    name, weight = item.get("name", f"case-{index + 1}"), item.get("weight", 1)
    number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise LoadTestError(f"{where}: 'weight' must be a number above 0, not {weight!r}")
    parameters = item.get("parameters", {})
    if not isinstance(name, str) or not isinstance(parameters, dict):
        raise LoadTestError(f"{where}: 'name' must be text and 'parameters' a map")
    case = Case(
        name=name, weight=float(weight), inputs=tuple(item["inputs"]), parameters=parameters
    )
    _check_case(case, f"{file}: case '{name}'", model)
    return case


def _check_case(case: Case, where: str, model: Model) -> None:
    given: dict[str, Mapping[str, Any]] = {}
    for item in case.inputs:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise LoadTestError(f"{where}: every input needs a 'name'")
        if item["name"] in given:
            raise LoadTestError(f"{where}: input '{item['name']}' is there twice")
        given[item["name"]] = item
    for name, item in given.items():
        known = ", ".join(sorted(model.inputs))
        if name not in model.inputs:
            raise LoadTestError(f"{where}: {model.name} has no input '{name}'; it has {known}")
        _check_tensor(item, model.inputs[name], model, f"{where}: input '{name}'")
    missing = [each.name for each in model.inputs.values() if not each.optional]
    for name in missing:
        if name not in given:
            raise LoadTestError(f"{where}: input '{name}' is required by {model.source}")
    texts = [name for name in ("user_message", "messages", "prompt") if name in model.inputs]
    if model.is_text_model and not set(texts) & set(given):
        wanted = " or ".join(f"'{name}'" for name in texts)
        raise LoadTestError(f"{where}: {model.name} needs {wanted}")
    batches = {item["shape"][0] for item in given.values()} if model.batch else set()
    if len(batches) > 1:
        raise LoadTestError(f"{where}: the inputs' batches differ: {sorted(batches)}")


def _check_tensor(item: Mapping[str, Any], tensor: Tensor, model: Model, where: str) -> None:
    if unknown := set(item) - _TENSOR_KEYS:
        raise LoadTestError(f"{where}: unknown key '{min(unknown)}'; known: {sorted(_TENSOR_KEYS)}")
    if item.get("datatype") != tensor.datatype:
        raise LoadTestError(
            f"{where}: datatype must be {tensor.datatype}, not {item.get('datatype')!r}"
        )
    shape = item.get("shape")
    sound = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not isinstance(shape, list) or not sound:
        raise LoadTestError(f"{where}: shape must be a list of sizes above 0, not {shape!r}")
    _check_shape(shape, tensor, model, where)
    if "data" not in item:
        raise LoadTestError(f"{where}: 'data' is missing")
    if not isinstance(item["data"], list):
        raise LoadTestError(f"{where}: 'data' must be a list, not {item['data']!r}")
    values = _flat(item["data"])
    if len(values) != math.prod(shape):
        raise LoadTestError(
            f"{where}: shape {shape} holds {math.prod(shape)} elements, data has {len(values)}"
        )
    for value in values:
        if problem := _problem(value, tensor.datatype):
            raise LoadTestError(f"{where}: data must be {problem}, not {value!r}")


def _check_shape(shape: list[int], tensor: Tensor, model: Model, where: str) -> None:
    wanted = ([-1] if model.batch else []) + list(tensor.dims)
    fits = len(shape) == len(wanted) and all(
        want in (-1, size) for want, size in zip(wanted, shape, strict=True)
    )
    if not fits:
        text = ",".join("N" if size == -1 else str(size) for size in wanted)
        raise LoadTestError(f"{where}: shape must be [{text}], not {shape}")
    if model.batch and shape[0] > model.batch:
        raise LoadTestError(f"{where}: batch {shape[0]} is above max_batch_size {model.batch}")


def _problem(value: Any, datatype: str) -> str | None:
    """What a value should have been, or None when it is right."""
    if datatype == "BYTES":
        return None if isinstance(value, str) else "text"
    if datatype == "BOOL":
        return None if isinstance(value, bool) else "true or false"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a number"
    if datatype in _INTEGERS:
        low, high = _INTEGERS[datatype]
        good = isinstance(value, int) and low <= value <= high
        return None if good else f"a whole number from {low} to {high}"
    return None


def _flat(data: Any) -> list[Any]:
    """The elements of a tensor, which may be nested as its shape or flat."""
    if not isinstance(data, list):
        return [data]
    return [value for item in data for value in _flat(item)]


def choose(cases: Sequence[Case], source: random.Random) -> Case:
    """One case, by the cases' weights."""
    if len(cases) == 1:
        return cases[0]
    return source.choices(cases, weights=[case.weight for case in cases])[0]
