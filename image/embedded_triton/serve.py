"""Runs the embedded Triton in the foreground: what `run_server.sh` does without Docker."""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from embedded_triton.fetch import progress
from embedded_triton.server import Ports, free_ports, is_ready, prepare, stop_group
from triton_hf.errors import EXIT_ENGINE, TritonHFError
from triton_hf.server.launch import OPENAI_PORT

STILL_LOADING_SECONDS = 8


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit status, `EXIT_ENGINE` for a lost engine."""
    parser = argparse.ArgumentParser(prog="embedded_triton.serve", description=__doc__)
    parser.add_argument("--port", type=int, default=80, help="HTTP port (80)")
    parser.add_argument("--grpc-port", type=int, help="default: 8001, or a free one")
    parser.add_argument("--metrics-port", type=int, help="default: 8002, or a free one")
    parser.add_argument("--openai-port", type=int, help="port of OpenAI's API (none)")
    parser.add_argument("--model-repository", required=True, type=Path)
    parser.add_argument("models", nargs="+", help="models to load")
    try:
        return _serve(parser.parse_args())
    except TritonHFError as error:
        print(f"run_server: {error}", file=sys.stderr)
        return 1


def _serve(options: argparse.Namespace) -> int:
    spare = free_ports()
    ports = Ports(
        http=options.port,
        grpc=options.grpc_port or _free_or(8001, spare.grpc),
        metrics=options.metrics_port or _free_or(8002, spare.metrics),
    )
    runtime = Path(tempfile.mkdtemp(prefix="triton-hf-"))
    last_words = runtime / "termination-log"
    arguments = [f"--model-repository={options.model_repository}", "--model-control-mode=explicit"]
    arguments += [f"--load-model={model}" for model in options.models]
    arguments += ["--allow-sagemaker=false", "--allow-vertex-ai=false", "--exit-timeout-secs=10"]
    arguments += ["--log-info=false"]
    # Ctrl-C reaches the whole foreground group; Triton gets one SIGTERM from here instead.
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        command, environment = prepare(arguments=arguments, ports=ports, runtime=runtime)
        environment["TERMINATION_LOG"] = str(last_words)
        if options.openai_port:
            environment[OPENAI_PORT] = str(options.openai_port)
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        _announce(process, ports, options.models, lambda: stopped, openai_port=options.openai_port)
        while process.poll() is None and not stopped:
            time.sleep(0.2)
        if not stopped:
            said = last_words.read_text("utf-8").strip() if last_words.exists() else ""
            progress(f"run_server: tritonserver ended by itself: {said or 'its log is above'}")
            return stop_group(process) or EXIT_ENGINE
        progress("run_server: stopping")
        stop_group(process)
        return 0
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


def _free_or(port: int, spare: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return spare
    return port


def _announce(
    process: subprocess.Popen[bytes],
    ports: Ports,
    models: Sequence[str],
    stopped: Callable[[], bool],
    *,
    openai_port: int | None,
) -> None:
    """Say when the server is ready, and while it loads that it still does."""
    start = said = time.monotonic()
    while process.poll() is None and not stopped():
        now = time.monotonic()
        if is_ready(ports.http):
            model = "smollm2-135m" if "smollm2-135m" in models else models[0]
            progress(
                f"run_server: ready after {now - start:.0f} s; "
                f"gRPC on {ports.grpc}, metrics on http://localhost:{ports.metrics}/metrics; try:\n"
                f"  curl http://localhost:{ports.http}/v2/models/{model}/generate "
                '-d \'{"user_message": "Why is the sky blue?"}\''
            )
            if openai_port:
                progress(f"run_server: OpenAI's API on http://localhost:{openai_port}/v1")
            return
        if now - said > STILL_LOADING_SECONDS:
            progress(f"run_server: loading ... {now - start:.0f} s")
            said = now
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
