"""Between Triton's tensors and Python values: inputs, parameters, answers and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from triton_hf.backend.clients import Responder
from triton_hf.errors import EngineError, RequestError, TritonHFError, error_code
from triton_hf.models.registry import TEXT, Task
from triton_hf.runtime import log
from triton_hf.serving.pooling import PoolingRow
from triton_hf.serving.service import Answer

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def read_inputs(request: Any, task: Task = TEXT) -> dict[str, list[bytes] | None]:
    """Return the rows of each text input, None for one that was not sent."""
    rows: dict[str, list[bytes] | None] = {}
    for name in task.inputs:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        rows[name] = None if tensor is None else [bytes(x) for x in tensor.as_numpy().reshape(-1)]
    return rows


def read_parameters(request: Any) -> str:
    """Return the parameters of a request as JSON.

    Raises:
        RequestError: They are no text.
    """
    try:
        return str(request.parameters())
    except UnicodeDecodeError:
        raise RequestError("the names and texts in 'parameters' must be UTF-8") from None


def text_response(answers: Sequence[Answer]) -> Any:
    """One response with a row for each answer."""
    return pb_utils.InferenceResponse(
        [
            _strings("text_output", [answer.text for answer in answers]),
            _strings("finish_reason", [answer.finish_reason for answer in answers]),
            _integers("prompt_tokens", [answer.prompt_tokens for answer in answers]),
            _integers("completion_tokens", [answer.completion_tokens for answer in answers]),
        ]
    )


def pooling_response(rows: Sequence[PoolingRow], task: Task) -> Any:
    """One response with a row for each text; the rows of a request are equally wide."""
    made = [_integers("prompt_tokens", [row.prompt_tokens for row in rows])]
    made += [_numbers(name, [row.values for row in rows]) for name in task.number_outputs]
    for name in task.text_outputs:
        cells = [[text.encode() for text in row.labels] for row in rows]
        made.append(pb_utils.Tensor(name, np.array(cells, dtype=np.object_)))
    return pb_utils.InferenceResponse(made)


def error_response(error: TritonHFError) -> Any:
    """An error with the code that makes Triton answer the right HTTP status."""
    return coded_error(str(error), error_code(error))


def coded_error(text: str, code: str) -> Any:
    """An error response from a text and the name of a code."""
    error = pb_utils.TritonError(text, getattr(pb_utils.TritonError, code))
    return pb_utils.InferenceResponse(output_tensors=[], error=error)


def _strings(name: str, values: list[str]) -> Any:
    rows = np.array([value.encode() for value in values], dtype=np.object_).reshape(-1, 1)
    return pb_utils.Tensor(name, rows)


def _integers(name: str, values: list[int]) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=np.int32).reshape(-1, 1))


def _numbers(name: str, values: list[tuple[float, ...]]) -> Any:
    return pb_utils.Tensor(name, np.array(values, dtype=np.float32))


def unexpected(error: Exception) -> Any:
    """Write a fault of ours to the log, cut, because a client may be in it; return its response."""
    log(f"request failed: {error!r:.500}")
    return error_response(EngineError("the server failed on this request; see its log"))


def answer(sender: Responder, make: Callable[[], Any], *, last: bool) -> None:
    """Send what `make` returns; an answer that cannot be made becomes an error, the last one.

    Nothing is raised: a client that cannot be answered is nobody else's fault.
    """
    try:
        try:
            response = make()
        except Exception as error:
            sender.send(unexpected(error), last=True)
        else:
            sender.send(response, last=last)
    except Exception as error:
        log(f"an answer could not be sent: {error!r:.500}")
