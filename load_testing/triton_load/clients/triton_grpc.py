"""Triton over gRPC with Triton's own client: whole answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from triton_load.clients.base import Target, end, network_error, short
from triton_load.data import Case
from triton_load.errors import LoadTestError
from triton_load.measure import Outcome

_CHECK_SECONDS = 10.0
_WORDS: Mapping[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}


# Parameters that the protocol knows: Triton's client takes each as an argument of its own.
_OWN: Mapping[str, tuple[type, ...]] = {
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "sequence_end": (bool,),
    "priority": (int,),
    "timeout": (int,),
}


def check_parameters(case: Case) -> None:
    """Check that a gRPC call can carry the parameters of a case.

    Raises:
        LoadTestError: It cannot; the text names the parameter.
    """
    for name, value in case.parameters.items():
        where = f"case '{case.name}': parameter '{name}'"
        if name in ("binary_data_output", "headers") or name.startswith("triton_"):
            raise LoadTestError(f"{where} is known to HTTP alone; leave it out with --client grpc")
        wanted = _OWN.get(name, (str, bool, int, float))
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
            words = " or ".join(_WORDS[kind] for kind in wanted)
            raise LoadTestError(f"{where} must be {words} with --client grpc, not {value!r}")


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

        own = {name: value for name, value in case.parameters.items() if name in _OWN}
        others = {name: value for name, value in case.parameters.items() if name not in _OWN}
        try:
            with self._channel() as channel:
                answer = channel.infer(
                    self._target.model.name,
                    grpc_inputs(case),
                    outputs=self._outputs,
                    parameters=others or None,
                    headers=self._headers,
                    client_timeout=self._target.timeout,
                    **own,
                )
                outcome.ended = time.perf_counter()
        except triton.InferenceServerException as error:
            name = (error.status() or "gRPC error").replace("StatusCode.", "gRPC ")
            end(outcome, (name, short(str(error.message()))))
            return
        except Exception as error:
            end(outcome, network_error(error))
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
            f"{short(str(error.message()))}; check --grpc-host (TLS is not supported there)"
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
