"""A server whose times are known: it speaks Triton's HTTP for one text model and logs each send.

    python known_server.py --ttft-ms 50 --gap-ms 10 --tokens 30 [--slots 1]

Prints its port on the first line; at SIGTERM it prints what it did as one line of JSON. Requests
are answered by `slots` at a time, first come first served, which makes a queue of known length.
With --numbered, the `prompt_tokens` of an answer are its place in that log, from 1 on: so a client
can be held against the server request by request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import time
from typing import Any

METADATA = {
    "name": "known",
    "inputs": [
        {"name": name, "datatype": "BYTES", "shape": [-1, 1]}
        for name in ("user_message", "system_message", "messages")
    ],
    "outputs": [
        {"name": "text_output", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "finish_reason", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "prompt_tokens", "datatype": "INT32", "shape": [-1, 1]},
        {"name": "completion_tokens", "datatype": "INT32", "shape": [-1, 1]},
    ],
}


class KnownServer:
    """The server and its log: for each request its arrival and the moments of its sends."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.slots = asyncio.Semaphore(options.slots)
        self.log: list[list[float]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived = time.perf_counter()
        try:
            first = await reader.readexactly(1)
            if not first.isalpha():  # not HTTP: a TLS hello, for example
                return
            head = first + await reader.readuntil(b"\r\n\r\n")
            length = [
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            await reader.readexactly(length[0] if length else 0)
            path = head.split(b" ")[1].decode()
            if path.endswith("/generate_stream"):
                await self.stream(writer, arrived)
            else:
                self.tell(writer, path)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def tell(self, writer: asyncio.StreamWriter, path: str) -> None:
        known = path.startswith("/v2/models/known") and "_stream" not in path
        body = json.dumps(METADATA).encode() if known else b"{}"
        status = b"200 OK" if known else b"404 Not Found"
        writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)

    async def stream(self, writer: asyncio.StreamWriter, arrived: float) -> None:
        options, moments = self.options, [arrived]
        self.log.append(moments)
        place = len(self.log)
        slow = options.slow_every and place % options.slow_every == 0
        async with self.slots:
            wait = options.ttft_ms + (options.slow_ms if slow else 0)
            due = time.perf_counter() + wait / 1000
            head = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{head}".encode())
            number = 0
            while number < options.tokens:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                due += options.gap_ms / 1000
                number = min(number + options.tokens_per_event, options.tokens)
                last = number == options.tokens
                event: dict[str, Any] = {
                    "text_output": "word ",
                    "finish_reason": "length" if last else "",
                    "prompt_tokens": place if options.numbered else 7,
                    "completion_tokens": number,
                }
                data = f"data: {json.dumps(event)}\n\n".encode()
                moments.append(time.perf_counter())
                writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            writer.write(b"0\r\n\r\n")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ttft-ms", type=float, default=50)
    parser.add_argument("--gap-ms", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--tokens-per-event", type=int, default=1)
    parser.add_argument("--slow-every", type=int, default=0, help="each n-th answer is slow")
    parser.add_argument("--slow-ms", type=float, default=0, help="later by this much")
    parser.add_argument("--numbered", action="store_true")
    parser.add_argument("--slots", type=int, default=10_000)
    parser.add_argument("--cert", default="", help="PEM of certificate and key: speak TLS")
    options = parser.parse_args()
    known, tls = KnownServer(options), None
    if options.cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.cert)
    server = await asyncio.start_server(known.serve, "127.0.0.1", 0, backlog=1024, ssl=tls)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print(server.sockets[0].getsockname()[1], flush=True)
    await ended.wait()
    print(json.dumps(known.log), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
