"""A client that costs little of a machine which it shares with the server: asyncio, no library."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from benchmarks.engine.systems.base import Answer, Prompt

# Triton's outputs, and llama.cpp's.
_MADE = re.compile(rb'"(?:completion_tokens|tokens_predicted)" ?: ?(\d+)')
_READ = re.compile(rb'"(?:prompt_tokens|tokens_evaluated)" ?: ?(\d+)')
TIMEOUT = 600

Request = Callable[[Prompt, int], tuple[str, dict[str, Any]]]


def ask_all(
    port: int, request: Request, prompts: Sequence[Prompt], *, tokens: int, clients: int
) -> list[Answer]:
    """Send all prompts to a server on loopback, `clients` of them at any time.

    Args:
        port: Where it listens.
        request: Path and JSON body for a prompt and a number of tokens.
        prompts: Each is asked once.
        tokens: Of each answer.
        clients: How many ask at the same time, each over connections of its own.
    """

    async def run() -> list[Answer]:
        waiting = list(reversed(list(enumerate(prompts))))
        answers: dict[int, Answer] = {}

        async def client() -> None:
            while waiting:
                index, prompt = waiting.pop()
                answers[index] = await _ask(port, *request(prompt, tokens))

        await asyncio.gather(*(client() for _ in range(clients)))
        return [answers[index] for index in range(len(prompts))]

    return asyncio.run(run())


async def _ask(port: int, path: str, body: dict[str, Any]) -> Answer:
    start = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _exchange(port, path, json.dumps(body).encode(), start)
    except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
        return Answer(start=start, fault=f"{type(error).__name__}: {error}")


async def _exchange(port: int, path: str, body: bytes, start: float) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        received = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"text/event-stream" in received:
            return await _read_stream(_lines(_parts(reader, received)), start)
        whole = b"".join([part async for part in _parts(reader, received)])
        if b" 200 " not in received.split(b"\r\n", 1)[0]:
            return Answer(start=start, fault=whole[:200].decode(errors="replace"))
        return _read_whole(json.loads(whole), start)
    finally:
        writer.close()


async def _parts(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    if found := re.search(rb"content-length: *(\d+)", head):
        yield await reader.readexactly(int(found[1]))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line
    yield rest


async def _read_stream(lines: AsyncIterator[bytes], start: float) -> Answer:
    events: list[tuple[float, int]] = []
    prompt = None
    async for line in lines:
        if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
            continue
        now, made = time.perf_counter(), _MADE.search(line)
        if made is None:
            return Answer(start=start, fault=line[:200].decode(errors="replace"))
        if not events or int(made[1]) > events[-1][1]:
            events.append((now, int(made[1])))
        if read := _READ.search(line):
            prompt = int(read[1])
    return Answer(start=start, events=tuple(events), prompt_tokens=prompt)


def _read_whole(answer: dict[str, Any], start: float) -> Answer:
    now = time.perf_counter()
    outputs = {item["name"]: item["data"][0] for item in answer["outputs"]}
    made, read = outputs["completion_tokens"], outputs["prompt_tokens"]
    return Answer(start=start, events=((now, int(made)),), prompt_tokens=int(read))
