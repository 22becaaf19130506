"""Recorded steps over pages, one step ahead of the host, on tiny random models of many families.

Recorded here means traced: the operations of one step are written down once and repeated, which is
what a CUDA graph does. A step that looks at a value on the host cannot be traced.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.fx.experimental.proxy_tensor import make_fx
from triton_testing import eventually

from triton_hf import cuda_runner, memory, paged_attention, runners
from triton_hf.cuda_runner import CudaRunner, UnavailableError, make_cuda_runner
from triton_hf.engine import Event, Job
from triton_hf.errors import EngineError, OverloadedError
from triton_hf.graphs import Recorder, Step, eager
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.requests import Message, Sampling
from triton_hf.sampler import SamplingRow
from triton_hf.settings import ModelSettings
from triton_hf.torch_runner import TorchRunner
from triton_hf.transformers_engine import TransformersEngine

VOCABULARY = 320
POSITIONS = 128
PAGE = 16
TIMEOUT = 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    # Wide enough that each token depends on all before it.
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
WINDOW = {**GROUPED, "sliding_window": 9}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "mistral, sliding window": lambda: transformers.MistralConfig(**WINDOW),
    "gemma2, capped, sliding and full": lambda: transformers.Gemma2Config(
        **WINDOW, query_pre_attn_scalar=8
    ),
    "gemma3, sliding and full": lambda: transformers.Gemma3TextConfig(
        **WINDOW, query_pre_attn_scalar=8
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2, learned positions": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, initializer_range=0.5
    ),
    "bloom, alibi": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5
    ),
}
SERVED = [family for family in FAMILIES if family != "bloom, alibi"]
# Tracing takes seconds for each step that is recorded.
TRACED = ["llama", "mistral, sliding window", "gemma2, capped, sliding and full", "gpt-neox"]


def make_model(family: str = "llama") -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    return model.float().train(False)


def traced(step: Step) -> Step:
    """Repeat the operations of one run of a step, on the memory that it used."""
    with torch.no_grad():
        graph = make_fx(step)()
    return lambda: graph()


def make_runner(
    model: Any, *, slots: int = 3, recorder: Recorder = eager, page_tokens: int = PAGE
) -> CudaRunner:
    runner = CudaRunner(
        model, slots=slots, positions=POSITIONS, page_tokens=page_tokens, recorder=recorder
    )
    runner.check()
    return runner


def ids(length: int, *, seed: int = 0) -> list[int]:
    numbers = random.Random(seed)
    return [numbers.randrange(2, VOCABULARY) for _ in range(length)]


def reference(model: Any, prompt: list[int], tokens: int) -> list[int]:
    """What `generate` of transformers says."""
    made = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in made[0, len(prompt) :]]


class Batch:
    """Drives a runner as an engine does, one prompt and one step at a time."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.answers: list[list[int]] = []

    def join(self, prompt: list[int], *, chunk: int = 1000) -> list[int]:
        sequence = self.runner.begin()
        for start in range(0, len(prompt), chunk):
            logits = self.runner.extend(sequence, prompt[start : start + chunk])
        self.runner.join(sequence)
        self.answers.append([int(logits.argmax())])
        return self.answers[-1]

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            logits = self.runner.step([answer[-1] for answer in self.answers])
            for answer, token in zip(self.answers, logits.argmax(dim=-1), strict=True):
                answer.append(int(token))

    def leave(self, row: int) -> None:
        self.runner.leave(row)
        last = self.answers.pop()
        if row < len(self.answers):
            self.answers[row] = last


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("family", SERVED)
@torch.inference_mode()
def test_recorded_steps_of_a_changing_batch_say_what_generate_says(family) -> None:
    recorder = traced if family in TRACED else eager
    runner = make_runner(make_model(family), recorder=recorder, page_tokens=64)
    wanted = {
        1: reference(make_model(family), ids(20, seed=1), 40),
        2: reference(make_model(family), ids(3, seed=2), 12),
        3: reference(make_model(family), ids(50, seed=3), 20),
        4: reference(make_model(family), ids(1, seed=4), 9),
    }
    batch = Batch(runner)
    first = batch.join(ids(20, seed=1))
    batch.step(10)
    second = batch.join(ids(3, seed=2))
    batch.step(11)
    third = batch.join(ids(50, seed=3), chunk=7)
    batch.leave(1)
    batch.step(8)
    fourth = batch.join(ids(1, seed=4), chunk=3)
    batch.step(8)
    batch.leave(2)
    batch.step(2)
    found = {1: first, 2: second, 3: third, 4: fourth}
    assert {name: answer[: len(wanted[name])] for name, answer in found.items()} == {
        name: answer[: len(found[name])] for name, answer in wanted.items()
    }
    assert [len(answer) for answer in found.values()] == [40, 12, 19, 9]


