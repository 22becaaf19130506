"""The worker of OpenVINO GenAI's continuous batching; runs in an environment that has it."""

from __future__ import annotations

import sys
import time
from typing import Any

from benchmarks.engine.systems.base import Answer
from benchmarks.engine.systems.worker import Ask, Ids, serve

CACHE_GB = 1


def start(path: str, clients: int, threads: int, precision: str) -> Ask:
    """Load the model and return what answers; it computes in bf16 or f32."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_seqs = clients
    scheduler.cache_size = CACHE_GB
    scheduler.enable_prefix_caching = False  # no two prompts begin alike
    properties = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    pipeline = openvino_genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
    return lambda prompts, tokens, count: ask(pipeline, prompts, tokens, count)


def ask(pipeline: Any, prompts: Ids, tokens: int, clients: int) -> list[Answer]:
    """Answer all prompts, `clients` of them at any time; the steps are done here."""
    import numpy
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    starts: list[float] = []
    events: list[list[tuple[float, int]]] = [[] for _ in prompts]
    handles: dict[int, Any] = {}
    while len(starts) < len(prompts) or handles:
        while len(starts) < len(prompts) and len(handles) < clients:
            index = len(starts)
            starts.append(time.perf_counter())
            ids = openvino.Tensor(numpy.array([prompts[index]], dtype=numpy.int64))
            handles[index] = pipeline.add_request(index, ids, config)
        pipeline.step()
        now = time.perf_counter()
        for index, handle in list(handles.items()):
            _read(handle, events[index], now)
            if events[index] and events[index][-1][1] >= tokens:
                del handles[index]
    return [
        Answer(start=start, events=tuple(found))
        for start, found in zip(starts, events, strict=True)
    ]


def _read(handle: Any, events: list[tuple[float, int]], now: float) -> None:
    while handle.can_read():
        made = sum(len(output.generated_ids) for output in handle.read().values())
        if made:
            events.append((now, made + (events[-1][1] if events else 0)))


def main() -> None:
    """Serve until the input ends: `openvino_worker MODEL CLIENTS THREADS PRECISION`."""
    path, clients, threads, precision = sys.argv[1:]
    serve(lambda: start(path, int(clients), int(threads), precision))


if __name__ == "__main__":
    main()
