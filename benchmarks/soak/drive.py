"""The load of the soak: answers, streams, clients that leave and requests that are refused.

A model whose time is its own gets an open load: requests come at random times at a fixed rate,
whether or not the server keeps up. One that computes shares its cores with what else the machine
does, so a fixed rate is 80 % of what it can do at one moment and all of it at another, and its
times tell of queues alone. It gets users instead, who think between two requests, as in Locust:
when it slows down, so does the load.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lib.offered_load import Record, Target, infer, send, stream

WHOLE, STREAM, LEFT, REFUSED = "whole", "stream", "left", "refused"
ANSWERED = {WHOLE: 2.0, STREAM: 1.0}  # weights; the rate counts these
BESIDES = {LEFT: 0.05, REFUSED: 0.05}  # so many on top for each one that is answered
TIMEOUT = 60.0
WORDS = ["river", "stone", "cloud", "window", "paper", "garden", "letter", "engine", "winter"]
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A model under load; every answer has `tokens` tokens, so that all cost about the same.

    Attributes:
        clients: requests in flight while the capacity is found, and the users of one that computes.
        slots: requests that the model answers at a time.
        computes: whether its times depend on the cores.
    """

    model: str
    tokens: int
    clients: int
    slots: int
    computes: bool = False

    def pause(self, rate: float, capacity: float) -> float:
        """Return the mean seconds that a user thinks, for so many answers a second of all users.

        While no request waits for a slot, an answer takes slots / capacity.
        """
        return max(0.0, self.clients / rate - self.slots / capacity)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """One request; `at` and `seconds` in seconds, `fault` empty when it went as it should."""

    model: str
    kind: str
    at: float
    seconds: float
    fault: str


class Drive:
    """Sends to one server and keeps what ended."""

    def __init__(self, port: int, *, seed: int) -> None:
        """Send to this port on loopback."""
        self.ended: list[Ended] = []
        self._port = port
        self._seed = seed
        self._random = random.Random(seed)
        self._tasks: set[asyncio.Task[None]] = set()

    async def capacity(self, asked: list[Asked], seconds: float) -> dict[str, float]:
        """Return how many requests a second each model ends when all are asked as much as can be.

        What ends in the first third is not counted.
        """
        end = time.monotonic() + seconds
        clients = [self._client(one, end) for one in asked for _ in range(one.clients)]
        first = len(self.ended)
        await asyncio.gather(*clients)
        since = end - seconds * 2 / 3
        counted = [e for e in self.ended[first:] if since <= e.at + e.seconds < end]
        return {
            one.model: sum(e.model == one.model for e in counted) / (end - since) for one in asked
        }

    async def arrive(self, one: Asked, rate: float, spans: Sequence[tuple[float, float]]) -> None:
        """Send `rate` requests a second, and the others beside them, in each span of time.

        The random times and kinds are the same in spans of the same length, so that two of them
        differ by what the server does and not by their luck. The texts never repeat.

        Args:
            one: the model that is asked.
            rate: answers a second.
            spans: start and end in monotonic seconds, one after the other.
        """
        total = sum(ANSWERED.values())
        weights = {**ANSWERED, **{kind: share * total for kind, share in BESIDES.items()}}
        every = rate * (1 + sum(BESIDES.values()))
        for due, end in spans:
            luck = random.Random(f"{self._seed} {one.model}")
            while (due := due + luck.expovariate(every)) < end:
                (kind,) = luck.choices([*weights], weights=[*weights.values()])
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                task = asyncio.create_task(self._one(one, kind))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def think(self, one: Asked, pause: Callable[[], float], end: float) -> None:
        """Let the users ask until `end`; all of them have ended then.

        Each waits before it asks, at random, by `pause` seconds of that moment on average.
        """
        weights = [*ANSWERED.values()]
        luck = random.Random(f"{self._seed} {one.model}")

        async def user() -> None:
            while (now := time.monotonic()) < end:
                mean = pause()
                await asyncio.sleep(min(luck.expovariate(1 / mean) if mean else 0.0, end - now))
                for kind, share in BESIDES.items():
                    if luck.random() < share:
                        await self._one(one, kind)
                (kind,) = luck.choices([*ANSWERED], weights=weights)
                await self._one(one, kind)

        await asyncio.gather(*(user() for _ in range(one.clients)))

    async def finish(self) -> None:
        """Wait for all that is open."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _client(self, one: Asked, end: float) -> None:
        while time.monotonic() < end:
            (kind,) = self._random.choices([*ANSWERED], weights=[*ANSWERED.values()])
            await self._one(one, kind)

    async def _one(self, one: Asked, kind: str) -> None:
        start = time.monotonic()
        target = self._target(one, kind)
        if kind == LEFT:
            fault = await leave(target)
        else:
            fault = (await send(target, Record(), timeout=TIMEOUT)).fault
        if kind == REFUSED:
            fault = "" if fault.startswith("status 400") else fault or "it was not refused"
        seconds = time.monotonic() - start
        self.ended.append(Ended(model=one.model, kind=kind, at=start, seconds=seconds, fault=fault))

    def _target(self, one: Asked, kind: str) -> Target:
        text = " ".join(self._random.choices(WORDS, k=12))
        make = stream if kind in (STREAM, LEFT) else infer
        tokens = -1 if kind == REFUSED else one.tokens
        return make(LOOPBACK, self._port, one.model, text=text, max_tokens=tokens, ignore_eos=True)


async def leave(target: Target) -> str:
    """Open a stream and go away at its first event; return what went wrong, or nothing."""
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection(target.address, target.port)
            try:
                head = (
                    f"POST {target.path} HTTP/1.1\r\nHost: {target.host}\r\n"
                    f"Content-Length: {len(target.body)}\r\n\r\n"
                )
                writer.write(head.encode() + target.body)
                await writer.drain()
                await reader.readuntil(b"data:")
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        return f"{type(error).__name__}: {error}"
    return ""
