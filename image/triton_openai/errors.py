"""The one kind of error that a client sees, with OpenAI's body and the right status."""

from __future__ import annotations

import re
from typing import Any

# Words of a model or of Triton that name the field at fault.
_PARAMETER = re.compile(r"parameter '([a-z_]+)'")
_INPUT = re.compile(r"input '([a-z_]+)'")
_AGAIN = re.compile(r"try again in (\d+) s")
_TOO_LONG = re.compile(r"this model takes at most \d+")
_MESSAGE = re.compile(r"entry (\d+) of input 'messages'")


class ApiError(Exception):
    """A request that was not answered; `str(error)` is one sentence for the person who sent it.

    Attributes:
        status: HTTP status.
        kind: OpenAI's `type` of the error.
        param: The field at fault, or None.
        code: OpenAI's `code` of the error, or None.
        retry_after: Seconds after which the same request may work, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Keep the sentence and what goes with it."""
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return the body of the answer, or the data of the event."""
        return {
            "error": {
                "message": str(self),
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def unavailable(message: str, *, retry_after: int = 1) -> ApiError:
    """Return the error of a server that cannot take the request now."""
    return ApiError(
        message, status=503, kind="server_error", code="unavailable", retry_after=retry_after
    )


def model_not_found(name: str) -> ApiError:
    """Return the error of a model that is not there."""
    return ApiError(
        f"The model '{name:.100}' does not exist or is not ready; GET /v1/models lists the models.",
        status=404,
        param="model",
        code="model_not_found",
    )


def unexpected() -> ApiError:
    """Return the error of a fault of ours; its cause is in the log only."""
    return ApiError(
        "The server failed on this request; see its log.", status=500, kind="server_error"
    )


def from_triton(message: str, status: str, *, names: dict[str, str] | None = None) -> ApiError:
    """Turn an error of Triton or of the model into the client's.

    Args:
        message: Its words.
        status: Name of the gRPC status, such as `INVALID_ARGUMENT`.
        names: For parameters that the client sent under another name: that name.
    """
    if status == "INVALID_ARGUMENT":
        return _invalid(message, names or {})
    if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        if "failed to connect" in message or "Socket closed" in message:
            return unavailable("Triton does not answer: it is starting, or it has ended.")
        again = _AGAIN.search(message)
        return unavailable(message, retry_after=int(again[1]) if again else 1)
    if status == "NOT_FOUND":
        return ApiError(message, status=404, param="model", code="model_not_found")
    if status == "DEADLINE_EXCEEDED":
        return ApiError(message, status=504, kind="server_error", code="timeout")
    return ApiError(message, status=500, kind="server_error")


def _invalid(message: str, names: dict[str, str]) -> ApiError:
    parameter = _PARAMETER.search(message)
    code = None
    if _TOO_LONG.search(message):
        code = "context_length_exceeded"
    elif parameter and message.startswith("unknown parameter"):
        code = "unsupported_parameter"
    if parameter:
        sent = names.get(parameter[1], parameter[1])
        message = message.replace(f"'{parameter[1]}'", f"'{sent}'")
        return ApiError(message, param=sent, code=code)
    if entry := _MESSAGE.search(message):
        return ApiError(message, param=f"messages[{entry[1]}]", code=code)
    given = _INPUT.search(message)
    return ApiError(message, param=given[1] if given else None, code=code)
