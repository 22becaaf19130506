"""What every request passes: its id, its key, the shape of its errors, and one line in the log."""

from __future__ import annotations

import hmac
import os
import re
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from triton_openai.errors import ApiError, unexpected
from triton_openai.sse import ClientGone, Receive, Send

App = Callable[[Any, Receive, Send], Awaitable[None]]
# What a client may name its request; it goes into logs and headers.
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# nginx's status for a client that closed its connection; only the log shows it.
CLIENT_GONE = 499
GUARDED = ("/v1/", "/v2/", "/rerank")  # what needs a key
# What probes ask every few seconds; it leaves no line in the log.
PROBED = ("/health", "/health/live")


class Keys:
    """The API keys: one a line in a file, which is read again when it changes, or one as text."""

    def __init__(self, *, file: Path | None = None, text: str = "") -> None:
        """Take keys from a file or from text; with neither, every request passes."""
        self._file = file
        self._changed: tuple[int, int] | None = None
        self._keys = _lines(text)
        self.needed = bool(file is not None or self._keys)
        self._read()

    def fits(self, header: bytes) -> bool:
        """Whether an `Authorization` header carries one of the keys."""
        self._read()
        scheme, _, key = header.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        # All are compared, so that the time says nothing about which is near.
        return any([hmac.compare_digest(key.strip(), known) for known in self._keys])

    def _read(self) -> None:
        if self._file is None:
            return
        found = os.stat(self._file)
        if (changed := (found.st_mtime_ns, found.st_ino)) != self._changed:
            self._keys = _lines(self._file.read_text("utf-8"))
            self._changed = changed


def _lines(text: str) -> list[bytes]:
    return [line.strip().encode() for line in text.splitlines() if line.strip()]


def log(text: str) -> None:
    """One line on stderr."""
    print(f"openai: {text}", file=sys.stderr, flush=True)


class Gate:
    """The outermost ASGI application."""

    def __init__(self, app: App, *, keys: Keys) -> None:
        """Let requests for `/v1` with a key through to `app`, all others as they are."""
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        started = time.monotonic()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}".encode()
        scope["request_id"] = name.decode()
        scope["app"] = self  # makes the router raise for a wrong method
        answer = _Answer(send, name)
        try:
            if scope["path"].startswith(GUARDED) and self._keys.needed:
                self._check(headers.get(b"authorization", b""))
            await self._app(scope, receive, answer.send)
        except ClientGone:
            answer.status = CLIENT_GONE
        except ApiError as error:
            await answer.fail(error)
        except HTTPException as error:
            await answer.fail(_of_router(error))
        except Exception as error:
            log(f"request={scope['request_id']} failed: {error!r:.500}")
            await answer.fail(unexpected())
        if scope["path"] not in PROBED:
            took = (time.monotonic() - started) * 1000
            log(
                f"{scope['method']} {scope['path'][:100]!r} {answer.status} {took:.1f} ms "
                f"request={scope['request_id']}"
            )

    def _check(self, header: bytes) -> None:
        if not header:
            raise _wrong_key("The API key is missing: send it as 'Authorization: Bearer KEY'.")
        if not self._keys.fits(header):
            raise _wrong_key("The API key in 'Authorization: Bearer KEY' is wrong.")


def _wrong_key(message: str) -> ApiError:
    return ApiError(message, status=401, code="invalid_api_key")


def _of_router(error: HTTPException) -> ApiError:
    return ApiError(f"{error.detail}.", status=error.status_code)


class _Answer:
    """The way back to the client; every answer carries the id of its request."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id)]
            message = {**message, "headers": headers}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Send an error, unless an answer has begun: then the connection ends in its middle."""
        if self.status:
            return
        body = msgspec.json.encode(error.body())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        headers += [(key.encode(), value.encode()) for key, value in error.headers().items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
