"""Our numbers beside those of two other clients: one of raw sockets, and aiperf from PyPI.

    python -m benchmarks.load_generator.agreement --install --out agreement.json

All ask the server with known times (lib/known_server.py) for the same streams, in turns. The
one of raw sockets (lib/reference_client.py) shares no code with the load test. NVIDIA's aiperf
speaks `/generate_stream` by its endpoint type `template`; nothing translates in between. It lives
in an environment of its own (1.2 GB in the cache of the Makefile), because its requirements exclude
ours. Without that environment and without --install it is left out, and the result says so.

Exit codes: 0 agreed within 3 % on tokens/s and 5 % on the median TTFT; 1 did not; 4 those that ran
agreed, and aiperf was left out.
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
from pathlib import Path
from typing import Any

from benchmarks.load_generator.conditions import conditions
from tools.place import ROOT
from triton_hf.progress import Progress

VERSION = "0.13.0"
DISAGREED, LEFT_OUT = 1, 4
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


PROGRESS = Progress("agreement")
say = PROGRESS.say


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


def reference(*, host: str, seconds: int) -> dict[str, float]:
    """Run the client of raw sockets once; return its numbers."""
    words = [f"--port={host.rsplit(':', 1)[1]}", "--model=known", f"--users={USERS}"]
    words += [f"--seconds={seconds}", f"--max-tokens={SERVER['tokens']}"]
    program = str(ROOT / "k8s-tests" / "lib" / "reference_client.py")
    done = subprocess.run(
        [sys.executable, program, *words], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    return {name: found[name] for name in LIMITS}


def aiperf(program: Path, inputs: Path, out: Path, *, host: str, seconds: int) -> dict[str, float]:
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


def measure(
    program: Path | None, *, rounds: int, seconds: int
) -> list[dict[str, dict[str, float]]]:
    """Ask the same server by all clients in turns: what the machine does besides meets all."""
    from lib.locust_runs import known_server, stream_numbers

    found = []
    with tempfile.TemporaryDirectory() as name, known_server(**SERVER) as server:
        folder = Path(name)
        write_inputs(folder)
        for number in range(rounds):
            host, out = server.host, folder / f"aiperf-{number}"
            each = {
                "ours": stream_numbers(
                    folder / f"ours-{number}", host=host, users=USERS, seconds=seconds
                ),
                "reference": reference(host=host, seconds=seconds),
            }
            if program:
                each["aiperf"] = aiperf(program, folder, out, host=host, seconds=seconds)
            found.append(each)
            say(f"round {number + 1} of {rounds}: {json.dumps(each)}")
    return found


def summary(rounds: list[dict[str, dict[str, float]]], other: str) -> dict[str, Any]:
    """Return medians of our numbers and of another client's, and of their ratio with its spread."""
    found = {}
    for name, limit in LIMITS.items():
        ratios = [each["ours"][name] / each[other][name] for each in rounds]
        ratio = statistics.median(ratios)
        found[name] = {
            "ours": statistics.median(each["ours"][name] for each in rounds),
            other: statistics.median(each[other][name] for each in rounds),
            "ratio": ratio,
            "ratio_least": min(ratios),
            "ratio_most": max(ratios),
            "limit": limit,
            "agreed": abs(ratio - 1) <= limit,
        }
    return found


def show(found: dict[str, Any], other: str) -> None:
    """Print a table."""
    print(f"{'':<18}{'ours':>9}{other:>11}{'ratio':>8}  {'spread':<16}limit")
    for name, each in found.items():
        spread = f"{each['ratio_least']:.3f} to {each['ratio_most']:.3f}"
        print(
            f"{name:<18}{each['ours']:9.4g}{each[other]:11.4g}{each['ratio']:8.3f}  "
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
    program, notes = None, {}
    try:
        program = installed(install=options.install)
    except SkippedError as reason:
        notes["aiperf"] = f"left out: {reason}"
        print(f"aiperf is {notes['aiperf']}")
    before = os.getloadavg()[0]
    rounds = measure(program, rounds=options.rounds, seconds=options.seconds)
    found = {other: summary(rounds, other) for other in rounds[0] if other != "ours"}
    for other, each in found.items():
        show(each, other)
    if options.out:
        document = {
            **conditions(before),
            "aiperf": VERSION,
            "server": SERVER,
            "users": USERS,
            "notes": notes,
            "summary": found,
            "rounds": rounds,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    if not all(each["agreed"] for other in found.values() for each in other.values()):
        return DISAGREED
    return 0 if program else LEFT_OUT


if __name__ == "__main__":
    raise SystemExit(main())
