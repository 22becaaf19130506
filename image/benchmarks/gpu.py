"""Time between tokens on a GPU beside what its memory allows, with random weights of a real shape.

    python image/benchmarks/gpu.py --clients 1 64 --out results/gpu.json

Nothing is downloaded: speed does not depend on what the weights say. The limit is what one step has
to read (weights, keys and values) divided by the memory's speed, measured in the same run. vLLM is
measured first, in a process of its own, where it is installed. `--shape tiny` runs anywhere, to see
that all of this works; its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "image"), str(ROOT / "k8s-tests")]

from benchmarks.engine import Prompts, measure_engine  # noqa: E402

from triton_hf.health import Heartbeat  # noqa: E402
from triton_hf.metrics import Metrics  # noqa: E402
from triton_hf.placement import place_model  # noqa: E402
from triton_hf.settings import ModelSettings  # noqa: E402
from triton_hf.transformers_engine import TransformersEngine  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
    },
    "tiny": {
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
}
SWEEP_BYTES = 4 << 30
SWEEPS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One system at one number of clients; times in seconds.

    Attributes:
        inter_token: Median time between two tokens of an answer.
        limit: What reading weights, keys and values once takes; None without a GPU.
        tokens_per_second: Of all answers, prompts included.
        idle: Share of the time between steps in which the GPU did nothing; None where unknown.
    """

    system: str
    clients: int
    inter_token: float
    limit: float | None
    tokens_per_second: float
    idle: float | None = None


def step_bytes(shape: dict[str, Any], *, clients: int, context: int, weights: float) -> float:
    """Bytes that one step has to read.

    Args:
        shape: One of `SHAPES`.
        clients: Rows of the step.
        context: Tokens of each row.
        weights: Bytes of the weights without the input embedding, of which a row reads one line.
    """
    width = shape["hidden_size"] // shape["num_attention_heads"]
    token = 2 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * width * 2
    return weights + clients * context * token


