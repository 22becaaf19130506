"""Metrics pages of pods that do not exist: each is the page of a real Triton with other numbers.

One HTTP server on loopback plays all of them; `/NAME` is the page of the pod NAME. The requests
in flight are spread evenly over the pods that are ready, as a fair load balancer would.
"""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

RUNNING, WAITING = "triton_hf_requests_running", "triton_hf_requests_waiting"
_VALUE = re.compile(rf"^(?P<name>{RUNNING}|{WAITING})(?P<labels>{{[^}}]*}}) .*$", re.MULTILINE)


class NoSignalError(ValueError):
    """The page of the real Triton lacks the gauges that carry the signal."""


@dataclass
class Demand:
    """What all clients together have in flight, and who serves it.

    Attributes:
        in_flight: requests.
        slots: requests that a pod runs at once; the others wait.
        serving: names of the pods that are ready.
    """

    slots: int
    in_flight: int = 0
    serving: Callable[[], Sequence[str]] = field(default=tuple)

    def share(self, pod: str) -> tuple[int, int]:
        """Return (running, waiting) of a pod; (0, 0) for one that does not serve."""
        pods = sorted(self.serving())
        if pod not in pods:
            return 0, 0
        each, more = divmod(self.in_flight, len(pods))
        mine = each + (pods.index(pod) < more)
        return min(mine, self.slots), max(0, mine - self.slots)


def render(page: str, running: int, waiting: int) -> str:
    """Return the page with the two gauges of its first model set.

    Raises:
        NoSignalError: it has no such gauges.
    """
    values = {RUNNING: running, WAITING: waiting}
    seen: set[str] = set()

    def put(match: re.Match[str]) -> str:
        name = match["name"]
        value = 0 if name in seen else values[name]
        seen.add(name)
        return f"{name}{match['labels']} {value}"

    text = _VALUE.sub(put, page)
    if seen != set(values):
        raise NoSignalError(f"the page has no {sorted(set(values) - seen)}; is an engine loaded?")
    return text


@contextlib.contextmanager
def serving(page: str, demand: Demand) -> Iterator[int]:
    """Serve the pages until the block ends; yield the loopback port.

    Raises:
        NoSignalError: the page has no gauges to set.
    """
    render(page, 0, 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = render(page, *demand.share(self.path.strip("/"))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing; Prometheus counts the failed scrapes."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
