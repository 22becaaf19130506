"""Triton over HTTP: whole answers, and streams of tokens."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from triton_load.clients.base import Target, end, message, network_error, total
from triton_load.clients.connections import Http
from triton_load.data import Case
from triton_load.errors import LoadTestError
from triton_load.measure import Outcome

_COMPLETION = re.compile(rb'"completion_tokens" ?: ?(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens" ?: ?(\d+)')
_FINISH = re.compile(rb'"finish_reason" ?: ?"([^"]+)"')
_LINE = b"\n"


def check_json(case: Case) -> None:
    """Check that Triton takes a case as JSON.

    Raises:
        LoadTestError: It does not: JSON has no half-precision numbers.
    """
    for item in case.inputs:
        if item["datatype"] in ("FP16", "BF16"):
            raise LoadTestError(
                f"case '{case.name}': input '{item['name']}' is {item['datatype']}, which Triton "
                "takes in no JSON; use --client grpc"
            )


class InferClient:
    """`POST /v2/models/M/infer`: the whole answer at once."""

    def __init__(self, target: Target) -> None:
        """Prepare; nothing is sent."""
        self._http = Http(target)
        self._path = f"/v2/models/{target.model.name}/infer"

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""
        try:
            with self._http.post(self._path, case.body()) as response:
                status, answer = response.status_code, bytes(response.read())
        except Exception as error:
            end(outcome, network_error(error))
            return
        outcome.ended = time.perf_counter()
        outcome.text_bytes = len(answer)
        if status != 200:
            outcome.error = (f"HTTP {status}", message(answer))
            return
        try:
            outputs = {item["name"]: item["data"] for item in json.loads(answer)["outputs"]}
        except (ValueError, KeyError, TypeError):
            outcome.error = ("not an answer", message(answer))
            return
        outcome.prompt_tokens = total(outputs.get("prompt_tokens"))
        outcome.output_tokens = total(outputs.get("completion_tokens"))

    def close(self) -> None:
        """Give up its connections."""
        self._http.close()


class StreamClient:
    """`POST /v2/models/M/generate_stream`: each event is timed when its line is complete.

    Lines are read from the socket's own buffer: reading through Locust's `iter_lines` would hold
    events back until 1,024 bytes are there, and with them every time to first token.
    """

    def __init__(self, target: Target) -> None:
        """Prepare; nothing is sent."""
        self._http = Http(target)
        self._path = f"/v2/models/{target.stream}/generate_stream"
        self._counts = "completion_tokens" in target.model.outputs
        self._finishes = "finish_reason" in target.model.outputs

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""
        try:
            with self._http.post(self._path, case.fields()) as response:
                if response.status_code == 200:
                    self._read(response, outcome)
                    return
                status, answer = response.status_code, bytes(response.read())
        except Exception as error:
            end(outcome, network_error(error))
            return
        end(outcome, (f"HTTP {status}", message(answer)))

    def _read(self, response: Any, outcome: Outcome) -> None:
        known, finished = 0, False
        while line := bytes(response.readline(_LINE)):
            now = time.perf_counter()
            if not line.startswith(b"data:"):
                continue
            outcome.text_bytes += len(line)
            found = _COMPLETION.search(line)
            if found is None and self._counts:
                end(outcome, ("error in a stream", message(line[5:])))
                response.read()
                return
            count = int(found[1]) if found else known + 1
            if count > known:
                outcome.tokens.append((now, count - known))
                outcome.first = outcome.first or now
                known = count
            outcome.ended = now
            if prompt := _PROMPT.search(line):
                outcome.prompt_tokens = int(prompt[1])
            finished = finished or _FINISH.search(line) is not None
        outcome.output_tokens = known if self._counts else None
        if self._finishes and not finished:
            end(outcome, ("broken stream", f"it ended after {known} tokens without a reason"))
        elif not outcome.ended:
            end(outcome, ("broken stream", "it ended without an event"))

    def close(self) -> None:
        """Give up its connections."""
        self._http.close()
