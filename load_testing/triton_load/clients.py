"""One request each: whole over HTTP, as a stream of tokens, or whole over gRPC.

A client sends one case and fills in an Outcome; it raises nothing for what a server or a network
does. A connection is made for each request, as distinct users would, so that a Service spreads them
over its pods and none is pinned to an old one; `keep_alive` reuses them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from triton_load.data import Case
from triton_load.errors import LoadTestError
from triton_load.measure import Outcome
from triton_load.schema import Model

CLIENTS = ("infer", "stream", "grpc")
_COMPLETION = re.compile(rb'"completion_tokens" ?: ?(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens" ?: ?(\d+)')
_FINISH = re.compile(rb'"finish_reason" ?: ?"([^"]+)"')
_LINE = b"\n"
_KEPT = 10_000  # kept connections of a user; an open loop may need one for each request
_CHECK_SECONDS = 10.0
_EXAMPLE = 200  # characters of an error that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go.

    Attributes:
        host: Base URL: http://NAME[:PORT] or https://...
        grpc: HOST:PORT of the gRPC service; only for the gRPC client.
        model: What the model takes and gives.
        stream: Name of the model that streams.
        timeout: Longest silence of the server in seconds before a request has failed.
        keep_alive: Reuse connections.
        insecure: Accept any TLS certificate.
        headers: Added to each request, for example an API key.
    """

    host: str
    grpc: str
    model: Model
    stream: str
    timeout: float
    keep_alive: bool
    insecure: bool
    headers: Mapping[str, str]


class Client(Protocol):
    """Sends cases, one at a time."""

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""

    def close(self) -> None:
        """Give up its connections."""


def make(kind: str, target: Target) -> Client:
    """Return the client of a kind; see `CLIENTS`."""
    if kind == "infer":
        return InferClient(target)
    if kind == "stream":
        return StreamClient(target)
    return GrpcClient(target)


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
            _end(outcome, _network_error(error))
            return
        outcome.ended = time.perf_counter()
        outcome.text_bytes = len(answer)
        if status != 200:
            outcome.error = (f"HTTP {status}", _message(answer))
            return
        try:
            outputs = {item["name"]: item["data"] for item in json.loads(answer)["outputs"]}
        except (ValueError, KeyError, TypeError):
            outcome.error = ("not an answer", _message(answer))
            return
        outcome.prompt_tokens = _total(outputs.get("prompt_tokens"))
        outcome.output_tokens = _total(outputs.get("completion_tokens"))

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
            _end(outcome, _network_error(error))
            return
        _end(outcome, (f"HTTP {status}", _message(answer)))

    def _read(self, response: Any, outcome: Outcome) -> None:
        known, finished = 0, False
        while line := bytes(response.readline(_LINE)):
            now = time.perf_counter()
            if not line.startswith(b"data:"):
                continue
            outcome.text_bytes += len(line)
            found = _COMPLETION.search(line)
            if found is None and self._counts:
                _end(outcome, ("error in a stream", _message(line[5:])))
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
            _end(outcome, ("broken stream", f"it ended after {known} tokens without a reason"))
        elif not outcome.ended:
            _end(outcome, ("broken stream", "it ended without an event"))

    def close(self) -> None:
        """Give up its connections."""
        self._http.close()


