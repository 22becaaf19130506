"""Triton's side: one question in tensors over gRPC, and its answer whole or in pieces."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

# gRPC reads it when it is imported. Its newer event engine passes each message through one more
# thread: 130 us of processor time for a token instead of 75 (grpcio 1.85).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")

import grpc
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from triton_openai.errors import ApiError, from_triton

# Without it a stream reports an error as text alone, without its status.
STREAM_STATUS = {"triton_grpc_error": "true"}
OUTPUTS = ("text_output", "finish_reason", "prompt_tokens", "completion_tokens")
_STATUS = re.compile(r"^(?:StatusCode\.)?([A-Z_]+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What a model is asked.

    Attributes:
        model: Name of the model in Triton.
        tensor: Input that carries it: `messages` or `prompt`.
        text: Its value.
        parameters: Request parameters; scalars.
        names: For parameters that the client sent under another name: that name.
        request_id: Of the client's request.
        trace: Headers of the client's trace, which Triton goes on with.
    """

    model: str
    tensor: str
    text: str
    parameters: Mapping[str, str | int | float | bool]
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    request_id: str = ""
    trace: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """New text of an answer; the last piece has a finish reason. Tokens are those so far."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """Several rows for a model whose answers are no text in pieces.

    Attributes:
        model: Name of the model in Triton.
        columns: Input -> its text for each row.
        parameters: Request parameters; scalars.
        request_id: Of the client's request.
        trace: Headers of the client's trace, which Triton goes on with.
    """

    model: str
    columns: Mapping[str, list[str]]
    parameters: Mapping[str, str | int | float | bool]
    request_id: str = ""
    trace: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Triton:
    """A connection to one Triton."""

    def __init__(self, *, address: str, secrets: Mapping[str, str] | None = None) -> None:
        """Connect to `HOST:PORT` with the first call.

        Args:
            address: Of its gRPC port.
            secrets: Header -> value, for the APIs that Triton serves only with it.
        """
        self._client = triton.InferenceServerClient(address)
        self._headers = {
            f"triton-grpc-protocol-{name}": value for name, value in (secrets or {}).items()
        }

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def ready(self) -> bool:
        """Whether Triton and all its models are ready."""
        try:
            return bool(await self._client.is_server_ready(client_timeout=2))
        except InferenceServerException:
            return False

    async def ready_models(self) -> list[str]:
        """Return the names of the models that are ready.

        Raises:
            ApiError: Triton does not answer.
        """
        try:
            index = await self._client.get_model_repository_index(
                headers=self._headers, client_timeout=5
            )
        except InferenceServerException as error:
            raise _api_error(error) from None
        return sorted({entry.name for entry in index.models if entry.state == "READY"})

    async def config(self, model: str) -> Any:
        """Return the `ModelConfig` message of a model.

        Raises:
            ApiError: There is no such model, or Triton does not answer.
        """
        try:
            answer = await self._client.get_model_config(
                model, headers=self._headers, client_timeout=5
            )
        except InferenceServerException as error:
            raise _api_error(error) from None
        return answer.config

    async def whole(self, question: Question) -> Piece:
        """Ask and return the whole answer; cancelling the task cancels the request.

        Raises:
            ApiError: Triton or the model refused or failed.
        """
        try:
            result = await self._client.infer(
                **_request(question), headers={**self._headers, **_passed_on(question)}
            )
        except InferenceServerException as error:
            raise _api_error(error, question) from None
        return _piece(result.get_response())

    async def rows(self, asked: Rows) -> dict[str, Any]:
        """Ask for rows and return the outputs as arrays by name.

        Raises:
            ApiError: Triton or the model refused or failed.
        """
        try:
            result = await self._client.infer(
                model_name=asked.model,
                inputs=[_texts(name, texts) for name, texts in asked.columns.items()],
                request_id=asked.request_id,
                parameters=dict(asked.parameters),
                headers={**self._headers, **_passed_on(asked)},
            )
        except InferenceServerException as error:
            raise _api_error(error) from None
        names = [output.name for output in result.get_response().outputs]
        return {name: result.as_numpy(name) for name in names}

    async def pieces(self, question: Question) -> AsyncIterator[Piece]:
        """Ask a decoupled model and yield its answer; closing the iterator cancels the request.

        Raises:
            ApiError: Triton or the model refused or failed.
        """

        async def once() -> AsyncIterator[dict[str, Any]]:
            yield _request(question)

        headers = {**self._headers, **_passed_on(question), **STREAM_STATUS}
        answers = self._client.stream_infer(once(), headers=headers)
        try:
            async for result, error in answers:
                if error is not None:
                    raise _api_error(error, question)
                if (response := result.get_response()).outputs:
                    yield _piece(response)
        except grpc.RpcError as error:
            raise from_triton(
                error.details() or "", error.code().name, names=dict(question.names)
            ) from None
        finally:
            answers.cancel()


def _request(question: Question) -> dict[str, Any]:
    tensor = triton.InferInput(question.tensor, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[question.text.encode()]], dtype=np.object_))
    return {
        "model_name": question.model,
        "inputs": [tensor],
        "request_id": question.request_id,
        "parameters": dict(question.parameters),
    }


def _texts(name: str, texts: list[str]) -> Any:
    tensor = triton.InferInput(name, [len(texts), 1], "BYTES")
    cells = [[text.encode()] for text in texts]
    tensor.set_data_from_numpy(np.array(cells, dtype=np.object_))
    return tensor


def _passed_on(question: Question | Rows) -> dict[str, str]:
    return {"x-request-id": question.request_id, **question.trace}


def _piece(response: Any) -> Piece:
    """Read one row of a response; by hand, because it happens for every token."""
    raw = dict(
        zip((item.name for item in response.outputs), response.raw_output_contents, strict=True)
    )
    text, reason, prompt, completion = (raw[name] for name in OUTPUTS)
    # A text is its length in 4 bytes and itself; a number is 4 bytes.
    return Piece(
        text=text[4:].decode(),
        finish_reason=reason[4:].decode(),
        prompt_tokens=int.from_bytes(prompt, "little"),
        completion_tokens=int.from_bytes(completion, "little"),
    )


def _api_error(error: InferenceServerException, question: Question | None = None) -> ApiError:
    status = _STATUS.match(error.status() or "")
    return from_triton(
        error.message() or "",
        status[1] if status else "INTERNAL",
        names=dict(question.names) if question else None,
    )
