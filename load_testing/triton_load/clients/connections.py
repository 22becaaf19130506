"""POST requests over connections of their own, as distinct users make them, or over kept ones."""

from __future__ import annotations

import contextlib
import functools
import json
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

from triton_load.clients.base import Target

_KEPT = 10_000  # kept connections of a user; an open loop may need one for each request


class Http:
    """POST requests with the library that Locust uses, each alone or over kept connections."""

    def __init__(self, target: Target) -> None:
        """Prepare; nothing is sent."""
        self._target = target
        self._headers = {"Content-Type": "application/json", **target.headers}
        self._kept: Any = None
        if target.keep_alive:
            self._kept = self._client(concurrency=_KEPT)
        else:
            self._headers["Connection"] = "close"

    @contextlib.contextmanager
    def post(self, path: str, body: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the response to a body sent as JSON; its connection ends with the block."""
        client = self._kept or self._client(concurrency=1)
        try:
            data = json.dumps(body).encode()
            yield client.request("POST", path, body=data, headers=self._headers)
        finally:
            if client is not self._kept:
                client.close()

    def close(self) -> None:
        """Give up kept connections."""
        if self._kept is not None:
            self._kept.close()

    def _client(self, *, concurrency: int) -> Any:
        from geventhttpclient import HTTPClient

        return HTTPClient.from_url(
            self._target.host,
            concurrency=concurrency,
            connection_timeout=self._target.timeout,
            network_timeout=self._target.timeout,
            ssl_context_factory=self._context,
            insecure=self._target.insecure,  # else it makes our context strict again
            block_size=65536,
        )

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._target.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _context(self, *_: Any, **__: Any) -> ssl.SSLContext:
        return self._tls