@torch.inference_mode()
def test_nothing_that_a_recorded_step_has_seen_ever_moves() -> None:
    model = make_model()
    seen: list[list[int]] = []
    runner = CudaRunner(model, slots=5, positions=POSITIONS, page_tokens=PAGE, recorder=eager)

    def addresses() -> list[int]:
        state = (runner._ids, runner._row_positions, runner._growth, runner._tables)
        pools = [tensor for layer in runner.cache.layers for tensor in (layer.keys, layer.values)]
        return [tensor.data_ptr() for tensor in (*state, *pools, *model.parameters())]

    seen.append(addresses())
    runner.check()
    recorded = dict(runner._steps)
    batch, numbers = Batch(runner), random.Random(1)
    used: set[int] = set()
    for index in range(60):
        if len(batch.answers) < 5 and numbers.random() < 0.6:
            batch.join(ids(numbers.randrange(1, 40), seed=index))
        if batch.answers:
            used.add(len(batch.answers))
            batch.step()
        if batch.answers and numbers.random() < 0.4:
            batch.leave(numbers.randrange(len(batch.answers)))
        seen.append(addresses())
    assert used == {1, 2, 3, 4, 5}
    assert all(now == seen[0] for now in seen)
    assert runner._steps == recorded


@torch.inference_mode()
def test_a_step_is_recorded_for_doubling_rows_and_widths_and_the_smallest_is_used() -> None:
    names: dict[Step, int] = {}
    calls: list[int] = []

    def counting(step: Step) -> Step:
        number = len(names)

        def repeat() -> torch.Tensor:
            calls.append(number)
            return step()

        names[repeat] = number
        return repeat

    runner = make_runner(make_model(), slots=6, recorder=counting)
    keys = {number: key for key, step in runner._steps.items() for number in [names[step]]}
    assert set(keys.values()) == {(rows, pages) for rows in (1, 2, 4, 6) for pages in (1, 2, 4, 8)}
    batch = Batch(runner)
    calls.clear()
    for length in (3, 3, 20):
        batch.join(ids(length))
        batch.step()
    assert [keys[number] for number in calls] == [(1, 1), (2, 1), (4, 2)]


@torch.inference_mode()
def test_what_a_row_leaves_behind_reaches_no_other() -> None:
    runner = make_runner(make_model(), slots=2)
    expected = reference(make_model(), ids(10, seed=1), 30)
    batch = Batch(runner)
    batch.join(ids(40, seed=2))
    batch.join(ids(40, seed=3))
    for layer in runner.cache.layers:
        layer.keys[1:].fill_(float("nan"))
        layer.values[1:].fill_(float("nan"))
    batch.step()
    batch.leave(0)
    batch.leave(0)
    answer = batch.join(ids(10, seed=1))
    batch.step(29)
    assert answer == expected


@torch.inference_mode()
def test_pages_are_lent_for_a_sequence_and_come_back_however_it_ends() -> None:
    runner = make_runner(make_model(), slots=2)
    whole = runner.cache.free
    assert whole == runner.cache.pages == 2 * POSITIONS // PAGE
    sequence = runner.admit(PAGE + 1)
    assert runner.cache.free == whole - 2
    del sequence  # dropped before it joined
    assert runner.cache.free == whole
    most = runner.admit(whole * PAGE)
    assert most is not None
    assert runner.admit(1) is None
    most.release()
    parts = [runner.admit(PAGE) for _ in range(whole)]
    parts[3].release()
    parts[5].release()
    assert runner.admit(2 * PAGE) is None  # they do not lie together
    parts[4].release()
    run = runner.admit(3 * PAGE)
    assert list(run.pages) == [4, 5, 6]
    for part in (run, *parts):
        part.release()
    with pytest.raises(MemoryError):
        runner.extend(runner.admit(PAGE), ids(PAGE + 1))
    batch = Batch(runner)
    batch.join(ids(3))
    runner.clear()
    assert (runner.rows, runner.cache.free) == (0, whole)