def table(results: list[Result], *, bandwidth: float | None) -> str:
    """The results as Markdown."""
    speed = f"{bandwidth / 1e12:.2f} TB/s" if bandwidth else "unknown"
    lines = [
        f"Memory: {speed}",
        "",
        "| system | clients | between tokens ms | limit ms | times the limit | tok/s | GPU idle |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in results:
        limit = f"{1000 * one.limit:.2f}" if one.limit else "-"
        times = f"{one.inter_token / one.limit:.2f}" if one.limit else "-"
        idle = "-" if one.idle is None else f"{one.idle:.1%}"
        lines.append(
            f"| {one.system} | {one.clients} | {1000 * one.inter_token:.2f} | {limit} | {times} "
            f"| {one.tokens_per_second:.0f} | {idle} |"
        )
    return "\n".join(lines)


def read_bandwidth() -> float:
    """Bytes per second of the best product of a large matrix and a vector, which only reads."""
    import torch

    matrix = torch.zeros((SWEEP_BYTES // 2 // 8192, 8192), dtype=torch.bfloat16, device="cuda")
    vector = torch.zeros(8192, dtype=torch.bfloat16, device="cuda")
    speeds = []
    for _ in range(SWEEPS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.mv(matrix, vector)
        end.record()
        end.synchronize()
        speeds.append(SWEEP_BYTES / (start.elapsed_time(end) / 1000))
    return max(speeds)


class StepClock:
    """Notes on the GPU when each step of a runner begins and ends."""

    def __init__(self, runner: Any) -> None:
        """Watch a runner from now on."""
        import torch

        self._event = lambda: torch.cuda.Event(enable_timing=True)
        self._launch, self._marks = runner.launch, []  # type: ignore[var-annotated]
        runner.launch = self._timed

    def _timed(self, rows: Any) -> Any:
        start, end = self._event(), self._event()
        start.record()
        pending = self._launch(rows)
        end.record()
        self._marks.append((start, end))
        return pending

    def idle(self) -> float:
        """Share of time between the later half of the steps since the last call."""
        marks, self._marks = self._marks, []
        marks[-1][1].synchronize()
        later = marks[len(marks) // 2 :]
        pairs = itertools.pairwise(later)
        gaps = sum(max(before[1].elapsed_time(after[0]), 0.0) for before, after in pairs)
        return float(gaps / later[0][0].elapsed_time(later[-1][1]))


class RandomEngine(TransformersEngine):
    """The engine on random weights."""

    shape: dict[str, Any]
    weight_bytes = 0

    def _load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        device = torch.device(self.settings.device)
        with device:
            model = AutoModelForCausalLM.from_config(
                LlamaConfig(**self.shape), dtype=torch.bfloat16
            )
        model.train(False)
        place_model(model, weights=self.settings.weights, device=device)
        embedding = model.get_input_embeddings().weight
        sizes = [p.numel() * p.element_size() for p in model.parameters()]
        self.weight_bytes = sum(sizes) - embedding.numel() * embedding.element_size()
        self._use(model, _word_tokenizer(self.shape["vocab_size"]))


def _word_tokenizer(size: int) -> Any:
    import transformers
    from tokenizers import Tokenizer, models

    words = [f"t{index} " for index in range(size)]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=words[1])
    tokenizer.chat_template = "{{ messages[0].content }}"  # the engine asks for one
    return tokenizer


def measure_ours(options: argparse.Namespace, bandwidth: float | None) -> list[Result]:
    """Start the engine and measure it for each number of clients."""
    settings = ModelSettings(
        repo_id=f"random {options.shape}",
        dtype="bfloat16",
        device="cuda" if bandwidth else "cpu",
        weights=options.weights,
        slots=max(options.clients),
        max_queue=max(options.clients),
        max_prompt_tokens=options.prompt,
        max_total_tokens=options.prompt + options.answer,
    )
    beat = Heartbeat(Path(tempfile.mkdtemp(prefix="engine-")) / "beat.json")
    engine = RandomEngine(settings=settings, metrics=Metrics(), heartbeat=beat)
    engine.shape = SHAPES[options.shape]
    start = time.perf_counter()
    engine.start()
    print(f"engine: ready in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    clock = StepClock(engine._runner) if hasattr(engine._runner, "launch") else None
    results = []
    for clients in options.clients:
        measure_engine(engine, random_prompts(options, clients, run=-1), 4)  # warms up
        if clock:
            clock.idle()
        runs = []
        for run in range(options.runs):
            prompts = random_prompts(options, clients, run=run)
            found = measure_engine(engine, prompts, options.answer)
            runs.append((found, clock.idle() if clock else None))
        limit = None
        if bandwidth:
            read = step_bytes(
                engine.shape,
                clients=clients,
                context=options.prompt + options.answer // 2,
                weights=engine.weight_bytes,
            )
            limit = read / bandwidth
        idle = [share for _, share in runs if share is not None]
        results.append(
            Result(
                system="ours, engine",
                clients=clients,
                inter_token=statistics.median(one.inter_token_p50 or 0.0 for one, _ in runs),
                limit=limit,
                tokens_per_second=statistics.median(one.tokens_per_second for one, _ in runs),
                idle=statistics.median(idle) if idle else None,
            )
        )
    engine.stop()
    return results


def random_prompts(options: argparse.Namespace, count: int, *, run: int) -> Prompts:
    """Prompts that differ from each other and from those of other runs."""
    numbers = random.Random(f"{run} {count}")  # noqa: S311 - not a secret
    size = SHAPES[options.shape]["vocab_size"]
    return [tuple(numbers.randrange(2, size) for _ in range(options.prompt)) for _ in range(count)]


def measure_vllm(options: argparse.Namespace) -> list[Result] | str:
    """Measure vLLM in a process of its own; why not, where it is not installed or fails."""
    if importlib.util.find_spec("vllm") is None:
        return "it is not installed"
    words = ["--shape", options.shape, "--prompt", str(options.prompt)]
    words += ["--answer", str(options.answer), "--runs", str(options.runs), "--clients"]
    words += [str(count) for count in options.clients]
    command = [sys.executable, __file__, "--vllm-worker", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no word"]
        return f"it failed: {lines[-1][:300]}"
    return [Result(**one) for one in json.loads(done.stdout.strip().splitlines()[-1])]


def vllm_worker(options: argparse.Namespace) -> list[Result]:
    """Measure vLLM in this process.

    Its time between tokens is that of all answers less that of answers of one token.
    """
    import vllm
    from transformers import LlamaConfig

    folder = tempfile.mkdtemp(prefix="shape-")
    config = LlamaConfig(**SHAPES[options.shape], architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    engine = vllm.LLM(
        model=folder,
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=options.prompt + options.answer,
        max_num_seqs=max(options.clients),
        enable_prefix_caching=False,
    )

    def seconds(prompts: Prompts, tokens: int) -> float:
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        engine.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - start

    results = []
    for clients in options.clients:
        seconds(random_prompts(options, clients, run=-1), 4)
        pairs = []
        for run in range(options.runs):
            prompts = random_prompts(options, clients, run=run)
            pairs.append((seconds(prompts, 1), seconds(prompts, options.answer)))
        results.append(
            Result(
                system=f"vLLM {vllm.__version__}",
                clients=clients,
                inter_token=statistics.median(b - a for a, b in pairs) / (options.answer - 1),
                limit=None,
                tokens_per_second=clients * options.answer / statistics.median(b for _, b in pairs),
            )
        )
    return results


def main() -> int:
    """Measure and print; JSON too when asked. Exit code 2: there is no GPU here."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--answer", type=int, default=256, help="tokens of each answer")
    parser.add_argument("--weights", default="auto", help="see `weights` in config.pbtxt")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--vllm-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.vllm_worker:
        print(json.dumps([dataclasses.asdict(one) for one in vllm_worker(options)]))
        return 0
    gpu = torch.cuda.is_available()
    if not gpu and options.shape != "tiny":
        print("torch sees no NVIDIA GPU here; --shape tiny runs without", file=sys.stderr)
        return 2
    peer = measure_vllm(options) if gpu else "there is no GPU"
    bandwidth = read_bandwidth() if gpu else None
    results = measure_ours(options, bandwidth)
    if isinstance(peer, str):
        print(f"vLLM: not measured, {peer}", file=sys.stderr)
    else:
        limits = {one.clients: one.limit for one in results}
        results += [dataclasses.replace(one, limit=limits[one.clients]) for one in peer]
    print(table(results, bandwidth=bandwidth))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "device": torch.cuda.get_device_name() if gpu else "cpu",
            "torch": torch.__version__,
            "shape": options.shape,
            "prompt": options.prompt,
            "answer": options.answer,
            "weights": options.weights,
            "bandwidth": bandwidth,
            "vllm": peer if isinstance(peer, str) else "measured",
            "results": [dataclasses.asdict(one) for one in results],
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
