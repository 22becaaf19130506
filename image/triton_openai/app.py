"""The routes: chat completions, completions, embeddings, ranking, models and health."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router

from triton_openai import pooling
from triton_openai.catalog import Catalog, Model
from triton_openai.chat import ChatShape, messages_text
from triton_openai.completions import CompletionShape, prompts_of
from triton_openai.errors import ApiError, unavailable
from triton_openai.gate import Gate, Keys, log
from triton_openai.generation import Caller, pieces_of, questions, whole_answers
from triton_openai.pooling_types import Embedding, Rerank, Score, TeiRerank, read_pooling
from triton_openai.sse import ClientGone, EventStream, Receive, Send, unless_gone
from triton_openai.triton import Question, Triton
from triton_openai.types import Chat, Completion, Sampled, read_request

BODY_SECONDS = 30.0
TRACE_HEADERS = ("traceparent", "tracestate")
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


def make_app(*, triton: Triton, keys: Keys, max_body_bytes: int) -> Gate:
    """Return the ASGI application that serves the models of a Triton.

    Args:
        triton: The connection to it.
        keys: That clients need for `/v1`.
        max_body_bytes: Longest body of a request.
    """
    api = _Api(triton=triton, max_body_bytes=max_body_bytes)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completion, methods=["POST"]),
        Route("/v1/embeddings", api.embeddings, methods=["POST"]),
        Route("/v1/rerank", api.rerank, methods=["POST"]),
        Route("/v2/rerank", api.rerank, methods=["POST"]),
        Route("/rerank", api.tei_rerank, methods=["POST"]),
        Route("/v1/score", api.score, methods=["POST"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        Route("/health/live", api.live, methods=["GET"]),
    ]
    return Gate(Router(routes=routes, default=_no_route, redirect_slashes=False), keys=keys)


async def _no_route(scope: Any, receive: Receive, send: Send) -> None:
    raise ApiError(f"There is nothing at {scope['path']:.100}.", status=404, code="not_found")


class _Api:
    def __init__(self, *, triton: Triton, max_body_bytes: int) -> None:
        self._triton = triton
        self._catalog = Catalog(triton)
        self._max_body_bytes = max_body_bytes
        self._created = int(time.time())

    async def chat(self, request: Request) -> Any:
        wanted = read_request(await self._body(request), Chat)
        text = messages_text(wanted.messages)
        model = await self._catalog.get(wanted.model)
        asked = questions(
            model=model, tensor="messages", texts=[text], request=wanted, caller=_caller(request)
        )
        return await self._answer(request, wanted, model, asked, ChatShape(wanted, model))

    async def completion(self, request: Request) -> Any:
        wanted = read_request(await self._body(request), Completion)
        texts = prompts_of(wanted)
        model = await self._catalog.get(wanted.model)
        asked = questions(
            model=model, tensor="prompt", texts=texts, request=wanted, caller=_caller(request)
        )
        return await self._answer(request, wanted, model, asked, CompletionShape(wanted, model))

    async def embeddings(self, request: Request) -> Response:
        wanted = read_pooling(await self._body(request), Embedding)
        model = await self._catalog.get(wanted.model, task="embed")
        work = pooling.embeddings(self._triton, model, wanted, _caller(request))
        return _json(await unless_gone(request.receive, work))

    async def rerank(self, request: Request) -> Response:
        wanted = read_pooling(await self._body(request), Rerank)
        model = await self._catalog.get(wanted.model, task="rank")
        work = pooling.rerank(self._triton, model, wanted, _caller(request))
        return _json(await unless_gone(request.receive, work))

    async def tei_rerank(self, request: Request) -> Response:
        wanted = read_pooling(await self._body(request), TeiRerank)
        named = wanted.model is not None
        model = await (
            self._catalog.get(wanted.model or "", task="rank")
            if named
            else self._catalog.only("rank")
        )
        work = pooling.tei_rerank(self._triton, model, wanted, _caller(request))
        return _json(await unless_gone(request.receive, work))

    async def score(self, request: Request) -> Response:
        wanted = read_pooling(await self._body(request), Score)
        model = await self._catalog.get(wanted.model, task="rank")
        work = pooling.score(self._triton, model, wanted, _caller(request))
        return _json(await unless_gone(request.receive, work))

    async def models(self, request: Request) -> Response:
        cards = [model.card(self._created) for model in await self._catalog.list()]
        return _json({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        await self._catalog.list()
        model = await self._catalog.get(request.path_params["name"], task=None)
        return _json(model.card(self._created))

    async def health(self, request: Request) -> Response:
        if not await self._triton.ready():
            raise unavailable("Triton is not ready.")
        return Response()

    async def live(self, request: Request) -> Response:
        return Response()

    async def _answer(
        self,
        request: Request,
        wanted: Sampled,
        model: Model,
        asked: list[Question],
        shape: ChatShape | CompletionShape,
    ) -> Any:
        if not wanted.stream:
            work = whole_answers(self._triton, model, asked)
            return _json(shape.whole(await unless_gone(request.receive, work)))
        stream = EventStream(
            shape.chunks(pieces_of(self._triton, model, asked)),
            on_fault=lambda error: log(
                f"request={request.scope['request_id']} failed: {error!r:.500}"
            ),
        )
        await stream.begin(request.receive)
        return _Streamed(stream)

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    body += part
                    if len(body) > self._max_body_bytes:
                        raise ApiError(
                            f"The body is longer than {self._max_body_bytes} bytes.", status=413
                        )
        except TimeoutError:
            raise ApiError(
                f"The body did not arrive within {BODY_SECONDS:g} s.", status=408
            ) from None
        except ClientDisconnect:
            raise ClientGone from None
        return bytes(body)


class _Streamed:
    """A stream as a response of Starlette."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        await self._stream.send(receive, send, STREAM_HEADERS)


def _caller(request: Request) -> Caller:
    trace = {name: request.headers[name] for name in TRACE_HEADERS if name in request.headers}
    return Caller(request_id=request.scope["request_id"], trace=trace)


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
