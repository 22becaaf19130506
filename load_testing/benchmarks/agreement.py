"""Our numbers beside those of a published benchmark client: NVIDIA's aiperf, from PyPI.

    python load_testing/benchmarks/published_client.py --install

Both ask the server with known times (tests/known_server.py) for the same streams, in turns. aiperf
speaks `/generate_stream` by its endpoint type `template`; nothing translates between the two. It
lives in an environment of its own (1.2 GB in the cache of the Makefile), because its requirements
exclude ours. Without that environment and without --install the benchmark is skipped.

Exit codes: 0 agreed within 3 % on tokens/s and 5 % on the median TTFT, or skipped; 1 did not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
VERSION = "0.13.0"
LIMITS = {"tokens_per_second": 0.03, "ttft_p50_seconds": 0.05}
USERS = 4
# aiperf spends some 10 ms of a small machine on each new request, before its first token and
# between two answers; the times are long enough that this weighs less than the limits. An answer
# takes 2.53 s, so that the end of a load of 11 s falls into the middle of the fifth for both.
SERVER = {"ttft_ms": 400, "gap_ms": 21.5, "tokens": 100}
BODY = '{"user_message": {{ text|tojson }}, "max_tokens": %d, "ignore_eos": true}'
# aiperf counts tokens itself; the known server's are words.
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "word": 1}, "unk_token": "[UNK]"},
}


class SkippedError(Exception):
    """The other client cannot run here; the text says why."""


def say(text: str) -> None:
    """Print progress with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def environment() -> Path:
    """Where aiperf lives: beside the environment of the Makefile."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("TRITON_CACHE") or home / "triton-on-kubernetes")
    major, minor, _ = platform.python_version_tuple()
    return cache / f"aiperf-{VERSION}-python{major}.{minor}"


def installed(*, install: bool) -> Path:
    """Return aiperf's program; with `install`, install it first where it is missing.

    Raises:
        SkippedError: It is not there and may not or cannot be installed.
    """
    place = environment()
    complete, program = place / ".complete", place / "bin" / "aiperf"
    if complete.exists():
        return program
    if not install:
        raise SkippedError(f"aiperf {VERSION} is not installed; --install does it (1.2 GB)")
    say(f"installing aiperf {VERSION} into {place} (1 to 3 min)")
    words = ["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(place / "bin" / "pip"), *words, f"aiperf=={VERSION}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise SkippedError(f"aiperf {VERSION} cannot be installed: {last}")
    complete.touch()
    return program


def write_inputs(folder: Path) -> None:
    """Write what aiperf reads: the request's body, one prompt, a tokenizer."""
    (folder / "body.jinja").write_text(BODY % SERVER["tokens"])
    (folder / "prompts.jsonl").write_text(json.dumps({"text": "Why is the sky blue?"}) + "\n")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(kind))


def theirs(program: Path, inputs: Path, out: Path, *, host: str, seconds: int) -> dict[str, float]:
    """Run aiperf once; return its numbers."""
    words = [
        *("profile", "--model=known", "--endpoint-type=template", "--streaming", f"--url={host}"),
        "--custom-endpoint=/v2/models/known_stream/generate_stream",
        f"--extra-inputs=payload_template:{inputs / 'body.jinja'}",
        "--extra-inputs=response_field:text_output",
        *(f"--input-file={inputs / 'prompts.jsonl'}", "--custom-dataset-type=single-turn"),
        *(f"--tokenizer={inputs / 'tokenizer'}", f"--concurrency={USERS}"),
        *("--workers-max=1", "--record-processors=1"),  # one process asks, as with ours
        *(f"--benchmark-duration={seconds}", "--connection-reuse-strategy=never"),
        *(f"--artifact-dir={out}", "--ui=none", "--no-gpu-telemetry", "--no-server-metrics"),
    ]
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    report = out / "profile_export_aiperf.json"
    told = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
    if done.returncode != 0 or not report.exists():
        raise RuntimeError(f"aiperf ended with {done.returncode}:\n{told}")
    found = json.loads(report.read_text())
    if found.get("request_error_rate", {}).get("avg"):
        raise RuntimeError(f"requests of aiperf failed:\n{told}")
    return {
        "tokens_per_second": found["output_token_throughput"]["avg"],
        "ttft_p50_seconds": found["time_to_first_token"]["p50"] / 1000,
    }


def measure(program: Path, *, rounds: int, seconds: int) -> list[dict[str, dict[str, float]]]:
    """Ask the same server by both clients in turns: what the machine does besides meets both."""
    from running import known_server, stream_numbers

    pairs = []
    with tempfile.TemporaryDirectory() as name, known_server(**SERVER) as server:
        folder = Path(name)
        write_inputs(folder)
        for number in range(rounds):
            ours = stream_numbers(
                folder / f"ours-{number}", host=server.host, users=USERS, seconds=seconds
            )
            out = folder / f"theirs-{number}"
            other = theirs(program, folder, out, host=server.host, seconds=seconds)
            pairs.append({"ours": ours, "aiperf": other})
            say(f"round {number + 1} of {rounds}: {json.dumps(pairs[-1])}")
    return pairs


def summary(pairs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return medians of both clients, and of their ratio with its spread."""
    found = {}
    for name, limit in LIMITS.items():
        ratios = [pair["ours"][name] / pair["aiperf"][name] for pair in pairs]
        ratio = statistics.median(ratios)
        found[name] = {
            "ours": statistics.median(pair["ours"][name] for pair in pairs),
            "aiperf": statistics.median(pair["aiperf"][name] for pair in pairs),
            "ratio": ratio,
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "limit": limit,
            "agreed": abs(ratio - 1) <= limit,
        }
    return found


def show(found: dict[str, Any]) -> None:
    """Print a table."""
    print(f"{'':<18}{'ours':>9}{'aiperf':>9}{'ratio':>8}  {'spread':<16}limit")
    for name, each in found.items():
        spread = f"{each['ratio_least']:.3f} to {each['ratio_most']:.3f}"
        print(
            f"{name:<18}{each['ours']:9.4g}{each['aiperf']:9.4g}{each['ratio']:8.3f}  "
            f"{spread:<16}{each['limit']:.0%}{'' if each['agreed'] else '  MISSED'}"
        )


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--install", action="store_true", help="install aiperf where it is missing")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each client")
    parser.add_argument("--seconds", type=int, default=11, help="length of a run")
    parser.add_argument("--out", type=Path, help="write the result as JSON, too")
    options = parser.parse_args()
    try:
        program = installed(install=options.install)
    except SkippedError as reason:
        print(f"skipped: {reason}")
        return 0
    before = os.getloadavg()[0]
    pairs = measure(program, rounds=options.rounds, seconds=options.seconds)
    found = summary(pairs)
    show(found)
    if options.out:
        machine = {"cores": os.cpu_count(), "load_average_before": round(before, 1)}
        told = {"aiperf": VERSION, "machine": machine, "server": SERVER, "users": USERS}
        document = {**told, "summary": found, "rounds": pairs}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if all(each["agreed"] for each in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
