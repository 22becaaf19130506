"""Tokens per second of the engine in process, beside `generate` of transformers on one batch.

    python -m benchmarks.engine.in_process --clients 1 4 16 --out engine.json

Each row of the table is the same number of requests with the same prompts, sent at once. CPU
seconds are those of the whole process, so a machine that does other work shows. The engine runs
with each of `--steps` (see `cpu_step` in config.pbtxt), run by run in turn, so that other work
meets both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tools.demo_model import ensure_smollm2
from triton_hf.compute.loading import load_model
from triton_hf.contract import Message, Sampling
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.text import TextEvent, TextWork
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings

Prompts = list[tuple[int, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One run; seconds, and tokens of answers per second."""

    wall: float
    cpu: float
    tokens_per_second: float
    tokens_per_cpu_second: float
    first_token_p50: float | None = None
    inter_token_p50: float | None = None
    inter_token_p99: float | None = None


class LocalEngine(TransformersEngine):
    """The engine on a folder instead of the model store."""

    folder: Path

    def _load(self) -> None:
        self._open(self.folder)


class Client:
    """Notes when the events of one request came; text that is held back makes none."""

    def __init__(self) -> None:
        """Start the clock."""
        self.times = [time.perf_counter()]
        self.done = threading.Event()
        self.failed = False

    def __call__(self, event: TextEvent) -> None:
        """Take an event."""
        self.times.append(time.perf_counter())
        self.failed = event.error is not None
        if event.last:
            self.done.set()


def measure_engine(engine: TransformersEngine, prompts: Prompts, answer: int) -> Result:
    """Send all prompts at once and wait for all answers."""
    sampling = Sampling(max_tokens=answer, ignore_eos=True)
    works = [
        TextWork(
            conversation=(Message(role="user", content="x"),),
            token_ids=prompt,
            prompt_tokens=len(prompt),
            max_tokens=answer,
            sampling=sampling,
        )
        for prompt in prompts
    ]
    cpu = time.process_time()
    clients = [Client() for _ in works]
    engine.submit(works, clients)
    for client in clients:
        client.done.wait()
    if any(client.failed for client in clients):
        raise SystemExit("engine: a request failed; see its traceback above")
    cpu = time.process_time() - cpu
    wall = max(c.times[-1] for c in clients) - min(c.times[0] for c in clients)
    gaps = [b - a for c in clients for a, b in zip(c.times[1:], c.times[2:], strict=False)]
    result = _result(wall, cpu, len(works) * answer)
    if len(gaps) < 2:
        return result
    return dataclasses.replace(
        result,
        first_token_p50=statistics.median(c.times[1] - c.times[0] for c in clients),
        inter_token_p50=statistics.median(gaps),
        inter_token_p99=statistics.quantiles(gaps, n=100)[98],
    )


def measure_generate(model: Any, prompts: Prompts, answer: int) -> Result:
    """Answer all prompts, which have one length, as one batch of `generate`."""
    import torch

    ids = torch.tensor(prompts)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=answer,
            eos_token_id=None,
            pad_token_id=0,
        )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return _result(wall, cpu, len(prompts) * answer)


def _result(wall: float, cpu: float, tokens: int) -> Result:
    return Result(
        wall=wall, cpu=cpu, tokens_per_second=tokens / wall, tokens_per_cpu_second=tokens / cpu
    )


def random_prompts(count: int, length: int, *, run: int) -> Prompts:
    """Prompts that differ, in other runs and numbers of clients too, so nothing can be reused."""
    numbers = random.Random(f"{run} {count}")
    return [tuple(numbers.randrange(100, 40_000) for _ in range(length)) for _ in range(count)]


def show(system: str, clients: int, results: list[Result]) -> None:
    """Print one line of the table."""
    speeds = sorted(result.tokens_per_second for result in results)
    work = statistics.median(result.tokens_per_cpu_second for result in results)
    line = f"{system:13} c={clients:<3} {statistics.median(speeds):8.1f} tok/s"
    line += f" ({speeds[0]:.1f} to {speeds[-1]:.1f})  {work:8.1f} tok per CPU second"
    found = [result for result in results if result.first_token_p50 is not None]
    for name in ("first_token_p50", "inter_token_p50", "inter_token_p99"):
        if found:
            milliseconds = 1000 * statistics.median(getattr(one, name) for one in found)
            line += f"  {name} {milliseconds:.0f} ms"
    print(line, flush=True)


def start_engine(options: argparse.Namespace, folder: Path, *, step: str) -> LocalEngine:
    """Return a running engine with this `cpu_step`."""
    settings = ModelSettings(
        repo_id="benchmark",
        dtype=options.dtype,
        cpu_step=step,
        slots=max(options.clients),
        max_total_tokens=options.prompt + options.answer + 1,
    )
    beat = Heartbeat(Path(tempfile.mkdtemp(prefix="engine-")) / "beat.json")
    engine = LocalEngine(settings=settings, metrics=Metrics(), heartbeat=beat)
    engine.folder = folder
    start = time.perf_counter()
    engine.start()
    seconds = time.perf_counter() - start
    print(f"engine, {step}: ready in {seconds:.1f} s", file=sys.stderr, flush=True)
    return engine


def bench_engine(options: argparse.Namespace, folder: Path) -> dict[str, dict[int, list[Result]]]:
    """Measure the engine for each step and number of clients."""
    engines = {step: start_engine(options, folder, step=step) for step in options.steps}
    results: dict[str, dict[int, list[Result]]] = {step: {} for step in engines}
    for count in options.clients:
        for run in range(-1, options.runs):
            # The first run only warms up.
            prompts = random_prompts(count, options.prompt, run=run)
            for step, engine in engines.items():
                result = measure_engine(engine, prompts, options.answer if run >= 0 else 4)
                if run >= 0:
                    results[step].setdefault(count, []).append(result)
        for step, by_count in results.items():
            show(f"engine, {step}", count, by_count[count])
    for engine in engines.values():
        engine.stop()
    return {f"engine, {step}": by_count for step, by_count in results.items()}


def bench_generate(options: argparse.Namespace, folder: Path) -> dict[int, list[Result]]:
    """Measure `generate` for each number of clients."""
    model = load_model(folder, ModelSettings(repo_id="benchmark", dtype=options.dtype))
    results = {}
    for count in options.clients:
        measure_generate(model, random_prompts(count, options.prompt, run=-1), 4)
        results[count] = [
            measure_generate(model, random_prompts(count, options.prompt, run=run), options.answer)
            for run in range(options.runs)
        ]
        show("generate", count, results[count])
    return results


def main() -> int:
    """Measure and print; JSON too when asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--runs", type=int, default=3, help="runs for median and spread")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--steps", nargs="+", default=["auto"], choices=["auto", "torch"])
    parser.add_argument("--no-generate", action="store_true", help="measure the engine only")
    parser.add_argument("--out", type=Path, help="JSON file for all results")
    options = parser.parse_args()
    apply_cpu_limits()
    folder = ensure_smollm2().folder
    results = bench_engine(options, folder)
    if not options.no_generate:
        results["generate"] = bench_generate(options, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"largest resident set of all together: {peak} MB", file=sys.stderr)
    if options.out:
        plain = {
            system: {count: [dataclasses.asdict(one) for one in runs] for count, runs in by.items()}
            for system, by in results.items()
        }
        options.out.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