def make_torch_runner(model: Any) -> TorchRunner:
    return TorchRunner(model, slots=3, positions=8 * POSITIONS)


def resumed(batch: Batch, prompt: list[int], positions: int) -> tuple[list[int], int]:
    """Let a prompt join that begins with what is known of it; return its answer and how much."""
    sequence, known = batch.runner.resume(prompt, positions)
    logits = batch.runner.extend(sequence, prompt[known:])
    batch.runner.join(sequence)
    batch.answers.append([int(logits.argmax())])
    return batch.answers[-1], known


@pytest.mark.parametrize("made", [make_runner, make_torch_runner])
@pytest.mark.parametrize("family", ["llama", "gemma2, capped, sliding and full", "gpt-neox"])
@torch.inference_mode()
def test_a_prompt_takes_over_what_another_has_read_of_its_start(family, made) -> None:
    start = ids(40, seed=1)
    prompts = [[*start, *ids(length, seed=length)] for length in (9, 3, 20)]
    runner = made(make_model(family))
    batch = Batch(runner)
    answers, known = [], []
    for number, prompt in enumerate(prompts):
        answer, count = resumed(batch, prompt, len(prompt) + 20)
        answers.append(answer)
        known.append(count)
        batch.step(4)
        if number == 1:  # one that runs and one that has left
            batch.leave(0)
    batch.step(6)
    assert known == [0, 40, 40]
    wanted = [reference(make_model(family), prompt, 15) for prompt in prompts]
    assert answers == [whole[: len(answer)] for whole, answer in zip(wanted, answers, strict=True)]
    assert [len(answer) for answer in answers] == [9, 15, 11]
    # The same again is known but for its last token.
    batch.leave(0)
    answer, count = resumed(batch, prompts[2], len(prompts[2]) + 20)
    batch.step(3)
    assert (answer, count) == (wanted[2][:4], len(prompts[2]) - 1)
    runner.clear()
    assert runner.resume(prompts[2], 100)[1] == 0


