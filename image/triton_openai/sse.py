"""Server-sent events, and clients that go away: then the work for them is cancelled at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from triton_openai.errors import ApiError, unexpected

# A request that is refused is refused at once, with its status. Only a long queue or prompt takes
# so long; then the stream begins without knowing whether it will fail.
FIRST_SECONDS = 10.0
# Proxies close connections that are silent for 30 to 60 s.
KEEP_ALIVE_SECONDS = 10.0
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Result = TypeVar("Result")


class ClientGone(Exception):  # noqa: N818 - nothing is wrong
    """The client closed its connection; nobody reads an answer."""


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`; cancel it when the client goes away.

    Raises:
        ClientGone: The client has gone.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await end(task, gone)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream:
    """An answer of events; chunks that come together are sent together."""

    def __init__(
        self,
        chunks: AsyncIterator[Sequence[dict[str, Any]]],
        *,
        on_fault: Callable[[Exception], None],
    ) -> None:
        """Stream these chunks; `on_fault` hears of errors that are not the client's."""
        self._chunks = chunks
        self._on_fault = on_fault
        self._first: asyncio.Task[Sequence[dict[str, Any]] | None] | None = None
        self._sent = 0.0
        self.status = 200

    async def begin(self, receive: Receive) -> None:
        """Wait for the first chunks, so that an early error has its status.

        Raises:
            ApiError: The request was refused.
            ClientGone: The client has gone.
        """
        self._first = asyncio.create_task(self._next())
        gone = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait(
                {self._first, gone}, timeout=FIRST_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if self._first.done():
                self._first.result()
            elif gone.done():
                raise ClientGone
        except BaseException:
            await self._close()
            raise
        finally:
            await end(gone)

    async def send(self, receive: Receive, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """Send everything.

        Raises:
            ClientGone: The client has gone.
        """
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        pump = asyncio.create_task(self._pump(send, start))
        gone = asyncio.create_task(disconnected(receive))
        beat = asyncio.create_task(self._keep_alive(send))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                raise ClientGone
            pump.result()
        finally:
            await end(beat, gone, pump)
            await self._close()

    async def _pump(self, send: Send, start: dict[str, Any]) -> None:
        await send(start)
        try:
            assert self._first is not None  # noqa: S101 - begin() comes first
            chunks = await self._first
            while chunks is not None:
                await self._send(send, b"".join(_event(chunk) for chunk in chunks))
                chunks = await self._next()
            await self._send(send, DONE)
        except ApiError as error:
            await self._send(send, _event(error.body()))
        except Exception as error:  # the status is sent already; the client gets an event
            self._on_fault(error)
            await self._send(send, _event(unexpected().body()))
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        self._sent = time.monotonic()
        while True:
            silent = time.monotonic() - self._sent
            if silent < KEEP_ALIVE_SECONDS:
                await asyncio.sleep(KEEP_ALIVE_SECONDS - silent)
            else:
                await self._send(send, KEEP_ALIVE)

    async def _send(self, send: Send, data: bytes) -> None:
        self._sent = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _next(self) -> Sequence[dict[str, Any]] | None:
        return await anext(self._chunks, None)

    async def _close(self) -> None:
        if self._first is not None:
            await end(self._first)
        with contextlib.suppress(Exception):
            await self._chunks.aclose()  # type: ignore[attr-defined]


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"
