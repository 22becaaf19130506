"""A server that costs little: every stream gets one event at each tick, and nothing is computed.

    python ticker.py --gap-ms 10 --tokens 200

Prints its port. Speaks just enough of Triton's HTTP for the model `ticker`. One event is one
`send` of bytes that are ready, so a core makes far more events than a generator's core can read.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import time

METADATA = {
    "name": "ticker",
    "inputs": [
        {"name": name, "datatype": "BYTES", "shape": [-1, 1]}
        for name in ("user_message", "system_message", "messages")
    ],
    "outputs": [
        {"name": "text_output", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "finish_reason", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "completion_tokens", "datatype": "INT32", "shape": [-1, 1]},
    ],
}
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: close\r\n\r\n"
)


def answers(tokens: int) -> list[bytes]:
    """The chunks of a stream, one for each event, the end with the last."""
    chunks = []
    for number in range(1, tokens + 1):
        last = number == tokens
        event = {
            "text_output": "word ",
            "finish_reason": "length" if last else "",
            "completion_tokens": number,
        }
        data = f"data: {json.dumps(event)}\n\n".encode()
        chunks.append(b"%x\r\n%b\r\n%b" % (len(data), data, b"0\r\n\r\n" if last else b""))
    return chunks


class Ticker:
    """All connections, in one thread."""

    def __init__(self, *, gap: float, tokens: int) -> None:
        """Listen on a free port of loopback."""
        self._gap, self._chunks = gap, answers(tokens)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._socket.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)
        self._streams: dict[socket.socket, int] = {}
        self.port = int(self._socket.getsockname()[1])

    def serve(self) -> None:
        """Serve until the process ends."""
        due = time.perf_counter() + self._gap
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.perf_counter())):
                if key.fileobj is self._socket:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket):
                    self._answer(key.fileobj)
            if time.perf_counter() >= due:
                self._tick()
                due = max(due + self._gap, time.perf_counter())

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(connection, selectors.EVENT_READ)

    def _answer(self, connection: socket.socket) -> None:
        try:
            request = connection.recv(65536)
        except OSError:
            request = b""
        if not request:
            self._end(connection)
        elif b"/generate_stream" in request:
            connection.send(HEAD)
            self._streams[connection] = 0
        elif request.startswith(b"GET "):
            known = b"/v2/models/ticker" in request and b"_stream" not in request
            body = json.dumps(METADATA).encode() if known else b"{}"
            status = b"200 OK" if known else b"404 Not Found"
            connection.send(
                b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
            )

    def _tick(self) -> None:
        for connection, sent in list(self._streams.items()):
            try:
                connection.send(self._chunks[sent])
            except OSError:
                self._end(connection)
                continue
            self._streams[connection] = sent + 1
            if sent + 1 == len(self._chunks):
                self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self._streams.pop(connection, None)
        self._selector.unregister(connection)
        connection.close()


def main() -> None:
    """Print the port and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gap-ms", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    ticker = Ticker(gap=options.gap_ms / 1000, tokens=options.tokens)
    print(ticker.port, flush=True)
    ticker.serve()


if __name__ == "__main__":
    main()
