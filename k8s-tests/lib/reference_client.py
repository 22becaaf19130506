"""An independent client: blocking sockets and threads, nothing of triton_load or Locust.

    python reference_client.py --port 8000 --model M_stream --users 4 --seconds 10 --max-tokens 40

Each user opens a connection, asks `/generate_stream`, reads what the kernel has, and asks
again until the time is over; the last answers are waited for. Prints one line of JSON; with --log
FILE each request is a line there, too: its prompt tokens (a place in the log of a known server with
--numbered), its time to first token and the moments of its events, in seconds.
"""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from pathlib import Path

REQUEST = "POST /v2/models/{model}/generate_stream HTTP/1.1\r\nHost: {host}\r\n"
HEADERS = "Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"


def ask(options: argparse.Namespace) -> tuple[list[float], int, int]:
    """Send one request; return its start and each event's moment, its tokens and the prompt's."""
    body = json.dumps(
        {"user_message": options.prompt, "max_tokens": options.max_tokens, "ignore_eos": True}
    )
    head = REQUEST.format(model=options.model, host=options.host)
    head += HEADERS.format(length=len(body))
    moments, event = [time.perf_counter()], {"completion_tokens": 0, "prompt_tokens": 0}
    pending = b""
    with socket.create_connection((options.host, options.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall((head + body).encode())
        while data := connection.recv(65536):
            now = time.perf_counter()
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    moments.append(now)
    tokens = event["completion_tokens"]
    if tokens != options.max_tokens:
        raise RuntimeError(f"{tokens} tokens, not {options.max_tokens}")
    return moments, tokens, event["prompt_tokens"]


def main() -> None:
    """Run all users and print what they saw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--users", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    seen: list[tuple[list[float], int, int]] = []
    end = time.perf_counter() + options.seconds

    def user() -> None:
        while time.perf_counter() < end:
            seen.append(ask(options))

    threads = [threading.Thread(target=user) for _ in range(options.users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first_tokens = sorted(moments[1] - moments[0] for moments, *_ in seen)
    span = max(moments[-1] for moments, *_ in seen) - min(moments[0] for moments, *_ in seen)
    tokens = sum(count for _, count, _ in seen)
    if options.log:
        lines = [
            {"place": place, "ttft": moments[1] - moments[0], "moments": moments[1:]}
            for moments, _, place in seen
        ]
        options.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = {
        "requests": len(seen),
        "tokens": tokens,
        "tokens_per_second": tokens / span,
        "ttft_p50_seconds": first_tokens[(len(first_tokens) - 1) // 2],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