@torch.inference_mode()
def test_kept_prompts_go_when_their_pages_are_needed_the_oldest_first() -> None:
    runner = make_runner(make_model(), slots=2)
    whole = runner.cache.pages
    batch = Batch(runner)
    prompts = [ids(2 * PAGE + 1, seed=seed) for seed in range(3)]
    for prompt in prompts:
        resumed(batch, prompt, POSITIONS // 2)
        batch.step(3)
        batch.leave(0)
    # Of each the pages of its prompt only.
    assert (runner.kept_pages, runner.cache.free) == (9, whole - 9)
    first, known = runner.resume(prompts[0], POSITIONS // 2)
    assert known == 2 * PAGE
    # The first was used last, so the second has to go.
    others = [runner.admit(PAGE) for _ in range(whole - 9 - 4)]
    others.append(runner.admit(PAGE))
    assert runner.kept_pages == 6
    first.release()
    assert [runner.resume(prompt, 2 * PAGE)[1] > 0 for prompt in prompts] == [True, False, True]
    # A prompt whose only likeness has to make room for it begins at the start.
    del others
    runner.clear()
    sequence, _ = runner.resume(prompts[0], POSITIONS)
    runner.extend(sequence, prompts[0])
    runner.join(sequence)
    runner.leave(0)
    sequence, known = runner.resume(prompts[0], whole * PAGE)
    assert (known, len(sequence.pages), runner.kept_pages) == (0, whole, 0)
    sequence.release()
    assert runner.cache.free == whole


@torch.inference_mode()
def test_torch_keeps_an_eighth_of_what_its_rows_may_have() -> None:
    runner = TorchRunner(make_model(), slots=3, positions=POSITIONS)
    batch = Batch(runner)
    for seed in range(5):
        resumed(batch, ids(20, seed=seed), POSITIONS)
        batch.leave(0)
    assert runner.kept_tokens == 40  # of 48
    known = [runner.resume(ids(20, seed=seed), POSITIONS)[1] for seed in range(5)]
    assert known == [0, 0, 0, 19, 19]


def reference_varlen(
    query: Any,
    key: Any,
    value: Any,
    cu_seq_q: Any,
    cu_seq_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Any,
) -> torch.Tensor:
    """What torch's documentation says of `varlen_attn`, row by row."""
    assert {cu_seq_q.dtype, cu_seq_k.dtype, seqused_k.dtype} == {torch.int32}
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    outputs = []
    for row, used in enumerate(seqused_k.tolist()):
        assert used <= max_k
        start, end = cu_seq_q[row : row + 2].tolist()
        assert end - start <= max_q
        first = int(cu_seq_k[row])
        keys, values = (pool[first : first + used] for pool in (key, value))
        assert enable_gqa == (keys.shape[1] != query.shape[1])
        at = torch.arange(used - (end - start), used).unsqueeze(1)
        columns = torch.arange(used).unsqueeze(0)
        left, right = window_size
        mask = columns <= at + right
        if left >= 0:
            mask &= columns >= at - left
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[start:end].transpose(0, 1),
                keys.transpose(0, 1),
                values.transpose(0, 1),
                attn_mask=mask,
                scale=scale,
                enable_gqa=enable_gqa,
            ).transpose(0, 1)
        )
    return torch.cat(outputs)


FUSED = [family for family in SERVED if "capped" not in family]


@pytest.mark.parametrize("family", FUSED)
@torch.inference_mode()
def test_flash_attention_is_asked_for_what_the_models_mask_says(monkeypatch, family) -> None:
    monkeypatch.setattr(paged_attention.varlen, "varlen_attn", reference_varlen)
    monkeypatch.setattr(paged_attention, "fused_refusal", lambda model, widest: None)
    runner = make_runner(make_model(family))
    assert {width for _, width in runner._steps} == {POSITIONS // PAGE}
    batch = Batch(runner)
    first = batch.join(ids(30, seed=1), chunk=7)
    batch.step(3)
    second = batch.join(ids(5, seed=2))
    batch.step(20)
    assert first == reference(make_model(family), ids(30, seed=1), 24)
    assert second == reference(make_model(family), ids(5, seed=2), 21)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"dtype": torch.float32}, "half precision, not in float32"),
        ({"kinds": ["full_attention", "chunked_attention"]}, "kind chunked_attention"),
        ({"softcap": 30.0}, "caps"),
        ({"flash": False}, "does not support flash"),
        ({"widest": 512}, "512 wide"),
        ({"device": "cpu"}, "CUDA"),
    ],
)
def test_flash_attention_serves_only_models_that_it_can_serve(change, words) -> None:
    class Config:
        layer_types = change.get("kinds", ["full_attention", "sliding_attention"])
        attn_logit_softcapping = change.get("softcap")

        def get_text_config(self) -> Config:
            return self

    class Weight:
        device = torch.device(change.get("device", "cuda"))

    class Model:
        config = Config()
        dtype = change.get("dtype", torch.bfloat16)
        _supports_flash_attn = change.get("flash", True)

        def parameters(self) -> Iterator[Weight]:
            return iter([Weight()])

    found = paged_attention.fused_refusal(Model(), widest=change.get("widest", 128))
    assert found is None if words is None else words in str(found)


