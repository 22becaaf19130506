"""The worker of `engine`: our engine in process, to see what Triton costs."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.engine.in_process import LocalEngine
from benchmarks.engine.systems.base import Answer
from benchmarks.engine.systems.worker import Ask, Ids, serve
from triton_hf.contract import Message, Sampling
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.text import TextEvent, TextWork
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings


def start_engine(folder: Path, *, clients: int, longest: int) -> LocalEngine:
    """Return a running engine."""
    apply_cpu_limits()
    settings = ModelSettings(
        repo_id="benchmark",
        dtype="bfloat16",
        device="cpu",
        slots=clients,
        max_queue=2 * clients,
        max_prompt_tokens=longest - 1,
        max_total_tokens=longest,
    )
    beat = Heartbeat(Path(tempfile.mkdtemp(prefix="engine-")) / "beat.json")
    engine = LocalEngine(settings=settings, metrics=Metrics(), heartbeat=beat)
    engine.folder = folder
    engine.start()
    return engine


def ask(engine: TransformersEngine, prompts: Ids, tokens: int, clients: int) -> list[Answer]:
    """Answer all prompts, `clients` of them at any time, from a thread each."""
    waiting = list(reversed(list(enumerate(prompts))))
    answers: dict[int, Answer] = {}

    def client() -> None:
        while True:
            try:
                index, ids = waiting.pop()
            except IndexError:
                return
            answers[index] = _ask_one(engine, ids, tokens)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answers[index] for index in range(len(prompts))]


def _ask_one(engine: TransformersEngine, ids: list[int], tokens: int) -> Answer:
    work = TextWork(
        conversation=(Message(role="user", content="x"),),
        token_ids=tuple(ids),
        prompt_tokens=len(ids),
        max_tokens=tokens,
        sampling=Sampling(max_tokens=tokens, ignore_eos=True),
    )
    events: list[tuple[float, int]] = []
    faults: list[str] = []
    done = threading.Event()

    def listen(event: TextEvent) -> None:
        events.append((time.perf_counter(), event.completion_tokens))
        if event.error:
            faults.append(str(event.error))
        if event.last:
            done.set()

    start = time.perf_counter()
    engine.submit([work], [listen])
    done.wait()
    return Answer(start=start, events=tuple(events), fault=" ".join(faults))


def main() -> None:
    """Serve until the input ends: `engine_worker FOLDER CLIENTS LONGEST`."""
    folder, clients, longest = sys.argv[1:]
    engines: list[LocalEngine] = []

    def start() -> Ask:
        engines.append(start_engine(Path(folder), clients=int(clients), longest=int(longest)))
        return lambda prompts, tokens, count: ask(engines[0], prompts, tokens, count)

    serve(start)
    engines[0].stop()


if __name__ == "__main__":
    main()
