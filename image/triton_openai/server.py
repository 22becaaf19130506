"""`triton-hf openai`: serves the API until SIGTERM, then finishes the answers that it has begun."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
import uvloop

from triton_openai.app import make_app
from triton_openai.gate import Keys, log
from triton_openai.triton import Triton

KEY_VARIABLE = "TRITON_API_KEY"
MEBIBYTE = 1024 * 1024


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(list(arguments))
    try:
        keys = Keys(file=options.api_key_file, text=os.environ.get(KEY_VARIABLE, ""))
        secrets = dict(_secret(item) for item in options.triton_header)
    except (OSError, ValueError) as error:
        print(f"triton-hf openai: {error}", file=sys.stderr)
        return 2
    # uvicorn raises the signal that ended it once more at its end; it ends in good order with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="openai: %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(options, keys, secrets))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="triton-hf openai", description=__doc__)
    parser.add_argument("--triton", default="localhost:8001", help="gRPC address (localhost:8001)")
    parser.add_argument("--address", default="0.0.0.0", help="address to bind (0.0.0.0)")  # noqa: S104
    parser.add_argument("--port", type=int, default=9000, help="HTTP port (9000)")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        help=f"keys that clients may send, one a line (else {KEY_VARIABLE} holds one; "
        "without either no key is needed)",
    )
    parser.add_argument(
        "--triton-header",
        action="append",
        default=[],
        metavar="NAME=VARIABLE",
        help="header of a restricted API of Triton, and the environment variable with its value",
    )
    parser.add_argument(
        "--max-body-mib", type=float, default=8, help="longest body of a request in MiB (8)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=int,
        default=60,
        help="after SIGTERM, longest wait for answers that have begun (60)",
    )
    return parser


def _secret(item: str) -> tuple[str, str]:
    name, _, variable = item.partition("=")
    value = os.environ.get(variable, "")
    if not name or not value:
        raise ValueError(
            f"--triton-header {item}: write NAME=VARIABLE, and set that environment variable"
        )
    return name, value


async def _serve(options: argparse.Namespace, keys: Keys, secrets: dict[str, str]) -> int:
    triton = Triton(address=options.triton, secrets=secrets)
    app = make_app(triton=triton, keys=keys, max_body_bytes=int(options.max_body_mib * MEBIBYTE))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=options.address,
            port=options.port,
            http="httptools",
            loop="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            # Longer than gateways keep idle connections, so that they close them and not we.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=options.drain_seconds,
        )
    )
    log(
        f"http://{options.address}:{options.port}/v1, Triton at {options.triton}, "
        f"{'with' if keys.needed else 'without'} API key"
    )
    try:
        await server.serve()
    except SystemExit:  # uvicorn's, when it cannot bind; it has said why
        return 1
    finally:
        await triton.close()
    return 0
