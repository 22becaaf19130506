"""OpenAI's API: chat completions and completions as streams, with the counts of its usage."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from triton_load.clients.base import Target, end, message, network_error
from triton_load.clients.connections import Http
from triton_load.data import Case
from triton_load.errors import LoadTestError
from triton_load.measure import Outcome

_OWN = ("model", "messages", "prompt", "stream", "stream_options")
_LINE = b"\n"


def base_path(host: str) -> str:
    """The path of the API on a host: `/v1`, behind what the URL itself says."""
    path = urlsplit(host).path.rstrip("/")
    return path if path.endswith("/v1") else f"{path}/v1"


def request_of(case: Case) -> tuple[str, dict[str, Any]]:
    """Which call a case is and its body, without the model and without what makes it a stream.

    Raises:
        LoadTestError: It is no text for this API; the text names the case and the field.
    """
    where = f"case '{case.name}'"
    texts: dict[str, str] = {}
    for item in case.inputs:
        values = item["data"]
        while isinstance(values, list) and len(values) == 1:
            values = values[0]
        if not isinstance(values, str):
            raise LoadTestError(
                f"{where}: input '{item['name']}' must be one text for OpenAI's API"
            )
        texts[item["name"]] = values
    for name in _OWN:
        if name in case.parameters:
            raise LoadTestError(
                f"{where}: parameter '{name}' is set by --client openai; leave it out"
            )
    body = dict(case.parameters)
    if "prompt" in texts:
        return "completions", {**body, "prompt": texts["prompt"]}
    return "chat/completions", {**body, "messages": _messages(texts, where)}


def _messages(texts: Mapping[str, str], where: str) -> list[Any]:
    if "messages" in texts:
        try:
            found = json.loads(texts["messages"])
        except ValueError as error:
            raise LoadTestError(f"{where}: input 'messages' is not JSON: {error}") from error
        if not isinstance(found, list):
            raise LoadTestError(f"{where}: input 'messages' must be a JSON list")
        return found
    found = [{"role": "user", "content": texts["user_message"]}]
    if "system_message" in texts:
        found.insert(0, {"role": "system", "content": texts["system_message"]})
    return found


class OpenAIClient:
    """`POST /v1/chat/completions`, or `/v1/completions` for a `prompt`, always as a stream.

    The moments of tokens are those of the events that bring text. How many tokens an event brings
    is not told: those of the usage are spread evenly over the events.
    """

    def __init__(self, target: Target) -> None:
        """Prepare; nothing is sent."""
        self._http = Http(target)
        self._base = base_path(target.host)
        self._stream = {
            "model": target.model.name,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""
        call, body = request_of(case)
        try:
            with self._http.post(f"{self._base}/{call}", body | self._stream) as response:
                if response.status_code == 200:
                    self._read(response, outcome)
                    return
                status, answer = response.status_code, bytes(response.read())
        except Exception as error:
            end(outcome, network_error(error))
            return
        end(outcome, (f"HTTP {status}", message(answer)))

    def _read(self, response: Any, outcome: Outcome) -> None:
        moments: list[float] = []
        done, reason, usage = False, None, None
        while line := bytes(response.readline(_LINE)):
            now = time.perf_counter()
            if not line.startswith(b"data:"):  # comments keep a connection open, and mean nothing
                continue
            outcome.text_bytes += len(line)
            text = line[5:].strip()
            if done := text == b"[DONE]":
                break
            event = _event(text)
            if event is None or "error" in event:
                end(outcome, ("error in a stream", message(text)))
                response.read()
                return
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason") or reason
                if _has_text(choice):
                    moments.append(now)
            outcome.ended = now
        response.read()
        _count(outcome, moments, usage)
        if not done or reason is None:
            what = "a reason" if done else "[DONE]"
            end(outcome, ("broken stream", f"it ended after {len(moments)} events without {what}"))

    def close(self) -> None:
        """Give up its connections."""
        self._http.close()


def _event(text: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _has_text(choice: Mapping[str, Any]) -> bool:
    """Whether a choice of an event brings tokens: text, thought or a call of a tool."""
    delta = choice.get("delta") or {}
    kinds = ("content", "reasoning_content", "tool_calls")
    return bool(choice.get("text") or any(delta.get(kind) for kind in kinds))


def _count(outcome: Outcome, moments: list[float], usage: Mapping[str, Any] | None) -> None:
    outcome.first = moments[0] if moments else None
    if usage is not None:
        outcome.prompt_tokens = usage.get("prompt_tokens")
        outcome.output_tokens = usage.get("completion_tokens")
    events = len(moments)
    total = max(outcome.output_tokens or 0, events)
    outcome.tokens = [
        (moment, (place + 1) * total // events - place * total // events)
        for place, moment in enumerate(moments)
    ]
