"""A load without retries: each request has a connection of its own and is counted once.

Runs in a thread, so that a test or a report can change the load while it watches the cluster.
What was in flight at any moment is known exactly, which is what a signal is compared with.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

_HEAD_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a request goes and what it asks.

    Attributes:
        host: value of the Host header, by which an ingress routes.
        stream: whether the answer is a stream of events, good only when its last one ends it.
    """

    address: str
    port: int
    path: str
    body: bytes
    host: str = "localhost"
    stream: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one request went; times are Unix seconds; `fault` is empty when it was answered."""

    start: float
    end: float
    fault: str

    @property
    def seconds(self) -> float:
        """From sending to the last byte."""
        return self.end - self.start


def infer(
    address: str,
    port: int,
    model: str,
    *,
    host: str = "localhost",
    text: str = "one two",
    **parameters: Any,
) -> Target:
    """Return a plain call of a model that is answered whole."""
    tensor = {"name": "user_message", "datatype": "BYTES", "shape": [1, 1], "data": [[text]]}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    path = f"/v2/models/{model}/infer"
    return Target(address=address, port=port, path=path, body=body, host=host)


def stream(
    address: str,
    port: int,
    model: str,
    *,
    host: str = "localhost",
    text: str = "one two",
    **parameters: Any,
) -> Target:
    """Return a call of a model whose answer is streamed."""
    body = json.dumps({"user_message": text, **parameters}).encode()
    path = f"/v2/models/{model}_stream/generate_stream"
    return Target(address=address, port=port, path=path, body=body, host=host, stream=True)


@dataclass
class Record:
    """What was sent and how it went; safe to read while the load runs.

    Attributes:
        outcomes: of the requests that ended.
        late: seconds that each request of a rate was sent after its time, the generator's own lag.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    _times: list[float] = field(default_factory=lambda: [0.0])
    _levels: list[int] = field(default_factory=lambda: [0])

    def change(self, delta: int) -> None:
        """One request more or less is in flight from now on."""
        self._levels.append(self._levels[-1] + delta)
        self._times.append(time.time())

    @property
    def failed(self) -> list[Outcome]:
        """Requests that were not answered."""
        return [outcome for outcome in self.outcomes if outcome.fault]

    def in_flight(self, at: float) -> int:
        """Return how many requests were in flight at a Unix time."""
        times = self._times[:]
        return self._levels[bisect.bisect_right(times, at) - 1]

    def mean_in_flight(self, start: float, end: float) -> float:
        """Return the mean number in flight, weighted by time."""
        count = len(self._times)
        times = [*self._times[:count], end]
        area = 0.0
        for index in range(count):
            left, right = max(times[index], start), min(times[index + 1], end)
            if right > left:
                area += self._levels[index] * (right - left)
        return area / (end - start)


async def send(target: Target, record: Record, *, timeout: float) -> Outcome:
    """Send one request once, write down how it went and return it."""
    start = time.time()
    record.change(+1)
    try:
        async with asyncio.timeout(timeout):
            fault = await _exchange(target)
    except TimeoutError:
        fault = f"no answer in {timeout:g} s"
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        fault = f"{type(error).__name__}: {error}"
    except asyncio.CancelledError:
        fault = "broken off by the client"
    finally:
        record.change(-1)
    outcome = Outcome(start=start, end=time.time(), fault=fault)
    record.outcomes.append(outcome)
    return outcome


async def _exchange(target: Target) -> str:
    reader, writer = await asyncio.open_connection(target.address, target.port, limit=_HEAD_LIMIT)
    try:
        head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.host}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(target.body)}\r\n\r\n"
        )
        writer.write(head.encode() + target.body)
        await writer.drain()
        received = await reader.readuntil(b"\r\n\r\n")
        status = received.split(b"\r\n", 1)[0].split(b" ")[1].decode()
        body = await _body(reader, received)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if status != "200":
        return f"status {status}: {body[:200].decode(errors='replace')}"
    return _fault_of_stream(body) if target.stream else ""


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return await reader.readexactly(int(line.split(b":")[1]))
    # Without a length the peer closes; a chunked body then ends with its empty chunk.
    body = await reader.read(-1)
    if b"chunked" in head.lower() and not body.endswith(b"0\r\n\r\n"):
        raise asyncio.IncompleteReadError(body, None)
    return body


def _fault_of_stream(body: bytes) -> str:
    events = [line[5:] for line in body.splitlines() if line.startswith(b"data:")]
    if not events:
        return "the stream had no event"
    try:
        last = json.loads(events[-1])
    except ValueError:
        return "the stream broke inside an event"
    if "error" in last:
        return f"the stream ended with an error: {last['error']}"
    return "" if last.get("finish_reason") else "the stream broke before its last event"


class Load:
    """Sends requests until the block ends; what is in flight then is waited for.

    `clients(n)` keeps n requests in flight (each client waits for its answer); `rate(r)` sends r
    requests a second whatever happens to them. Both go round over the targets.
    """

    def __init__(self, targets: Sequence[Target], *, timeout: float = 120.0, seed: int = 1) -> None:
        """Prepare; nothing is sent before `clients` or `rate`.

        Args:
            targets: used in turn.
            timeout: seconds after which a request counts as failed.
            seed: of the random pauses of `rate`.
        """
        self.record = Record()
        self._targets = itertools.cycle(targets)
        self._timeout = timeout
        self._random = random.Random(seed)  # pauses, not secrets
        self._wanted = 0
        self._running = 0
        self._rate = 0.0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)

    def __enter__(self) -> Load:
        """Start the thread."""
        self._thread.start()
        self._call(self._start_arrivals())
        return self

    def __exit__(self, *_: object) -> None:
        """Send nothing more, wait for what is in flight, and end the thread."""
        self.clients(0)
        self.rate(0.0)
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def clients(self, count: int) -> None:
        """Keep this many requests in flight from now on; surplus clients end with their answer."""
        self._call(self._set_clients(count))

    def rate(self, per_second: float) -> None:
        """Send this many requests a second from now on, at random times."""
        self._rate = per_second

    def hang_up(self) -> None:
        """Send nothing more and break off what is in flight, which counts as failed."""
        self.clients(0)
        self.rate(0.0)
        self._call(self._cancel())

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _spawn(self, coroutine: Coroutine[Any, Any, object]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _set_clients(self, count: int) -> None:
        self._wanted = count
        while self._running < count:
            self._running += 1
            self._spawn(self._client())

    async def _client(self) -> None:
        while self._running <= self._wanted:
            outcome = await send(next(self._targets), self.record, timeout=self._timeout)
            if outcome.fault:
                await asyncio.sleep(0.2)  # a refused client must not become a flood
        self._running -= 1

    async def _start_arrivals(self) -> None:
        self._arrivals = self._loop.create_task(self._arrive())

    async def _arrive(self) -> None:
        due = time.monotonic()
        while True:
            if self._rate <= 0:
                await asyncio.sleep(0.02)
                due = time.monotonic()
                continue
            due += self._random.expovariate(self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._rate > 0:
                self.record.late.append(time.monotonic() - due)
                self._spawn(send(next(self._targets), self.record, timeout=self._timeout))

    async def _cancel(self) -> None:
        for task in set(self._tasks):
            task.cancel()

    async def _finish(self) -> None:
        self._arrivals.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))
