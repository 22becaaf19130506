"""Hostile HTTP requests against a real tritonserver on this machine, each made from its number.

Usage: python -m benchmarks.hostile [--requests 100000] [--seed 1] [--clients 8] [--out FILE]
       [--only KIND] [--show NUMBER]

Every request is a mutation of a good one: its JSON, its tensors, its headers, its framing, its
path, or the behaviour of the client. After every 200 of them a good request has to be answered
rightly. What is known to end Triton 2.51, and cannot be helped here, is left out: see upstream.md.
The same seed and number always make the same request; `--show` prints it. A run of 50,000 or more
of all kinds also gets a row in the table of `python -m tools.fault_table`.
Exit codes: 0 all is well, 1 the server died, hung, or answered a good request wrongly.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import http.client
import json
import math
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedded_triton.fetch import TRITON_VERSION
from embedded_triton.server import Server, running_server
from tools import fault_table
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_hf.progress import Progress

MODEL = "victim"
LONG = 50_000  # a shorter run is a try
BLOCK = 200  # hostile requests between two good ones
ANSWER_SECONDS = 20.0  # a complete request that gets no answer for so long hangs
PARAMETERS = {
    "ttft_ms": "1",
    "inter_token_ms": "1",
    "slots": "8",
    "max_tokens": "8",
    "max_prompt_tokens": "2000",
    "max_total_tokens": "4096",
}
Value = Any
Build = Callable[[random.Random], "Case"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile request.

    Attributes:
        pieces: what is sent, piece by piece.
        pause: seconds between two pieces.
        leaves: the client closes after the last piece and waits for no answer.
        ends: the client says that it sends no more, where the server may wait for more.
    """

    kind: str
    pieces: tuple[bytes, ...]
    pause: float = 0.0
    leaves: bool = False
    ends: bool = False

    @property
    def raw(self) -> bytes:
        """All that is sent."""
        return b"".join(self.pieces)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back; `status` 0 means that the server closed without an answer."""

    number: int
    kind: str
    status: int
    seconds: float
    text: str = ""
    hung: bool = False


# --- values that nobody expects -------------------------------------------------------------------

NUMBERS: tuple[Value, ...] = (
    *(0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(0.5, -0.0, 1e-320, 1e308, 1.0000001),
)
TEXTS: tuple[str, ...] = (
    *("", " ", "a b", "null", "true", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "\u202e\ufeff"),
    *("é" * 300, "😀" * 200, "\r\n\r\nGET / HTTP/1.1\r\n\r\n", "%s%n%p", "{{7*7}}", "<|im_start|>"),
    *("../../etc/passwd", "a" * 5000, "word " * 2500, "\\u0000", '"', "\\", "${jndi:ldap://x}"),
)
TYPES = (
    "BYTES",
    "INT32",
    "FP32",
    "BOOL",
    "FP16",
    "bytes",
    "",
    "UINT8",
    "TYPE_STRING",
    "JUNK",
    "BF16",
)
NAMES = (
    *(
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "repetition_penalty",
        "stream",
    ),
    *("ignore_eos", "sequence_id", "sequence_start", "priority", "timeout", "id", "messages"),
    *("binary_data_output", "triton_enable_empty_final_response", "classification", "unknown"),
    *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "headers"),
)


def value(source: random.Random, depth: int = 0) -> Value:
    """Return anything that JSON can say, and a little that it cannot."""
    kind = source.randrange(9 if depth < 3 else 6)
    if kind <= 1:
        return source.choice(NUMBERS)
    if kind <= 3:
        return source.choice(TEXTS)
    if kind == 4:
        return source.choice([True, False, None])
    if kind == 5:
        return source.choice([float("nan"), float("inf"), -float("inf"), [], {}])
    if kind == 6:
        return [value(source, depth + 1) for _ in range(source.randrange(5))]
    return {
        source.choice(NAMES + TEXTS): value(source, depth + 1) for _ in range(source.randrange(5))
    }


def shape(source: random.Random) -> Value:
    """Return a shape that does not fit."""
    return source.choice(
        [
            *(
                [1],
                [],
                [1, 1, 1],
                [0, 1],
                [1, 0],
                [-1, 1],
                [1, -1],
                [2, 1],
                [1, 2],
                [64, 1],
                [65, 1],
            ),
            *([1000, 1000], [1e3, 1], ["1", "1"], [[1], [1]], None, "1,1", 1, {}),
            [1] * 1000,  # more elements than a machine has memory for: see upstream.md
        ]
    )


def body(source: random.Random) -> dict[str, Value]:
    """Return a good infer body, of one or two rows."""
    rows = source.choice([1, 1, 1, 2])
    tensor = {
        "name": "user_message",
        "datatype": "BYTES",
        "shape": [rows, 1],
        "data": [[source.choice(["a b", "one two three"])]] * rows,
    }
    return {"inputs": [tensor], "parameters": {"max_tokens": source.randint(1, 8)}}


def mutate(source: random.Random, document: Value) -> Value:
    """Change one place of a document."""
    if isinstance(document, dict) and document and source.random() < 0.85:
        name = source.choice(list(document))
        change = source.randrange(6)
        if change == 0:
            return {key: item for key, item in document.items() if key != name}
        if change == 1:
            return {**document, source.choice(NAMES + TEXTS): value(source)}
        if change == 2 and name == "shape":
            return {**document, name: shape(source)}
        return {**document, name: mutate(source, document[name])}
    if isinstance(document, list) and document and source.random() < 0.85:
        at = source.randrange(len(document))
        change = source.randrange(4)
        if change == 0:
            return document[:at] + document[at + 1 :]
        if change == 1:
            return document + [document[at]] * source.choice([1, 3, 70])
        return [*document[:at], mutate(source, document[at]), *document[at + 1 :]]
    return value(source)


# --- requests -------------------------------------------------------------------------------------


def dumps(document: Value) -> bytes:
    """Return JSON; lone surrogates become bytes that are no UTF-8, half of the time escapes."""
    escaped = json.dumps(document)
    if len(escaped) % 2:
        return escaped.encode()
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def request(
    content: bytes,
    *,
    path: str = f"/v2/models/{MODEL}/infer",
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
    length: int | None = None,
) -> bytes:
    """Return a request; `length` lies about the body's."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    lines += [f"{name}: {text}" for name, text in headers]
    if not any(name.lower() == "transfer-encoding" for name, _ in headers):
        lines.append(f"Content-Length: {len(content) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content


def _one(kind: str, raw: bytes, **more: Any) -> Case:
    return Case(kind=kind, pieces=(raw,), **more)


def infer_document(source: random.Random) -> Case:
    """An infer body that differs in one to four places."""
    document: Value = body(source)
    for _ in range(source.randint(1, 4)):
        document = mutate(source, document)
    return _one("infer: document", request(dumps(document)))


def infer_parameters(source: random.Random) -> Case:
    """Parameters of every type and size."""
    document = body(source)
    document["parameters"] = {
        source.choice(NAMES): value(source) for _ in range(source.randint(1, 6))
    }
    return _one("infer: parameters", request(dumps(document)))


def infer_tensor(source: random.Random) -> Case:
    """A tensor whose name, datatype, shape and data do not go together."""
    document = body(source)
    tensor = document["inputs"][0]
    for name, make in (
        ("name", lambda: source.choice(["user_message", "system_message", "messages", *TEXTS])),
        ("datatype", lambda: source.choice(TYPES)),
        ("shape", lambda: shape(source)),
        ("data", lambda: value(source)),
        ("parameters", lambda: {source.choice(NAMES): value(source)}),
    ):
        if source.random() < 0.4:
            tensor[name] = make()
    document["inputs"] *= source.choice([1, 1, 1, 2, 50])
    return _one("infer: tensor", request(dumps(document)))


def broken_json(source: random.Random) -> Case:
    """JSON that was cut, or has bytes that were replaced."""
    content = bytearray(dumps(body(source)))
    for _ in range(source.randint(1, 5)):
        content[source.randrange(len(content))] = source.randrange(256)
    if source.random() < 0.5:
        del content[source.randrange(len(content)) :]
    path = source.choice(["infer", "generate"])
    return _one("broken JSON", request(bytes(content), path=f"/v2/models/{MODEL}/{path}"))


def deep_json(source: random.Random) -> Case:
    """Lists or objects in each other, up to 100,000 deep."""
    depth = source.choice([10, 100, 1000, 20_000, 100_000])
    left, right = source.choice([(b"[", b"]"), (b'{"a":', b"}")])
    inner = left * depth + b"1" + right * depth
    content = source.choice([inner, b'{"inputs":' + inner + b"}", b'{"parameters":' + inner + b"}"])
    return _one("deep JSON", request(content))


def generate(source: random.Random) -> Case:
    """Fields of generate and generate_stream."""
    document = {"user_message": source.choice(TEXTS)} | {
        source.choice(NAMES): value(source) for _ in range(source.randrange(5))
    }
    if source.random() < 0.3:
        document = mutate(source, document)
    path = source.choice(
        [f"{MODEL}/generate", f"{MODEL}_stream/generate_stream", f"{MODEL}_stream/generate"]
    )
    return _one("generate", request(dumps(document), path=f"/v2/models/{path}"))


def messages(source: random.Random) -> Case:
    """Conversations as JSON in a tensor, mutated."""
    talk: Value = [{"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}]
    for _ in range(source.randint(1, 4)):
        talk = mutate(source, talk)
    document = {"messages": dumps(talk).decode("utf-8", "replace"), "max_tokens": 2}
    return _one("messages", request(dumps(document), path=f"/v2/models/{MODEL}/generate"))


def binary(source: random.Random) -> Case:
    """A binary tensor whose lengths lie."""
    text = source.choice([b"a b", b"", b"\xff\xfe", b"x" * 5000])
    told = source.choice([len(text), 0, 1, len(text) + 1, 2**31, 2**32 - 1, 10**6])
    data = struct.pack("<I", told) + text
    if source.random() < 0.3:
        data = data * source.choice([0, 2, 3]) + source.randbytes(source.randrange(5))
    size = source.choice([len(data), 0, 1, -1, len(data) + 1, len(data) - 1, 2**31, 2**63 - 1, "4"])
    document = body(source)
    tensor = document["inputs"][0]
    tensor.pop("data")
    tensor["shape"] = source.choice([[1, 1], [1, 1], [2, 1], shape(source)])
    tensor["datatype"] = source.choice(["BYTES", "BYTES", "BYTES", *TYPES])
    tensor["parameters"] = {"binary_data_size": size}
    head = dumps(document)
    length = source.choice(
        [len(head), len(head), len(head), 0, 1, -1, len(head) + 1, 10**6, 2**31, 2**63, "abc", ""]
    )
    headers = [("Inference-Header-Content-Length", str(length))]
    return _one("binary tensor", request(head + data, headers=headers))


def shared_memory(source: random.Random) -> Case:
    """Tensors in, and regions of, shared memory that nobody registered."""
    if source.random() < 0.5:
        kind = source.choice(["systemsharedmemory", "cudasharedmemory"])
        verb = source.choice(["region/x/register", "status", "unregister", "region/../unregister"])
        content = dumps({"key": source.choice(["/x", "/../../x"]), "offset": 0, "byte_size": 2**40})
        return _one("shared memory", request(content, path=f"/v2/{kind}/{verb}"))
    document = body(source)
    document["inputs"][0].pop("data")
    document["inputs"][0]["parameters"] = {
        "shared_memory_region": source.choice(TEXTS),
        "shared_memory_byte_size": source.choice(NUMBERS),
        "shared_memory_offset": source.choice(NUMBERS),
    }
    return _one("shared memory", request(dumps(document)))


def compressed(source: random.Random) -> Case:
    """Compressed bodies: good, cut, lying, and 64 MiB of zeros in 64 KiB."""
    content = dumps(body(source))
    coding = source.choice(["gzip", "deflate", "gzip, gzip", "br", "identity", "x" * 100])
    packed = gzip.compress(content, mtime=0) if "gzip" in coding else zlib.compress(content)
    change = source.randrange(5)
    if change == 0:
        packed = packed[: source.randrange(len(packed))]
    elif change == 1:
        packed = content
    elif change == 2:
        packed = packed[:10] + source.randbytes(50)
    elif change == 3 and source.random() < 0.1:
        packed = _BOMB
    return _one("compressed", request(packed, headers=[("Content-Encoding", coding)]))


_BOMB = gzip.compress(b"[" + b"0," * (32 << 20) + b"0]", 9, mtime=0)


def head(source: random.Random) -> Case:
    """Headers that are many, long, doubled or wrong."""
    content = dumps(body(source))
    change = source.randrange(7)
    headers: list[tuple[str, str]] = []
    if change == 0:
        headers = [(f"X-{number}", "v") for number in range(source.choice([10, 100, 2000]))]
    elif change == 1:
        headers = [("X-Long", "v" * source.choice([1000, 60_000, 1_000_000]))]
    elif change == 2:
        headers = [("Content-Type", source.choice(TEXTS).replace("\r\n", ""))]
    elif change == 3:
        headers = [
            ("Content-Length", source.choice(["0", "5", "-1", "abc", "99999999999999999999"]))
        ]
    elif change == 4:
        headers = [("Expect", "100-continue"), ("Upgrade", "h2c"), ("TE", "trailers")]
    elif change == 5:
        headers = [
            ("triton-admin-key", "x"),
            ("endpoint-load-metrics-format", source.choice(TEXTS[:5])),
        ]
    else:
        headers = [(source.choice(["", " ", "a b", "X\x00"]), "v")]
    length = source.choice([None, None, -1, 0, len(content) - 1])
    return _one("headers", request(content, headers=headers, length=length), ends=True)


def chunked(source: random.Random) -> Case:
    """Chunked bodies: small chunks, wrong sizes, no end."""
    content = dumps(body(source))
    size = source.choice([1, 3, 64, len(content)])
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    raw = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    change = source.randrange(6)
    leaves = False
    if change == 0:
        raw = raw[: source.randrange(len(raw))]
        leaves = True
    elif change == 1:
        raw = source.choice([b"-1\r\n", b"zz\r\n", b"7fffffffffffffff\r\n", b"\r\n\r\n"]) + raw
        leaves = True
    elif change == 2:
        raw = raw.replace(b"\r\n", b"\n")
        leaves = True
    headers = [
        ("Transfer-Encoding", source.choice(["chunked", "chunked", "chunked, gzip", "Chunked"]))
    ]
    return _one("chunked", request(raw, headers=headers), leaves=leaves, ends=True)


def route(source: random.Random) -> Case:
    """Paths and methods that are none."""
    model = source.choice(
        [
            MODEL,
            f"{MODEL}_stream",
            "nobody",
            "..",
            "%2e%2e",
            "%00",
            "a" * 3000,
            "victim%20",
            "é",
            "*",
        ]
    )
    version = source.choice(
        ["", "", "/versions/1", "/versions/-1", "/versions/99999999999999999999"]
    )
    verb = source.choice(
        [
            *("infer", "generate", "generate_stream", "ready", "config", "stats", "trace/setting"),
            *("", "load", "unload", "infer/", "infer?x=" + "y" * 2000, "%69nfer", "INFER"),
        ]
    )
    path = source.choice(
        [
            f"/v2/models/{model}{version}/{verb}",
            f"//v2//models/{model}//{verb}",
            f"/v2/models/{model}/../../repository/index",
            f"/v2/repository/models/{model}/{source.choice(['load', 'unload', ''])}",
            *("/", "*", "/v2", "/v2/", "/v2/logging", "/v2/models", "http://x/v2", "/metrics"),
            "/" + "a" * source.choice([10, 5000]),
        ]
    )
    method = source.choice(
        ["POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "PATCH", "X"]
    )
    ascii_path = path.encode("utf-8").decode("latin-1")
    return _one("route", request(dumps(body(source)), path=ascii_path, method=method))


def garbage(source: random.Random) -> Case:
    """Bytes that are no HTTP."""
    raw = source.choice(
        [
            source.randbytes(source.randint(1, 2000)),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + source.randbytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + source.randbytes(50),
            b"POST /v2/models/victim/infer HTTP/9.9\r\n\r\n",
            b"POST /v2/models/victim/infer\r\n\r\n",
            b"\r\n" * 500,
            b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
        ]
    )
    return _one("no HTTP", raw, leaves=True)


def leaver(source: random.Random) -> Case:
    """A client that leaves in the middle of what it sends, or of what it gets."""
    path = source.choice([f"{MODEL}/infer", f"{MODEL}_stream/generate_stream"])
    document = body(source) if path.endswith("infer") else {"user_message": "a", "max_tokens": 8}
    raw = request(dumps(document), path=f"/v2/models/{path}")
    if source.random() < 0.5:
        raw = raw[: source.randrange(1, len(raw))]
    return _one("client leaves", raw, leaves=True)


def slow(source: random.Random) -> Case:
    """A client that sends in small pieces, and ends."""
    raw = request(dumps(body(source)))
    cuts = sorted(source.sample(range(1, len(raw)), 3))
    pieces = tuple(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    return Case(kind="slow client", pieces=pieces, pause=source.choice([0.001, 0.02]))


def large(source: random.Random) -> Case:
    """Many rows, many tensors, long texts."""
    document = body(source)
    count = source.choice([64, 65, 1000, 20_000])
    change = source.randrange(3)
    if change == 0:
        document["inputs"][0] |= {"shape": [count, 1], "data": [["a"]] * count}
    elif change == 1:
        document["inputs"] = document["inputs"] * min(count, 1000)
    else:
        document["inputs"][0]["data"] = [["word " * count * 5]]
    return _one("large", request(dumps(document)))


BUILDERS: tuple[tuple[int, Build], ...] = (
    (14, infer_document),
    (12, infer_parameters),
    (12, infer_tensor),
    (6, broken_json),
    (3, deep_json),
    (12, generate),
    (5, messages),
    (8, binary),
    (4, shared_memory),
    (4, compressed),
    (4, head),
    (5, chunked),
    (6, route),
    (3, garbage),
    (4, leaver),
    (1, slow),
    (1, large),
)


def make(seed: int, number: int, only: Build | None = None) -> Case:
    """Return the request of a number."""
    source = random.Random(f"{seed} {number}")
    builders = [builder for _, builder in BUILDERS]
    weights = [weight for weight, _ in BUILDERS]
    chosen = only or source.choices(builders, weights)[0]
    return chosen(source)


# --- sending --------------------------------------------------------------------------------------


def send(port: int, number: int, case: Case, *, address: str = "127.0.0.1") -> Answer:
    """Send one request on a connection of its own; return what came back."""
    start = time.monotonic()

    def answer(status: int, text: str = "", *, hung: bool = False) -> Answer:
        return Answer(
            number=number,
            kind=case.kind,
            status=status,
            seconds=time.monotonic() - start,
            text=text,
            hung=hung,
        )

    try:
        with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as connection:
            for piece in case.pieces:
                connection.sendall(piece)
                if case.pause:
                    time.sleep(case.pause)
            if case.leaves:
                return answer(0, "left")
            if case.ends:
                connection.shutdown(socket.SHUT_WR)
            return answer(*_read(connection))
    except TimeoutError:
        return answer(0, "no answer", hung=True)
    except (OSError, http.client.HTTPException) as error:
        return answer(0, f"closed: {type(error).__name__}")


def _read(connection: socket.socket) -> tuple[int, str]:
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return response.status, response.read(400).decode("utf-8", "replace")
    finally:
        response.close()


# --- the run --------------------------------------------------------------------------------------


class HostileError(Exception):
    """The server did not stand it; the text says what happened after which request."""


@dataclass
class Tally:
    """Answers by kind and status, and what they took."""

    by_kind: dict[str, collections.Counter[int]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    hung: list[Answer] = field(default_factory=list)
    wondrous: dict[tuple[str, int], Answer] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self.by_kind[answer.kind][answer.status] += 1
        if answer.status:
            self.times.append(answer.seconds)
        if answer.hung:
            self.hung.append(answer)
        if answer.status >= 500:
            self.wondrous.setdefault((answer.kind, answer.status), answer)

    @property
    def count(self) -> int:
        """How many answers were counted."""
        return sum(sum(statuses.values()) for statuses in self.by_kind.values())

    def classes(self) -> collections.Counter[int]:
        """Return the counts by class of status: 2, 4, 5; 0 for closed."""
        found: collections.Counter[int] = collections.Counter()
        for statuses in self.by_kind.values():
            for status, count in statuses.items():
                found[status // 100] += count
        return found

    def slower_than(self, share: float) -> float:
        """Return the seconds within which this share of the answers came."""
        times = sorted(self.times)
        return times[min(len(times) - 1, int(share * len(times)))]

    def table(self) -> str:
        """Return the counts by kind and class of status as lines for a terminal."""
        lines = [f"{'kind':<20}{'2xx':>8}{'4xx':>8}{'5xx':>8}{'closed':>8}"]
        for kind in sorted(self.by_kind):
            classes = collections.Counter({2: 0, 4: 0, 5: 0, 0: 0})
            for status, count in self.by_kind[kind].items():
                classes[status // 100] += count
            lines.append(f"{kind:<20}{classes[2]:>8}{classes[4]:>8}{classes[5]:>8}{classes[0]:>8}")
        return "\n".join(lines)


@contextmanager
def victim(folder: Path) -> Iterator[Server]:
    """Run a tritonserver with a simulated model."""
    spec = ModelSpec(name=MODEL, engine="simulated", parameters=PARAMETERS)
    write_model(folder / "models", spec)
    arguments = [
        f"--model-repository={folder / 'models'}",
        "--http-restricted-api=shared-memory,model-repository,statistics,trace,logging:k=secret",
    ]
    with running_server(arguments=arguments, workdir=folder) as server:
        yield server


def check_good(server: Server) -> None:
    """Check that a good request is answered rightly.

    Raises:
        HostileError: it is not.
    """
    if server.process.poll() is not None:
        raise HostileError(f"the server ended with {server.process.returncode}")
    content = json.dumps({"user_message": "a b c", "max_tokens": 3}).encode()
    url = f"{server.url}/v2/models/{MODEL}/generate"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=content), timeout=30) as got:
            text = json.load(got)["text_output"]
    except (OSError, ValueError, KeyError) as error:
        raise HostileError(f"a good request was not answered: {error}") from error
    if text != "a b c":
        raise HostileError(f"a good request was answered with {text!r}")


def busy(server: Server) -> float:
    """Return the requests that the engine believes to have."""
    with urllib.request.urlopen(server.metrics_url, timeout=30) as page:
        lines = page.read().decode().splitlines()
    names = ("triton_hf_requests_running{", "triton_hf_requests_waiting{")
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))


def run(
    server: Server,
    *,
    seed: int,
    requests: int,
    clients: int = 8,
    only: Build | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Send the requests, a good one after each block; return what came back.

    Raises:
        HostileError: the server died, hung, or answered a good request wrongly.
    """
    tally = Tally()
    with ThreadPoolExecutor(clients) as pool:
        for first in range(0, requests, BLOCK):
            numbers = range(first, min(first + BLOCK, requests))
            for answer in pool.map(
                lambda number: send(server.ports.http, number, make(seed, number, only)), numbers
            ):
                tally.add(answer)
            try:
                check_good(server)
            except HostileError as error:
                sent = f"requests {numbers.start} to {numbers.stop - 1} of seed {seed}"
                raise HostileError(f"{error}, after the {sent}") from error
            if tally.hung:
                raise HostileError(f"request {tally.hung[0].number} of seed {seed} got no answer")
            if (first // BLOCK) % 25 == 24:
                say(f"{tally.count} of {requests} requests")
    deadline = time.monotonic() + 30
    while busy(server) and time.monotonic() < deadline:
        threading.Event().wait(0.2)
    if busy(server):
        raise HostileError(f"{busy(server):.0f} requests are still counted after 30 s")
    return tally


def record(tally: Tally, *, seed: int, seconds: float) -> dict[str, Any]:
    """Return a run that went well as JSON."""
    return {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "triton": TRITON_VERSION,
        "cores": os.cpu_count(),
        "seed": seed,
        "requests": tally.count,
        "seconds": round(seconds, 1),
        "crashes": 0,
        "hangs": 0,
        "good_requests_answered": math.ceil(tally.count / BLOCK),
        "p50_seconds": round(tally.slower_than(0.5), 4),
        "p99_seconds": round(tally.slower_than(0.99), 4),
        "slowest_seconds": round(tally.slower_than(1), 4),
        "answers": {kind: dict(statuses) for kind, statuses in sorted(tally.by_kind.items())},
    }


def told(tally: Tally) -> str:
    """Return what the table of the faults says about a run that went well."""
    good, classes = math.ceil(tally.count / BLOCK), tally.classes()
    return (
        f"0 crashes, 0 hangs, {good} of {good} good requests answered; {classes[2]} x 2xx, "
        f"{classes[4]} x 4xx, {classes[5]} x 5xx, {classes[0]} closed; "
        f"p99 {tally.slower_than(0.99):.2f} s, slowest {tally.slower_than(1):.1f} s"
    )


def row(
    measured: str, *, passed: bool, seed: int, requests: int, seconds: float
) -> fault_table.Row:
    """Return the row of a run in the table of the faults."""
    return fault_table.Row(
        name="hostile",
        order="k8s-tests/faults/hostile",
        fault=f"{requests:,} hostile HTTP requests (seed {seed}), on a server without a cluster",
        mark="0 crashes, 0 hangs, each good request between them answered",
        measured=measured,
        passed=passed,
        seconds=seconds,
        day=time.strftime("%Y-%m-%d", time.gmtime()),
        versions=f"Triton {TRITON_VERSION}",
    )


def main() -> int:
    """Run, print; return the exit code."""
    # Ends the server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="benchmarks.hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", choices=[builder.__name__ for _, builder in BUILDERS])
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print one request and end")
    parser.add_argument("--out", type=Path, help="JSON file of the counts")
    options = parser.parse_args()
    only = next((b for _, b in BUILDERS if b.__name__ == options.only), None)
    if options.show is not None:
        sys.stdout.buffer.write(make(options.seed, options.show, only).raw)
        return 0
    start = time.monotonic()

    def save(measured: str, *, passed: bool) -> None:
        if options.requests >= LONG and only is None:
            run_of = {"seed": options.seed, "requests": options.requests}
            row(measured, passed=passed, seconds=time.monotonic() - start, **run_of).save()

    say = Progress("hostile").say

    with tempfile.TemporaryDirectory() as folder, victim(Path(folder)) as server:
        try:
            check_good(server)
            tally = run(
                server,
                seed=options.seed,
                requests=options.requests,
                clients=options.clients,
                only=only,
                say=say,
            )
        except HostileError as error:
            print(f"hostile: {error}", file=sys.stderr)
            save(str(error), passed=False)
            print(server.output()[-3000:], file=sys.stderr)
            return 1
    print(tally.table())
    for (kind, status), answer in sorted(tally.wondrous.items()):
        print(f"{status}, {kind}, for example request {answer.number}: {answer.text[:200]}")
    print(
        f"p99 {tally.slower_than(0.99):.2f} s, slowest {tally.slower_than(1):.2f} s; "
        "all good requests answered"
    )
    save(told(tally), passed=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = record(tally, seed=options.seed, seconds=time.monotonic() - start)
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
