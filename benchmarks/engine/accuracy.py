"""How far the engine's answers are from those of transformers, on SmolLM2-135M.

    python -m benchmarks.engine.accuracy --prompts 100 --answer 64 --out accuracy.json

Three measurements:

- float32: greedy answers of the engine, many at once, against `generate` of transformers, one at a
  time. They have to be the same.
- bfloat16, perplexity of a text (Python's own documentation): the native step token by token, the
  same with weights in int8, torch, and torch in float32.
- bfloat16, greedy answers of the native step, read again by torch: where torch would have said
  another token first, how much higher it rates its own. Two tokens within a quarter are a tie.

Exit code 1 when an answer in float32 differs, the perplexity is more than 0.5 % off that of torch,
or a first other token was no tie; 2 when the native step does not run here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.engine.in_process import Client, start_engine
from tools.demo_model import ensure_smollm2
from tools.place import ROOT
from triton_hf.compute.loading import load_model
from triton_hf.compute.model_files import load_tokenizer
from triton_hf.contract import Message, Sampling
from triton_hf.cpu import apply_cpu_limits
from triton_hf.engines.text import TextEvent, TextWork
from triton_hf.models.settings import ModelSettings
from triton_hf.progress import Progress
from triton_hf.runtime import cache_root
from triton_native.library import UnavailableError

SUBJECTS = (
    *("the sky", "a bicycle", "the moon", "bread", "a river", "glass", "a violin", "the heart"),
    *("a volcano", "snow", "a compass", "the internet", "coffee", "a bridge", "sleep", "gold"),
    *("a telescope", "tea", "an engine", "the wind"),
)
QUESTIONS = (
    "Explain {} to a child.",
    "Write a short story about {}.",
    "What are three facts about {}?",
    "How would you describe {} in one sentence?",
    "Why does {} matter to people?",
)
TIE = 0.25
PERPLEXITY_LIMIT = 0.005
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What was measured.

    Attributes:
        equal: greedy answers in float32 that are those of `generate`.
        perplexity: by what computed it.
        off: native perplexity against that of torch in bfloat16, a part of it.
        diverged: answers of the native step where torch would have said another token.
        gaps: at the first such token, how much higher torch rates its own; largest first.
    """

    prompts: int
    answer: int
    equal: int
    perplexity: dict[str, float]
    off: float
    diverged: int
    gaps: list[float]

    @property
    def good(self) -> bool:
        """Whether all three are within their limits."""
        ties = all(gap <= TIE for gap in self.gaps)
        return self.equal == self.prompts and abs(self.off) <= PERPLEXITY_LIMIT and ties


say = Progress("accuracy").say


def conversations(count: int) -> list[str]:
    """Return so many different questions.

    Raises:
        SystemExit: there are not that many.
    """
    every = [question.format(subject) for subject in SUBJECTS for question in QUESTIONS]
    if count > len(every):
        raise SystemExit(f"accuracy: --prompts is at most {len(every)}")
    return every[:count]


def chat_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a conversation as the engine makes them."""
    turns = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])


class Text(Client):
    """Keeps the text of an answer."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self.text = ""

    def __call__(self, event: TextEvent) -> None:
        """Take an event."""
        self.text += event.text
        super().__call__(event)


def equal_in_float32(options: argparse.Namespace, folder: Path, since: float) -> int:
    """Return how many greedy answers of the engine are those of `generate`."""
    texts = conversations(options.prompts)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, ModelSettings(repo_id="accuracy", dtype="float32"))
    expected = []
    for number, text in enumerate(texts):
        expected.append(_generate(model, tokenizer, chat_ids(tokenizer, text), options.answer))
        if number % 10 == 9:
            say(f"generate, float32: {number + 1} of {len(texts)}")
    words = argparse.Namespace(dtype="float32", clients=[BATCH], prompt=128, answer=options.answer)
    engine = start_engine(words, folder, step="torch")
    try:
        answers = [Text() for _ in texts]
        works = [_work(engine, text, options.answer) for text in texts]
        for first in range(0, len(works), BATCH):
            part = slice(first, first + BATCH)
            engine.submit(works[part], answers[part])
            for answer in answers[part]:
                answer.done.wait()
            say(f"engine, float32: {min(first + BATCH, len(works))} of {len(works)}")
    finally:
        engine.stop()
    return sum(one.text == other for one, other in zip(answers, expected, strict=True))


def _work(engine: Any, text: str, answer: int) -> TextWork:
    sampling = Sampling(max_tokens=answer, ignore_eos=True, temperature=0.0)
    work: TextWork = engine.encode((Message(role="user", content=text),), sampling)
    return work


def _generate(model: Any, tokenizer: Any, ids: list[int], answer: int) -> str:
    import torch

    with torch.inference_mode():
        prompt = torch.tensor([ids])
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=answer,
            eos_token_id=None,
            pad_token_id=0,
        )
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))


