"""What OpenAI's API costs: streams of `/v1/chat/completions` beside those of `generate_stream`.

    python -m benchmarks.engine.openai_api --out results/openai.json

One server and one model, asked in both ways in turn. A pair asks in both ways, one right after the
other and in another order each time, so that a slow stretch of the machine meets both. What counts
are the ratio of tokens per second and the difference of the time to first token within a pair. The
client shares the cores with the server. Progress goes to standard error, the table to standard
output, all numbers to --out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from embedded_triton.server import Server, running_server
from lib.openai_server import Api, running_api
from tools.demo_model import REPOSITORY
from tools.hub_mirror.repositories import populate
from tools.hub_mirror.server import running_hub
from triton_hf.models.repository import write_model
from triton_hf.models.specification import ModelSpec
from triton_hf.progress import Progress

MODEL = "m"
OPENAI, GENERATE = "/v1/chat/completions", "generate_stream"

Pair = dict[str, dict[str, float]]  # way -> tokens_per_second, ttft_ms


PROGRESS = Progress("openai_api")
say = PROGRESS.say


def request(way: str, question: str, tokens: int) -> tuple[str, dict[str, Any]]:
    """Return path and body of one question."""
    sampling = {"max_tokens": tokens, "ignore_eos": True}
    if way == OPENAI:
        messages = [{"role": "user", "content": question}]
        return OPENAI, {"model": MODEL, "messages": messages, "stream": True, **sampling}
    path = f"/v2/models/{MODEL}_stream/generate_stream"
    return path, {"user_message": question, **sampling}


def text_of(event: dict[str, Any]) -> str:
    """Return the new text of an event.

    Raises:
        RuntimeError: The event is an error.
    """
    if "error" in event:
        raise RuntimeError(f"a request failed: {event['error']}")
    if "choices" in event:
        return str(event["choices"][0]["delta"].get("content") or "")
    return str(event["text_output"])


async def stream(port: int, path: str, body: dict[str, Any]) -> float:
    """Ask once; return the time to first token in seconds after the whole answer came.

    Raises:
        RuntimeError: The request failed, or its answer has no text.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
    )
    start = time.perf_counter()
    writer.write(head.encode() + b"\r\n" + data)
    first = None
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            text = text_of(json.loads(line[6:]))
            if text and first is None:
                first = time.perf_counter() - start
    writer.close()
    if first is None:
        raise RuntimeError(f"{path} gave no text")
    return first


async def ask(way: str, *, port: int, questions: list[str], clients: int, tokens: int) -> Any:
    """Ask all questions with so many clients; return speed and median TTFT."""
    left = list(questions)
    times = []

    async def client() -> None:
        while left:
            times.append(await stream(port, *request(way, left.pop(), tokens)))

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - start
    return {
        "tokens_per_second": len(questions) * tokens / took,
        "ttft_ms": statistics.median(times) * 1000,
    }


def pairs(server: Server, api: Api, *, clients: int, options: argparse.Namespace) -> list[Pair]:
    """Ask in both ways, in turn."""
    ports = {OPENAI: api.port, GENERATE: server.ports.http}
    found = []
    for number in range(-1, options.pairs):
        ways = [OPENAI, GENERATE] if number % 2 else [GENERATE, OPENAI]
        pair = {}
        for way in ways:
            # Each question once and unlike any other from its start, so that no way finds more in
            # the prefix cache; of the same length for both.
            side = "left" if way == OPENAI else "right"
            asked = [
                f"{index} {number} {side}: tell me a story about this house and its people."
                for index in range(clients * options.waves)
            ]
            work = ask(
                way, port=ports[way], questions=asked, clients=clients, tokens=options.tokens
            )
            pair[way] = asyncio.run(work)
        if number >= 0:  # the first only warms up
            found.append(pair)
            texts = (
                f"{way} {pair[way]['tokens_per_second']:.0f} tok/s, {pair[way]['ttft_ms']:.1f} ms"
                for way in (GENERATE, OPENAI)
            )
            say(f"c={clients}, pair {number + 1} of {options.pairs}: {'; '.join(texts)}")
    return found


def table(found: dict[int, list[Pair]]) -> str:
    """Return medians over the pairs as a Markdown table."""
    lines = [
        f"| clients | tokens/s, {GENERATE} | tokens/s, {OPENAI} | ratio | TTFT, {GENERATE} "
        f"| TTFT, {OPENAI} | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for clients, rows in found.items():
        speeds = [_median(rows, way, "tokens_per_second") for way in (GENERATE, OPENAI)]
        firsts = [_median(rows, way, "ttft_ms") for way in (GENERATE, OPENAI)]
        ratio, later = compared(rows)
        lines.append(
            f"| {clients} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.1%} "
            f"| {firsts[0]:.1f} ms | {firsts[1]:.1f} ms | {later:+.1f} ms |"
        )
    return "\n".join(lines)


def compared(rows: list[Pair]) -> tuple[float, float]:
    """Return the median ratio of tokens per second and the median difference of TTFT in ms."""
    ratio = [row[OPENAI]["tokens_per_second"] / row[GENERATE]["tokens_per_second"] for row in rows]
    later = [row[OPENAI]["ttft_ms"] - row[GENERATE]["ttft_ms"] for row in rows]
    return statistics.median(ratio), statistics.median(later)


def _median(rows: list[Pair], way: str, name: str) -> float:
    return statistics.median(row[way][name] for row in rows)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--pairs", type=int, default=8, help="even: each way is first as often")
    parser.add_argument("--waves", type=int, default=4, help="requests for each client")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--engine", choices=("transformers", "simulated"), default="transformers")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    return parser.parse_args()


def spec(options: argparse.Namespace) -> ModelSpec:
    """Return the model: SmolLM2 in bfloat16, or a simulated one that costs nothing."""
    common = {"slots": str(max(options.clients)), "max_total_tokens": "2048"}
    if options.engine == "simulated":
        parameters = {**common, "ttft_ms": "20", "inter_token_ms": "10"}
        return ModelSpec(name=MODEL, engine="simulated", parameters=parameters)
    parameters = {**common, "dtype": "bfloat16"}
    return ModelSpec(name=MODEL, repository=REPOSITORY, parameters=parameters)


def run(options: argparse.Namespace) -> dict[int, list[Pair]]:
    """Start the server and measure with each number of clients."""
    with tempfile.TemporaryDirectory(prefix="openai-api-") as name:
        folder = Path(name)
        populate(folder / "hub")
        write_model(folder / "models", spec(options))
        with running_hub(folder / "hub") as hub:
            environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf")}
            with (
                running_server(
                    arguments=[f"--model-repository={folder / 'models'}"],
                    workdir=folder,
                    environment={**environment, "HF_HUB_OFFLINE": "0"},
                    wait_seconds=400,
                ) as server,
                running_api(grpc_port=server.ports.grpc, workdir=folder) as api,
            ):
                say("ready")
                return {
                    clients: pairs(server, api, clients=clients, options=options)
                    for clients in options.clients
                }


def main() -> int:
    """Measure, print the table and write the numbers."""
    options = parse()
    found = run(options)
    print(table(found))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": {"cores": os.cpu_count()}, "options": {**vars(options), "out": None}}
        options.out.write_text(json.dumps({**kept, "pairs": found}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