class GrpcClient:
    """ModelInfer over gRPC with Triton's own client: the whole answer at once."""

    def __init__(self, target: Target) -> None:
        """Prepare; gRPC must have been told of gevent (`prepare_grpc`) before.

        Raises:
            LoadTestError: There is no gRPC address.
        """
        import tritonclient.grpc as triton

        if not target.grpc:
            raise LoadTestError("--client grpc needs --grpc-host HOST:PORT")
        self._target = target
        self._kept = self._open() if target.keep_alive else None
        self._outputs = [
            triton.InferRequestedOutput(name)
            for name in target.model.outputs
            if name in ("prompt_tokens", "completion_tokens", "text_output")
        ] or None
        self._headers = {name.lower(): value for name, value in target.headers.items()} or None

    def _open(self) -> Any:
        import tritonclient.grpc as triton

        # Channels to one address would share a connection.
        alone = [("grpc.use_local_subchannel_pool", 1)]
        return triton.InferenceServerClient(url=self._target.grpc, channel_args=alone)

    @contextlib.contextmanager
    def _channel(self) -> Iterator[Any]:
        """Yield the kept channel, or one that ends with the block."""
        channel = self._kept or self._open()
        try:
            yield channel
        finally:
            if channel is not self._kept:
                channel.close()

    def send(self, case: Case, outcome: Outcome) -> None:
        """Send a case and fill in what came of it."""
        import tritonclient.utils as triton

        try:
            with self._channel() as channel:
                answer = channel.infer(
                    self._target.model.name,
                    grpc_inputs(case),
                    outputs=self._outputs,
                    parameters=dict(case.parameters) or None,
                    headers=self._headers,
                    client_timeout=self._target.timeout,
                )
                outcome.ended = time.perf_counter()
        except triton.InferenceServerException as error:
            name = (error.status() or "gRPC error").replace("StatusCode.", "gRPC ")
            _end(outcome, (name, _short(str(error.message()))))
            return
        except Exception as error:
            _end(outcome, _network_error(error))
            return
        outcome.prompt_tokens = self._count(answer, "prompt_tokens")
        outcome.output_tokens = self._count(answer, "completion_tokens")

    def ready(self) -> bool:
        """Whether the server says that the model is ready."""
        with self._channel() as channel:
            return bool(
                channel.is_model_ready(
                    self._target.model.name, headers=self._headers, client_timeout=_CHECK_SECONDS
                )
            )

    @staticmethod
    def _count(answer: Any, name: str) -> int | None:
        array = answer.as_numpy(name)
        return None if array is None else int(array.sum())

    def close(self) -> None:
        """Close the kept channel."""
        if self._kept is not None:
            self._kept.close()


def check_grpc(target: Target) -> None:
    """Ask over gRPC whether the model is ready, because another port may answer than that of HTTP.

    Raises:
        LoadTestError: It is not, or what listens there is no gRPC server, or wants TLS.
    """
    import tritonclient.utils as triton

    client, name = GrpcClient(target), target.model.name
    try:
        ready = client.ready()
    except triton.InferenceServerException as error:
        raise LoadTestError(
            f"{target.grpc} does not answer gRPC calls about '{name}': "
            f"{_short(str(error.message()))}; check --grpc-host (TLS is not supported there)"
        ) from error
    finally:
        client.close()
    if not ready:
        raise LoadTestError(
            f"{target.grpc} serves no ready model '{name}' over gRPC; check --grpc-host and --model"
        )


def prepare_grpc() -> None:
    """Make gRPC work with gevent; before its first use in a process."""
    from grpc.experimental import gevent

    gevent.init_gevent()


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


def grpc_inputs(case: Case) -> list[Any]:
    """The tensors of a case for tritonclient."""
    import numpy
    import tritonclient.grpc as triton
    from tritonclient.utils import triton_to_np_dtype

    tensors = []
    for item in case.inputs:
        tensor = triton.InferInput(item["name"], item["shape"], item["datatype"])
        if item["datatype"] == "BYTES":
            flat = numpy.array(item["data"], dtype=object).reshape(-1)
            values = numpy.array([text.encode() for text in flat], dtype=object)
        else:
            kind = triton_to_np_dtype(item["datatype"])
            values = numpy.array(item["data"], dtype=kind).reshape(-1)
        tensor.set_data_from_numpy(values.reshape(item["shape"]))
        tensors.append(tensor)
    return tensors


def _end(outcome: Outcome, error: tuple[str, str]) -> None:
    outcome.ended = time.perf_counter()
    outcome.error = error


def _network_error(error: Exception) -> tuple[str, str]:
    import socket

    if isinstance(error, TimeoutError | socket.timeout):
        name = "time-out"
    elif isinstance(error, ssl.SSLError):
        name = "TLS"
    elif isinstance(error, ConnectionRefusedError):
        name = "connection refused"
    elif isinstance(error, ConnectionError) or "closed" in type(error).__name__.lower():
        name = "connection lost"
    elif isinstance(error, OSError):
        name = "network"
    else:
        name = type(error).__name__
    return name, _short(str(error) or type(error).__name__)


def _message(answer: bytes) -> str:
    try:
        return _short(str(json.loads(answer)["error"]))
    except (ValueError, KeyError, TypeError):
        return _short(answer.decode("utf-8", "replace") or "no text")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EXAMPLE else line[: _EXAMPLE - 3] + "..."


def _total(values: Iterable[Any] | None) -> int | None:
    if values is None:
        return None
    try:
        return sum(int(value) for value in values)
    except (TypeError, ValueError):
        return None
