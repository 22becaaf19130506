"""Our Triton beside other engines on this machine: same model, prompts and lengths, one run.

    python -m benchmarks.engine.peers --install --systems ours tutorial llama.cpp openvino

Each system is started alone, measured and ended; one that cannot run is a line that says why. Each
run verifies that every answer has as many tokens as were asked for. The client is a process of
its own on the same cores. Progress goes to standard error, tables to standard output, all numbers
to --out, with the tables and a plot beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.engine.systems import machine, report
from benchmarks.engine.systems.base import Running, System, UnavailableError
from benchmarks.engine.systems.limits import Limits
from benchmarks.engine.systems.llama_cpp import LlamaCpp
from benchmarks.engine.systems.measure import (
    IDLE_PROMPT,
    IDLE_RUNS,
    PREFILL_PROMPT,
    PREFILL_RUNS,
    FailedError,
    Shape,
    idle_seconds,
    measure,
    warm_up,
)
from benchmarks.engine.systems.prompts import prompts_for
from benchmarks.engine.systems.triton import OurTriton, Tutorial
from benchmarks.engine.systems.vllm_cpu import VllmCpu
from benchmarks.engine.systems.workers import ContinuousBatching, Engine, OpenVino
from tools.demo_model import LocalModel, ensure_smollm2
from triton_hf.progress import Progress

SYSTEMS = ("ours", "engine", "llama.cpp", "openvino", "transformers-cb", "tutorial", "vllm")
SYSTEMS += ("ours-int8", "llama.cpp-q8_0", "openvino-q8_0")
SHAPES = [Shape.parse(text) for text in ("64/64", "128/128", "1000/64")]
START = time.monotonic()


PROGRESS = Progress("peers")
say = PROGRESS.say


def systems(name: str, *, model: LocalModel, clients: int, longest: int) -> list[System]:
    """Return what a name of the command line stands for."""
    room: dict[str, Any] = {"model": model, "clients": clients, "longest": longest}
    made: dict[str, Callable[[], list[System]]] = {
        "ours": lambda: [OurTriton(streams=False, **room), OurTriton(streams=True, **room)],
        "ours-int8": lambda: [OurTriton(streams=False, weights="int8", **room)],
        "engine": lambda: [Engine(**room)],
        "llama.cpp": lambda: [LlamaCpp(kind="bf16", **room)],
        "llama.cpp-q8_0": lambda: [LlamaCpp(kind="q8_0", **room)],
        "openvino": lambda: [OpenVino(kind="f16", **room)],
        "openvino-q8_0": lambda: [OpenVino(kind="q8_0", **room)],
        "transformers-cb": lambda: [ContinuousBatching(**room)],
        "tutorial": lambda: [Tutorial(model=model)],
        "vllm": lambda: [VllmCpu(**room)],
    }
    return made[name]()


class Bench:
    """Measures systems and keeps what was found, also when it is broken off."""

    def __init__(self, options: argparse.Namespace, model: LocalModel) -> None:
        """Prepare prompts and rows."""
        self._options = options
        self.prompts = prompts_for(model.folder)  # they differ from all others of this run
        self._end = START + 60 * options.minutes
        self.machine = machine.describe()
        self._threads = int(str(self.machine["cores"]))
        self.limits = Limits.of(model.folder)
        self.rows: dict[str, report.Row] = {}

    def gauge(self) -> None:
        """Measure the machine."""
        self.limits.bandwidth += machine.read_bandwidth(threads=self._threads)
        self.limits.products += machine.multiply_rates(threads=self._threads)
        say(
            f"memory: {max(self.limits.bandwidth) / 1e9:.1f} GB/s at best, "
            f"products: {max(self.limits.products) / 1e9:.0f} GFLOP/s"
        )

    def prepare(self, system: System) -> bool:
        """Make a row and prepare; False when the system cannot be had."""
        row = report.Row(name=system.name, precision=system.precision, settings=system.settings)
        self.rows[system.name] = row
        say(f"{system.name}: preparing")
        try:
            system.prepare(install=self._options.install)
        except UnavailableError as error:
            row.fault = str(error)
            say(f"{system.name}: {error}")
        return not row.fault

    def visit(self, system: System, shape: Shape) -> None:
        """Start a system, measure one shape, end it; a failure is noted in its row."""
        row = self.rows[system.name]
        if self._late():
            row.fault = row.fault or f"the time was up before {shape}"
            return
        try:
            with tempfile.TemporaryDirectory(prefix="peers-") as name:
                start = time.perf_counter()
                with system.running(Path(name)) as running:
                    row.starts.append(time.perf_counter() - start)
                    say(f"{system.name}: ready in {row.starts[-1]:.1f} s")
                    self._measure(system, running, row, shape)
        except (UnavailableError, FailedError) as error:
            row.fault = f"{shape}: {error}"
            say(f"{system.name}: FAILED: {error}")

    def _late(self) -> bool:
        return time.monotonic() > self._end

    def _measure(self, system: System, running: Running, row: report.Row, shape: Shape) -> None:
        warm_up(running, self.prompts, clients=1 if system.serial else max(self._options.clients))
        if not row.idle_first_token:
            idle = functools.partial(idle_seconds, running, self.prompts)
            row.idle_first_token = idle(length=IDLE_PROMPT, runs=IDLE_RUNS)
            row.prefill_first_token = idle(length=PREFILL_PROMPT, runs=PREFILL_RUNS)
        cells = row.cells.setdefault(str(shape), {})
        first = shape == self._options.shapes[0]
        for clients in self._options.clients if first else self._options.rest_clients:
            if self._late():
                row.fault = f"the time was up before {shape} c={clients}"
                break
            cells[clients] = measure(
                running,
                self.prompts,
                shape,
                clients=clients,
                serial=system.serial,
                runs=self._options.repeats,
                seconds=self._options.cell_seconds,
                between=functools.partial(self._sweep, row) if clients == 1 else None,
            )
            speeds = [run.tokens_per_second for run in cells[clients]]
            say(f"{system.name}: {shape} c={clients}: {statistics.median(speeds):.1f} tok/s")
        used = machine.session_bytes(running.session)
        row.memory_bytes = max(row.memory_bytes or 0, used)

    def _sweep(self, row: report.Row) -> None:
        """Measure what bounds one client."""
        row.bandwidth += machine.read_bandwidth(threads=self._threads)

    def save(self) -> None:
        """Write what is known so far."""
        if out := self._options.out:
            document = {
                "machine": self.machine,
                "limits": dataclasses.asdict(self.limits),
                "memory_limit_tokens_per_second": self.limits.memory,
                "command": " ".join(sys.argv[1:]),
                "systems": [dataclasses.asdict(row) for row in self.rows.values()],
            }
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            out.with_suffix(".md").write_text(self.tables(), encoding="utf-8")
            report.draw(list(self.rows.values()), out.with_suffix(".png"), limits=self.limits)

    def tables(self) -> str:
        """All tables as Markdown."""
        rows = list(self.rows.values())
        return report.document(rows, limits=self.limits)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--shapes", nargs="+", type=Shape.parse, default=SHAPES)
    parser.add_argument("--clients", type=int, nargs="+", default=[16, 1, 32, 8, 4])
    parser.add_argument(
        "--rest-clients", type=int, nargs="+", default=[16, 1], help="of shapes after the first"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs for median and spread")
    parser.add_argument(
        "--cell-seconds", type=float, default=15, help="no further repeat begins after this"
    )
    parser.add_argument("--minutes", type=float, default=60, help="start nothing new after this")
    parser.add_argument("--install", action="store_true", help="fetch and build what is missing")
    parser.add_argument("--out", type=Path, help="JSON file for all results; a .png beside it")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 when our own system failed."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs is ended then, too
    model = ensure_smollm2()
    longest = max(PREFILL_PROMPT + 1, *(s.prompt + s.answer for s in options.shapes)) + 1
    room = max(options.clients)
    named = [
        system
        for name in options.systems
        for system in systems(name, model=model, clients=room, longest=longest)
    ]
    bench = Bench(options, model)
    bench.gauge()
    ready = [system for system in named if bench.prepare(system)]
    for shape in options.shapes:
        for system in ready:
            bench.visit(system, shape)
            bench.save()
    bench.gauge()
    bench.save()
    print(bench.tables())
    return any(row.fault for row in bench.rows.values() if row.name == report.OURS)


if __name__ == "__main__":
    sys.exit(main())
