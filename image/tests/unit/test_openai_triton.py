"""What OpenAI's API sends to Triton over gRPC, seen by a server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from triton_openai.errors import ApiError
from triton_openai.triton import Piece, Question, Triton

QUESTION = Question(
    model="m_stream",
    tensor="messages",
    text="é",
    parameters={"max_tokens": 3, "temperature": 0.5, "stop": '["a"]'},
    names={"max_tokens": "max_completion_tokens"},
    request_id="mine",
    trace={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
)


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers with two pieces, or an error, and keeps what it got."""

    def __init__(self, error: tuple[grpc.StatusCode, str] | None = None) -> None:
        self.error = error
        self.metadata: dict[str, str] = {}
        self.request: Any = None

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        self.metadata = dict(context.invocation_metadata())
        async for self.request in requests:
            if self.error:
                await context.abort(*self.error)
            for text, reason, number in (("a", "", 1), ("é", "stop", 300)):
                yield service_pb2.ModelStreamInferResponse(
                    infer_response=piece(text, reason, number)
                )
            # Triton's end of a decoupled answer has no outputs.
            yield service_pb2.ModelStreamInferResponse(
                infer_response=service_pb2.ModelInferResponse()
            )


def piece(text: str, reason: str, number: int) -> Any:
    response = service_pb2.ModelInferResponse()
    values = {
        "completion_tokens": number.to_bytes(4, "little"),
        "prompt_tokens": (2).to_bytes(4, "little"),
        "finish_reason": len(reason.encode()).to_bytes(4, "little") + reason.encode(),
        "text_output": len(text.encode()).to_bytes(4, "little") + text.encode(),
    }
    for name, raw in values.items():
        response.outputs.add(name=name)
        response.raw_output_contents.append(raw)
    return response


def against(recorder: Recorder, call: Callable[[Triton], Coroutine[Any, Any, Any]]) -> Any:
    async def run() -> Any:
        server = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        triton = Triton(address=f"127.0.0.1:{port}", secrets={"api-key": "sk"})
        try:
            return await call(triton)
        finally:
            await triton.close()
            await server.stop(None)

    return asyncio.run(run())


async def collect(triton: Triton) -> list[Piece]:
    return [item async for item in triton.pieces(QUESTION)]


def test_ids_traces_and_secrets_are_metadata_and_sampling_is_parameters() -> None:
    recorder = Recorder()
    against(recorder, collect)
    expected = {
        **QUESTION.trace,
        "x-request-id": "mine",
        "triton-grpc-protocol-api-key": "sk",
        "triton_grpc_error": "true",
    }
    assert recorder.metadata.items() >= expected.items()
    request = recorder.request
    assert (request.model_name, request.id) == ("m_stream", "mine")
    assert request.raw_input_contents[0][4:].decode() == "é"
    assert request.parameters["max_tokens"].int64_param == 3
    assert request.parameters["temperature"].double_param == 0.5
    assert request.parameters["stop"].string_param == '["a"]'


def test_pieces_are_read_whatever_the_order_of_the_outputs() -> None:
    first, last = against(Recorder(), collect)
    assert first == Piece(text="a", finish_reason="", prompt_tokens=2, completion_tokens=1)
    assert last == Piece(text="é", finish_reason="stop", prompt_tokens=2, completion_tokens=300)


def test_an_error_of_a_stream_has_its_status_and_the_clients_name_of_the_field() -> None:
    refused = Recorder((grpc.StatusCode.INVALID_ARGUMENT, "parameter 'max_tokens' must be"))
    with pytest.raises(ApiError, match="'max_completion_tokens' must be") as caught:
        against(refused, collect)
    assert (caught.value.status, caught.value.param) == (400, "max_completion_tokens")
    full = Recorder((grpc.StatusCode.UNAVAILABLE, "the queue is full; try again in 4 s"))
    with pytest.raises(ApiError) as caught:
        against(full, collect)
    assert (caught.value.status, caught.value.retry_after) == (503, 4)
