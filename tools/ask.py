"""Ask a model one question by HTTP, the way a user's first curl does."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Door:
    """Where HTTP requests go in: an address and the host name that the ingress routes by."""

    address: str
    port: int
    host: str

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        timeout: float = 120.0,
    ) -> tuple[int, bytes]:
        """Send one request on a connection of its own, never again; return status and body."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=timeout)
        try:
            sent = {"Host": self.host, "Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def infer(
        self, model: str, user: str, *, system: str | None = None, **parameters: Any
    ) -> dict[str, Any]:
        """Ask `/v2/models/<model>/infer`; return outputs by name.

        Raises:
            AssertionError: when the status is not 200; the text holds the server's answer.
        """
        status, body = self.request(
            "POST", f"/v2/models/{model}/infer", question(user, system=system, **parameters)
        )
        if status != 200:
            raise AssertionError(f"{model} answered {status}: {body.decode(errors='replace')}")
        return {
            output["name"]: output["data"][0] if len(output["data"]) == 1 else output["data"]
            for output in json.loads(body)["outputs"]
        }


def question(user: str, *, system: str | None = None, **parameters: Any) -> bytes:
    """Return the body of an infer call: BYTES tensors of shape [1, 1]."""
    texts = {"system_message": system, "user_message": user}
    inputs = [
        {"name": name, "datatype": "BYTES", "shape": [1, 1], "data": [[text]]}
        for name, text in texts.items()
        if text is not None
    ]
    return json.dumps({"inputs": inputs, "parameters": parameters}).encode()
