"""gRPC traffic on kept channels: calls and streams, each sent once.

A channel stays with the pod that its connection leads to until the connection is renewed, which is
what a rollout has to get along with. No retry policy is set. What gRPC's default client sends anew
is what no server has begun: a call that was given to a connection just as its GOAWAY came.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from faults.traffic import STREAM_TOKENS, TOKENS, Traffic
from lib.offered_load import Outcome, Record

CALLERS = 3  # threads that share the channel of the calls
TIMEOUT = 30.0


@dataclass
class Sent:
    """What went over one kind of channel so far."""

    record: Record = field(default_factory=Record)


@contextmanager
def running(address: str, model: str, *, streams: int = 2) -> Iterator[Traffic]:
    """Send until the block ends, then wait for what is in flight.

    Args:
        address: host:port of the gRPC Service.
        model: one that is answered whole; its twin streams.
        streams: channels on which one stream follows another.
    """
    made = Traffic(plain=Sent(), streams=Sent())
    over = threading.Event()
    with ExitStack() as stack:
        calls = stack.enter_context(_client(address, "calls"))
        jobs: list[Callable[[], str]] = [lambda: _call(calls, model)] * CALLERS
        records = [made.plain.record] * CALLERS
        for number in range(streams):
            client = stack.enter_context(_client(address, f"stream {number}"))
            jobs.append(lambda client=client: _stream(client, f"{model}_stream"))
            records.append(made.streams.record)
        threads = [
            threading.Thread(target=_repeat, args=(job, record, over), daemon=True)
            for job, record in zip(jobs, records, strict=True)
        ]
        for thread in threads:
            thread.start()
        try:
            made.wait_for(2 * CALLERS)
            yield made
        finally:
            over.set()
            for thread in threads:
                thread.join()


@contextmanager
def _client(address: str, name: str) -> Iterator[triton.InferenceServerClient]:
    # The name makes the arguments differ: equal ones would share a channel.
    arguments = [("grpc.primary_user_agent", name)]
    client = triton.InferenceServerClient(address, channel_args=arguments)
    try:
        yield client
    finally:
        client.close()


def _repeat(job: Callable[[], str], record: Record, over: threading.Event) -> None:
    while not over.is_set():
        start = time.time()
        fault = job()
        record.outcomes.append(Outcome(start=start, end=time.time(), fault=fault))
        if fault:
            over.wait(0.2)  # a refused client must not become a flood


def _call(client: triton.InferenceServerClient, model: str) -> str:
    """Return what went wrong with one call; empty when it was answered."""
    parameters = {"max_tokens": TOKENS}
    try:
        client.infer(model, [_tensor()], parameters=parameters, client_timeout=TIMEOUT)
    except InferenceServerException as error:
        return str(error)
    return ""


def _stream(client: triton.InferenceServerClient, model: str) -> str:
    """Return what went wrong with one stream; empty when it went on to its last event."""
    events: queue.Queue[str | None] = queue.Queue()

    def heard(result: triton.InferResult, error: InferenceServerException | None) -> None:
        if error is not None:
            events.put(str(error))
        elif result.as_numpy("finish_reason").item():
            events.put(None)

    client.start_stream(heard, stream_timeout=TIMEOUT)
    try:
        client.async_stream_infer(model, [_tensor()], parameters={"max_tokens": STREAM_TOKENS})
        return events.get(timeout=TIMEOUT + 5) or ""
    except (InferenceServerException, queue.Empty) as error:
        return str(error) or "the stream fell silent"
    finally:
        client.stop_stream()


def _tensor() -> triton.InferInput:
    text = np.array([[b"one two three"]], dtype=np.object_)
    tensor = triton.InferInput("user_message", text.shape, "BYTES")
    tensor.set_data_from_numpy(text)
    return tensor