def perplexities(folder: Path, tokens: int, since: float) -> dict[str, float]:
    """Return the perplexity of a text by native step, torch and torch in float32."""
    import torch

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, ModelSettings(repo_id="accuracy"))
    ids = tokenizer(topics["execmodel"] + topics["import"])["input_ids"][:tokens]
    with torch.inference_mode():
        torch_logits = model(torch.tensor([ids])).logits[0].float()
        exact = model.float()(torch.tensor([ids])).logits[0]
    say(f"perplexity of torch over {len(ids)} tokens")
    by_system = {"torch": torch_logits, "torch, float32": exact}
    for system, int8 in (("native", False), ("native, int8", True)):
        try:
            runner = native_runner(folder, positions=tokens + 1, int8=int8)
        except UnavailableError as error:
            if not int8:
                raise
            say(f"{system}: {error}")
            continue
        with torch.inference_mode():
            sequence = runner.begin()
            rows = [runner.extend(sequence, ids[:1])[0].clone()]
            runner.join(sequence)
            rows += [runner.step([token])[0].clone() for token in ids[1:]]
        by_system[system] = torch.stack(rows)
        say(f"perplexity of the step: {system}")
    following = torch.tensor(ids[1:])
    return {
        system: math.exp(torch.nn.functional.cross_entropy(logits[:-1].float(), following).item())
        for system, logits in by_system.items()
    }


def native_runner(folder: Path, *, positions: int, int8: bool = False) -> Any:
    """Return the native step on weights of its own."""
    import torch
    from transformers import AutoConfig

    from triton_native.checkpoint import FolderCheckpoint
    from triton_native.runner import NativeRunner

    with FolderCheckpoint(folder, AutoConfig.from_pretrained(folder)) as files:
        return NativeRunner(
            files,
            slots=BATCH,
            positions=positions,
            threads=torch.get_num_threads(),
            cache=cache_root(),
            int8=int8,
        )


def divergences(options: argparse.Namespace, folder: Path, since: float) -> list[float]:
    """Return the gap of the first other token of each answer that has one, largest first."""
    import torch

    tokenizer = load_tokenizer(folder)
    model = load_model(folder, ModelSettings(repo_id="accuracy"))
    prompts = [chat_ids(tokenizer, text) for text in conversations(options.prompts)]
    runner = native_runner(folder, positions=256 + options.answer)
    gaps = []
    with torch.inference_mode():
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
            for prompt, answer in zip(part, _greedy(runner, part, options.answer), strict=True):
                read = model(torch.tensor([[*prompt, *answer]])).logits[0].float()
                gap = first_gap(read[len(prompt) - 1 : -1], answer)
                if gap is not None:
                    gaps.append(gap)
            say(f"native answers read by torch: {first + len(part)} of {len(prompts)}")
    return sorted(gaps, reverse=True)


def _greedy(runner: Any, prompts: Sequence[Sequence[int]], answer: int) -> list[list[int]]:
    """Return the likeliest tokens after each prompt, all prompts in one batch."""
    made: list[list[int]] = []
    for prompt in prompts:
        sequence = runner.begin()
        made.append([int(runner.extend(sequence, prompt)[0].argmax())])
        runner.join(sequence)
    for _ in range(answer - 1):
        chosen = runner.step([tokens[-1] for tokens in made]).argmax(-1).tolist()
        for tokens, token in zip(made, chosen, strict=True):
            tokens.append(token)
    runner.clear()
    return made


def first_gap(logits: Any, tokens: Sequence[int]) -> float | None:
    """Return by how much the first token that is not the likeliest misses it; None when all are.

    Args:
        logits: what the reader thinks at each token, [tokens, V].
        tokens: what was said.
    """
    for row, token in zip(logits, tokens, strict=True):
        if int(row.argmax()) != token and float(row.max()) > float(row[token]):
            return float(row.max() - row[token])
    return None


def table(found: Accuracy) -> str:
    """Return the figures as lines for a terminal."""
    lines = [
        f"float32: {found.equal} of {found.prompts} greedy answers of {found.answer} tokens equal "
        "those of generate"
    ]
    lines += [f"perplexity, {name}: {value:.4f}" for name, value in found.perplexity.items()]
    lines.append(f"native against torch in bfloat16: {100 * found.off:+.3f} %")
    worst = f", the largest gap {found.gaps[0]:.3f}" if found.gaps else ""
    lines.append(
        f"bfloat16: {found.diverged} of {found.prompts} native answers have a token that torch "
        f"would not have said{worst} (a tie is at most {TIE})"
    )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--answer", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--text", type=int, default=1500, help="tokens of the text")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    conversations(options.prompts)
    apply_cpu_limits()
    since = time.monotonic()
    folder = ensure_smollm2().folder
    try:
        perplexity = perplexities(folder, options.text, since)
    except UnavailableError as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    gaps = divergences(options, folder, since)
    found = Accuracy(
        prompts=options.prompts,
        answer=options.answer,
        equal=equal_in_float32(options, folder, since),
        perplexity=perplexity,
        off=perplexity["native"] / perplexity["torch"] - 1,
        diverged=len(gaps),
        gaps=gaps,
    )
    print(table(found))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
        shown = options.out.resolve()
        print(shown.relative_to(ROOT) if shown.is_relative_to(ROOT) else shown)
    return int(not found.good)


if __name__ == "__main__":
    sys.exit(main())
