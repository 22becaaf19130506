"""The worker of transformers' own continuous batching."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.engine.systems.base import Answer
from benchmarks.engine.systems.worker import Ask, Ids, serve
from triton_hf.cpu import apply_cpu_limits

PAGE_TOKENS = 64
BATCH_TOKENS = 512  # the mask of each step grows with it
SILENCE_SECONDS = 300


def start(folder: str, clients: int, longest: int) -> Ask:
    """Load the model and start the manager's thread."""
    apply_cpu_limits()
    os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")  # without copies of keys and values
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False, eos_token_id=-1, max_new_tokens=longest
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=clients * -(-longest // PAGE_TOKENS),
            max_batch_tokens=max(BATCH_TOKENS, clients),
            max_requests_per_batch=clients,
            allow_block_sharing=False,  # no two prompts begin alike
            auto_switch_to_flash=False,
        ),
    )
    manager.start()
    return lambda prompts, tokens, count: ask(manager, prompts, tokens, count)


def ask(manager: Any, prompts: Ids, tokens: int, clients: int) -> list[Answer]:
    """Answer all prompts, `clients` of them at any time."""
    starts: list[float] = []
    answers: dict[int, Answer] = {}

    def send() -> None:
        index = len(starts)
        starts.append(time.perf_counter())
        manager.add_request(
            prompts[index], request_id=str(index), max_new_tokens=tokens, record_timestamps=True
        )

    for _ in range(min(clients, len(prompts))):
        send()
    while len(answers) < len(prompts):
        output = manager.get_result(timeout=SILENCE_SECONDS)
        if output is None:
            raise RuntimeError("the manager gave no result")
        index = int(output.request_id)
        times = output.timestamps or [time.perf_counter()]
        events = tuple((when, count + 1) for count, when in enumerate(times))
        made = len(output.generated_tokens)
        fault = output.error or ("" if made == tokens else f"{made} tokens")
        answers[index] = Answer(start=starts[index], events=events, fault=fault)
        if len(starts) < len(prompts):
            send()
    return [answers[index] for index in range(len(prompts))]


def main() -> None:
    """Serve until the input ends: `continuous_worker FOLDER CLIENTS LONGEST`."""
    folder, clients, longest = sys.argv[1:]
    serve(lambda: start(folder, int(clients), int(longest)))
    os._exit(0)  # the manager's thread needs no goodbye


if __name__ == "__main__":
    main()