@torch.inference_mode()
def test_pages_are_gathered_where_flash_attention_fails_and_the_log_says_why(monkeypatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(paged_attention.varlen, "varlen_attn", broken)
    monkeypatch.setattr(paged_attention, "fused_refusal", lambda model, widest: None)
    runner = make_runner(make_model())
    assert runner.attention == (
        "gathered pages because flash attention failed (RuntimeError: no kernel image is available)"
    )
    batch = Batch(runner)
    answer = batch.join(ids(9))
    batch.step(5)
    assert answer == reference(make_model(), ids(9), 6)


@pytest.mark.parametrize("family", ["bloom, alibi"])
def test_a_model_that_cannot_be_run_so_is_left_as_it_was_and_the_log_says_why(
    capsys, family
) -> None:
    model = make_model(family)
    assert make_cuda_runner(model, slots=2, positions=POSITIONS, name="org/m") is None
    assert "org/m: torch computes the steps, without CUDA graphs: " in capsys.readouterr().err
    with torch.inference_mode():
        batch = Batch(TorchRunner(model, slots=2, positions=POSITIONS))
        answer = batch.join(ids(9))
        batch.step(5)
    assert answer == reference(make_model(family), ids(9), 6)


def test_a_step_that_cannot_be_recorded_is_named_and_the_model_is_left_as_it_was(
    monkeypatch, capsys
) -> None:
    def broken(step: Step) -> Step:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA stack")

    monkeypatch.setattr(cuda_runner, "recorder_for", lambda device: broken)
    model = make_model()
    before = model.config._attn_implementation
    assert make_cuda_runner(model, slots=2, positions=POSITIONS, name="org/m") is None
    assert capsys.readouterr().err == (
        "org/m: torch computes the steps, without CUDA graphs: "
        "RuntimeError: operation not permitted when stream is capturing\n"
    )
    assert model.config._attn_implementation == before
    assert reference(model, ids(9), 6) == reference(make_model(), ids(9), 6)


def test_steps_with_other_logits_than_the_models_own_are_not_used(monkeypatch) -> None:
    runner = CudaRunner(
        make_model(),
        slots=2,
        positions=POSITIONS,
        page_tokens=PAGE,
        recorder=lambda step: lambda: step() * 1.01,
    )
    with pytest.raises(UnavailableError, match=r"1\.0% away from those of its own code"):
        runner.check()


@torch.inference_mode()
def test_it_can_be_checked_again_beside_prompts_that_have_all_pages(monkeypatch) -> None:
    runner = make_runner(make_model(), slots=2)
    expected = reference(make_model(), ids(20), 4)
    sequence, other = (runner.admit(POSITIONS) for _ in range(2))
    assert runner.cache.free == 0
    runner.extend(sequence, ids(20)[:9])
    runner.check()
    logits = runner.extend(sequence, ids(20)[9:])
    runner.join(sequence)
    found = [int(logits.argmax())]
    for _ in range(3):
        found.append(int(runner.step(found[-1:]).argmax()))
    assert found == expected
    runner.clear()
    other.release()
    assert runner.cache.free == runner.cache.pages
    monkeypatch.setattr(runner, "_repeat", lambda: torch.full((1, VOCABULARY), float("nan")))
    with pytest.raises(UnavailableError, match="away from those of its own code"):
        runner.check()


def test_the_log_says_what_computes_and_how_many_tokens_there_is_room_for(capsys) -> None:
    make_cuda_runner(make_model(), slots=2, positions=POSITIONS, name="org/m")
    assert capsys.readouterr().err == (
        "org/m: CUDA graphs compute the steps, gathered pages because it needs CUDA; "
        "room for 512 tokens\n"
    )


# The engine, one step ahead.


def word_tokenizer() -> Any:
    """One word per token, so that equal text means equal tokens."""
    words = {"<s>": 0, "</s>": 1} | {f"t{index}": index for index in range(2, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    return tokenizer


class Asked:
    """A request that was submitted."""

    def __init__(self, job: Job, events: queue.Queue[Event]) -> None:
        self.job, self.events = job, events
        self.taken: list[Event] = []

    def first(self) -> None:
        self.taken.append(self.events.get(timeout=TIMEOUT))

    def last(self) -> Event:
        while not (self.taken and self.taken[-1].last):
            self.taken.append(self.events.get(timeout=TIMEOUT))
        return self.taken[-1]

    def text(self) -> str:
        assert self.last().error is None
        return "".join(event.text for event in self.taken)


class Bench:
    """A started engine and what a client does with it."""

    def __init__(self, engine: TransformersEngine) -> None:
        self.engine = engine
        self.runner = engine._runner

    def ask(self, length: int, *, seed: int = 0, **values: Any) -> Asked:
        text = " ".join(f"t{token}" for token in ids(length, seed=seed))
        work = self.engine.encode(
            (Message(role="user", content=text),), Sampling(**{"ignore_eos": True, **values})
        )
        events: queue.Queue[Event] = queue.Queue()
        return Asked(self.engine.submit([work], [events.put])[0], events)

    def is_empty(self) -> bool:
        """Whether every slot, row and page is free."""
        state = self.engine.state()
        busy = (state.running, state.waiting, len(self.engine._rows), len(self.engine._reading))
        free = True
        if hasattr(self.runner, "cache"):
            cache = self.runner.cache
            free = cache.free + self.runner.kept_pages == cache.pages
        return busy == (0, 0, 0, 0) and self.runner.rows == 0 and free


@pytest.fixture
def make(tmp_path: Path, monkeypatch) -> Iterator[Callable[..., Bench]]:
    engines = []

    def build(family: str = "llama", *, slots: int = 4, ahead: bool = True) -> Bench:
        if ahead:
            monkeypatch.setattr(
                runners, "make_runner", lambda model, settings: make_runner(model, slots=slots)
            )
        else:
            monkeypatch.undo()
        engine = TransformersEngine(
            settings=ModelSettings(
                repo_id=family,
                slots=slots,
                max_queue=1000,
                max_prompt_tokens=90,
                max_total_tokens=POSITIONS,
            ),
            metrics=Metrics(),
            heartbeat=Heartbeat(tmp_path / f"{len(engines)}.json"),
        )
        engine._load = lambda: engine._use(make_model(family), word_tokenizer())
        engine.start()
        engines.append(engine)
        return Bench(engine)

    yield build
    for engine in engines:
        engine.stop()


def sets(count: int) -> list[dict[str, Any]]:
    """Requests of all kinds; every third is greedy."""
    numbers = random.Random(7)
    return [
        {
            "length": numbers.choice([1, 5, 30, 70]),
            "seed": index,
            "max_tokens": numbers.randint(1, 40),
            "temperature": numbers.choice([0.0, 0.7, 1.5]),
            "top_p": numbers.choice([0.3, 0.9, 1.0]),
            "top_k": numbers.choice([0, 5, 1000]),
            "repetition_penalty": numbers.choice([1.0, 1.3]),
        }
        for index in range(count)
    ]


def answers(bench: Bench, requests: list[dict[str, Any]]) -> list[str]:
    asked = []
    for request in requests:
        values = dict(request)
        length, seed = values.pop("length"), values.pop("seed")
        work = " ".join(f"t{token}" for token in ids(length, seed=seed))
        row = bench.engine.encode(
            (Message(role="user", content=work),), Sampling(ignore_eos=True, seed=seed, **values)
        )
        events: queue.Queue[Event] = queue.Queue()
        asked.append(Asked(bench.engine.submit([row], [events.put])[0], events))
    return [one.text() for one in asked]


def test_answers_one_step_ahead_are_those_step_by_step_greedy_and_sampled(make) -> None:
    ahead, after = make(slots=3), make(slots=3, ahead=False)
    assert isinstance(ahead.runner, CudaRunner)
    assert isinstance(after.runner, TorchRunner)
    requests = sets(30)
    assert answers(ahead, requests) == answers(after, requests)
    eventually(ahead.is_empty)


def test_the_next_step_starts_before_the_tokens_of_the_last_are_read(make, monkeypatch) -> None:
    bench = make()
    calls: list[str] = []
    launch = bench.runner.launch

    def logged(rows: Any) -> Any:
        pending = launch(rows)
        number = calls.count("launch")
        calls.append("launch")
        wait = pending.wait

        def read() -> Any:
            calls.append(f"read {number}")
            return wait()

        monkeypatch.setattr(pending, "wait", read)
        return pending

    monkeypatch.setattr(bench.runner, "launch", logged)
    bench.ask(5, max_tokens=5).text()
    assert calls == ["launch", "launch", "read 0", "launch", "read 1", "launch", "read 2", "read 3"]


def test_an_answer_that_ends_by_its_length_wastes_no_step_and_by_its_text_at_most_one(
    make, monkeypatch
) -> None:
    bench = make()
    rows: list[int] = []
    launch = bench.runner.launch
    monkeypatch.setattr(
        bench.runner, "launch", lambda batch: (rows.append(len(batch)), launch(batch))[1]
    )
    whole = bench.ask(5, max_tokens=20).text()
    assert sum(rows) == 19
    rows.clear()
    stop = whole.split()[7]
    at = whole.split().index(stop)
    bench.ask(5, max_tokens=20, stop=(f"{stop} ",)).text()
    eventually(bench.is_empty)
    # The token with the space after the stop string is the last that is needed.
    assert at + 1 <= sum(rows) <= at + 2


def test_a_cancelled_request_frees_its_slot_and_pages_within_two_steps(make, monkeypatch) -> None:
    bench = make(slots=1)
    asked = bench.ask(5, max_tokens=120)
    asked.first()
    steps: list[bool] = []
    launch = bench.runner.launch
    monkeypatch.setattr(
        bench.runner,
        "launch",
        lambda rows: (steps.append(asked.job.cancelled.is_set()), launch(rows))[1],
    )
    asked.job.cancel()
    assert asked.last().finish_reason in ("cancelled", "length")
    eventually(bench.is_empty)
    assert sum(steps) <= 2


def test_a_request_waits_for_pages_and_is_answered_when_others_have_left(make, monkeypatch) -> None:
    monkeypatch.setattr(memory, "plan_pages", lambda **_: POSITIONS // PAGE)
    bench = make(slots=4)
    most: list[int] = []
    launch = bench.runner.launch
    monkeypatch.setattr(
        bench.runner, "launch", lambda rows: (most.append(len(rows)), launch(rows))[1]
    )
    asked = [bench.ask(20, seed=index, max_tokens=20) for index in range(6)]
    expected = [reference(make_model(), ids(20, seed=index), 20) for index in range(6)]
    found = [[int(word[1:]) for word in one.text().split()] for one in asked]
    assert found == expected
    assert max(most) == 2  # three pages each, and there are eight
    eventually(bench.is_empty)


def test_the_use_of_memory_is_that_of_pages(make, monkeypatch) -> None:
    bench = make(slots=2)
    cache = bench.runner.cache
    bench.ask(40, max_tokens=5).text()
    eventually(lambda: bench.engine.state().kv_usage == 0)  # its prompt is kept
    assert bench.runner.kept_pages > 0
    go, launch = threading.Event(), bench.runner.launch
    monkeypatch.setattr(bench.runner, "launch", lambda rows: (go.wait(TIMEOUT), launch(rows))[1])
    asked = bench.ask(20, seed=1, max_tokens=100)
    eventually(lambda: bench.engine.state().kv_usage == cache.pages_for(120) / cache.pages)
    go.set()
    asked.text()
    eventually(lambda: bench.engine.state().kv_usage == 0)


def test_who_waits_too_long_for_pages_is_refused_with_the_reason(make, monkeypatch) -> None:
    monkeypatch.setattr(memory, "plan_pages", lambda **_: POSITIONS // PAGE)
    bench = make(slots=4)
    engine, go, launch = bench.engine, threading.Event(), bench.runner.launch
    monkeypatch.setattr(bench.runner, "launch", lambda rows: (go.wait(0.1), launch(rows))[1])
    holds = bench.ask(20, max_tokens=100)
    holds.first()
    engine.settings = dataclasses.replace(engine.settings, max_queue_seconds=0.2)
    conversation = (Message(role="user", content="t2 t3"),)
    work = engine.encode(conversation, Sampling(ignore_eos=True, max_tokens=100))
    events: queue.Queue[Event] = queue.Queue()
    engine.submit([work, work], [events.put, events.put])
    for _ in range(2):  # also the row behind the one that was tried
        error = events.get(timeout=TIMEOUT).error
        assert isinstance(error, OverloadedError)
        assert "no memory for its keys and values became free within 0.2 s" in str(error)
    go.set()
    holds.text()
    eventually(bench.is_empty)


def test_a_prompt_that_was_no_number_once_is_not_handed_on(make, monkeypatch) -> None:
    bench = make(slots=2)
    forward = bench.runner._forward

    def poisoned(*words: Any) -> torch.Tensor:
        return forward(*words).fill_(float("nan"))

    monkeypatch.setattr(bench.runner, "_forward", poisoned)
    assert "not a number" in str(bench.ask(40, max_tokens=5).last().error)
    eventually(bench.is_empty)
    assert bench.runner.kept_pages == 0


def test_what_is_not_a_number_fails_its_request_only(make, monkeypatch) -> None:
    bench = make(slots=2)
    repeat = bench.runner._repeat
    good = bench.ask(20, seed=1, max_tokens=60)
    good.first()

    def poisoned() -> torch.Tensor:
        logits = repeat()
        if bench.runner.rows == 2:
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(bench.runner, "_repeat", poisoned)
    error = bench.ask(9, max_tokens=20, temperature=1.0, top_p=0.9).last().error
    assert isinstance(error, EngineError)
    assert "not a number" in str(error)
    words = [int(word[1:]) for word in good.text().split()]
    assert words == reference(make_model(), ids(20, seed=1), 60)


@pytest.mark.parametrize("at", ["launch", "wait"])
def test_after_a_step_that_failed_the_engine_answers_again(make, monkeypatch, at) -> None:
    bench = make()
    launch = bench.runner.launch

    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    def launched(rows: Any) -> Any:
        monkeypatch.setattr(bench.runner, "launch", launch)
        if at == "launch":
            broken()
        pending = launch(rows)
        monkeypatch.setattr(pending, "wait", broken)
        return pending

    monkeypatch.setattr(bench.runner, "launch", launched)
    asked = [bench.ask(5, max_tokens=tokens) for tokens in (2, 9)]
    assert any(isinstance(one.last().error, EngineError) for one in asked)
    eventually(bench.is_empty)
    words = [int(word[1:]) for word in bench.ask(5, max_tokens=9).text().split()]
    assert words == reference(make_model(), ids(5), 9)


def test_requests_of_any_kind_with_cuts_leave_every_slot_and_page_free(make, monkeypatch) -> None:
    monkeypatch.setattr(memory, "plan_pages", lambda **_: 3 * POSITIONS // PAGE)
    bench, numbers = make("mistral, sliding window", slots=8), random.Random(5)
    asked = []
    for index in range(300):
        asked.append(
            bench.ask(
                min(int(numbers.expovariate(1 / 15)) + 1, 80),
                seed=index,
                max_tokens=numbers.randint(1, 25),
                temperature=numbers.choice([0.0, 1.0]),
                top_p=numbers.choice([0.5, 1.0]),
                repetition_penalty=numbers.choice([1.0, 1.2]),
                ignore_eos=numbers.random() < 0.5,
                stop=numbers.choice([(), ("t1",)]),
            )
        )
        if numbers.random() < 0.3:
            numbers.choice(asked[-20:]).job.cancel()
    ends = [one.last() for one in asked]
    assert [end.error for end in ends if end.error] == []
    assert {end.finish_reason for end in ends} == {"stop", "length", "cancelled"}
    eventually(bench.is_empty)


@torch.inference_mode()
def test_a_sampled_row_goes_on_from_the_token_that_was_chosen_for_it() -> None:
    runner = make_runner(make_model())
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    alone, both = [], []
    for found, others in ((alone, 0), (both, 2)):
        rows = []
        for index in range(others + 1):
            row = SamplingRow(sampling if index == others else Sampling(), ())
            sequence = runner.begin()
            pending = runner.choose_first(sequence, runner.extend(sequence, ids(9 + index)), row)
            runner.join(sequence)
            rows.append(row)
        found.extend(pending.wait())
        found.extend(runner.launch(rows).wait()[-1] for _ in range(10))
        runner.clear()
    assert len(set(alone)) > 3
    assert runner.cache.free == runner.cache.pages
    assert None not in both
