"""Continuous batching, on tiny random models of many families."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import queue
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lib.triton_client import eventually, need_native_step
from triton_hf.compute import loading
from triton_hf.compute.packed_linear import Int8Linear
from triton_hf.compute.torch_runner import TorchRunner
from triton_hf.contract import Message, Sampling
from triton_hf.engines import transformers_engine
from triton_hf.engines.text import TextEvent, TextJob, longest_context
from triton_hf.engines.tokens import ChatTokenizer, TokenDecoder
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.errors import EngineError, EngineStoppedError, RequestError, SettingsError
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings
from triton_native.runner import NativeRunner

VOCABULARY = 320
TIMEOUT = 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    # Wide enough that each token depends on all before it.
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "mistral, sliding window": lambda: transformers.MistralConfig(**GROUPED, sliding_window=9),
    "gemma": lambda: transformers.GemmaConfig(**GROUPED),
    "gemma2, sliding and full": lambda: transformers.Gemma2Config(
        **GROUPED, sliding_window=9, query_pre_attn_scalar=8
    ),
    "gemma3, sliding and full": lambda: transformers.Gemma3TextConfig(
        **GROUPED, sliding_window=9, query_pre_attn_scalar=8
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "phi3": lambda: transformers.Phi3Config(**SIZES, num_key_value_heads=2),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "gpt2, learned positions": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, initializer_range=0.5
    ),
    "bloom, alibi": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.5
    ),
}


# What the native step computes: its sizes, in bfloat16.
NATIVE = "llama, native"
FAMILIES_OF_ALL = {
    **FAMILIES,
    NATIVE: lambda: transformers.LlamaConfig(
        **{**GROUPED, "head_dim": 16, "intermediate_size": 64}
    ),
}


def make_model(family: str) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES_OF_ALL[family]())
    return (model.bfloat16() if family == NATIVE else model.float()).train(False)


def word_tokenizer() -> Any:
    """One word per token, so that equal text means equal tokens."""
    words = {"<s>": 0, "</s>": 1} | {f"t{index}": index for index in range(2, VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_template(backend)


def byte_tokenizer() -> Any:
    """One byte per token, so that most characters span several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE({"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _with_template(backend)


def _with_template(backend: Tokenizer) -> Any:
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}"
    return tokenizer


class Bench:
    """A started engine, what a client does with it, and an equal model of its own."""

    def __init__(self, engine: TransformersEngine, model: Any, tokenizer: Any) -> None:
        self.engine = engine
        self.model = model
        self.tokenizer = tokenizer

    def ask(self, text: str, **values: Any) -> Asked:
        sampling = Sampling(**{"ignore_eos": True, **values})
        work = self.engine.encode((Message(role="user", content=text),), sampling)
        events: queue.Queue[TextEvent] = queue.Queue()
        return Asked(job=self.engine.submit([work], [events.put])[0], events=events)

    def answer(self, text: str, **values: Any) -> str:
        return self.ask(text, **values).text()

    def reference(self, text: str, *, max_tokens: int) -> str:
        """What `generate` of transformers says."""
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        made = self.model.generate(
            ids["input_ids"],
            attention_mask=ids["attention_mask"],
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        tokens = made[0, ids["input_ids"].shape[1] :]
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def is_empty(self) -> bool:
        """Whether every slot and every row of the cache is free."""
        state = self.engine.state()
        busy = (state.running, state.waiting, len(self.engine._rows), len(self.engine._reading))
        return busy == (0, 0, 0, 0) and self.engine._runner.rows == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that was submitted."""

    job: TextJob
    events: queue.Queue[TextEvent]
    taken: list[TextEvent] = dataclasses.field(default_factory=list)

    def all_once(self) -> list[TextEvent]:
        """Every event, however often it is asked for."""
        if not self.taken:
            self.taken.extend(self.all())
        return self.taken

    def all(self) -> list[TextEvent]:
        """Every event, up to the last."""
        found = [self.events.get(timeout=TIMEOUT)]
        while not found[-1].last:
            found.append(self.events.get(timeout=TIMEOUT))
        return found

    def text(self) -> str:
        events = self.all()
        assert events[-1].error is None
        return "".join(event.text for event in events)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    engines = []

    def build(
        family: str = "llama",
        *,
        tokenizer: Any = None,
        deaths: queue.Queue[str] | None = None,
        **settings: Any,
    ) -> Bench:
        model, tokenizer = make_model(family), tokenizer or word_tokenizer()
        engine = TransformersEngine(
            settings=ModelSettings(
                **{"repo_id": family, "slots": 4, "max_queue": 1000, "max_total_tokens": 1024}
                | settings
                | {"max_prompt_tokens": 600, "max_queue_seconds": 0.0}
            ),
            metrics=Metrics(),
            heartbeat=Heartbeat(tmp_path / f"{len(engines)}.json"),
            on_death=None if deaths is None else deaths.put,
        )
        engine._load = lambda: engine._use(model, tokenizer)
        engine.start()
        engines.append(engine)
        return Bench(engine, make_model(family), tokenizer)

    torch.set_num_threads(1)
    yield build
    for engine in engines:
        engine.stop()


def prompt(length: int, *, seed: int = 0) -> str:
    numbers = random.Random(seed)
    return " ".join(f"t{numbers.randrange(2, VOCABULARY)}" for _ in range(length))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate_alone_and_in_a_changing_batch(make, family) -> None:
    bench = make(family, slots=3)
    # More requests than slots and lengths of all kinds: rows join and leave in most steps, the
    # longest prompt is longer than what the batch has, and a chunk.
    wanted = [(5, 9), (1, 30), (40, 12), (17, 3), (150, 20), (3, 40), (9, 1), (60, 25)]
    prompts = [prompt(length, seed=length) for length, _ in wanted]
    expected = [
        bench.reference(text, max_tokens=tokens)
        for text, (_, tokens) in zip(prompts, wanted, strict=True)
    ]
    assert len(set(expected)) == len(expected)
    assert bench.answer(prompts[2], max_tokens=12) == expected[2]
    asked = [
        bench.ask(text, max_tokens=tokens)
        for text, (_, tokens) in zip(prompts, wanted, strict=True)
    ]
    assert [one.text() for one in asked] == expected


@pytest.mark.parametrize("family", ["llama", "mistral, sliding window", "bloom, alibi"])
def test_reading_a_prompt_in_chunks_changes_nothing(make, monkeypatch, family) -> None:
    monkeypatch.setitem(transformers_engine.CHUNK_TOKENS, "cpu", 7)
    bench = make(family)
    texts = [prompt(length, seed=length) for length in (1, 7, 8, 50)]
    asked = [bench.ask(text, max_tokens=10) for text in texts]
    assert [one.text() for one in asked] == [bench.reference(text, max_tokens=10) for text in texts]


def test_between_two_steps_of_the_others_at_most_one_chunk_is_read(make, monkeypatch) -> None:
    monkeypatch.setitem(transformers_engine.CHUNK_TOKENS, "cpu", 16)
    bench = make()
    runner, calls, came = bench.engine._runner, [], threading.Event()
    extend, step = runner.extend, runner.step

    def counted(ids: Any) -> Any:
        calls.append(0)
        came.wait(TIMEOUT)  # the first request runs on only when the others have come
        return step(ids)

    monkeypatch.setattr(
        runner, "extend", lambda seq, ids: (calls.append(len(ids)), extend(seq, ids))[1]
    )
    monkeypatch.setattr(runner, "step", counted)
    running = bench.ask(prompt(3), max_tokens=60)
    running.events.get(timeout=TIMEOUT)
    others = [bench.ask(prompt(length), max_tokens=2) for length in (200, 5, 5)]
    came.set()
    for one in (*others, running):
        one.text()
    assert sum(calls) == 213
    between, most = 0, 0
    for tokens in calls:
        between = between + tokens if tokens else 0
        most = max(most, between)
    assert most == 16


def test_long_answers_outlive_many_moves_of_the_cache(make) -> None:
    bench = make(slots=2)
    first = bench.ask(prompt(4, seed=1), max_tokens=700)
    second = bench.ask(prompt(300, seed=2), max_tokens=500)
    assert second.text() == bench.reference(prompt(300, seed=2), max_tokens=500)
    assert first.text() == bench.reference(prompt(4, seed=1), max_tokens=700)


HOT = {"temperature": 1.0, "max_tokens": 20}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_p": 0.8},
        {"top_k": 20},
        {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.3, "temperature": 0.7},
    ],
)
def test_equal_seeds_give_equal_text_alone_and_in_a_batch(make, values) -> None:
    bench = make()
    values = HOT | values
    alone = bench.answer(prompt(10), seed=7, **values)
    others = [
        bench.ask(prompt(30, seed=1), max_tokens=33),
        bench.ask(prompt(3, seed=2), **HOT, seed=1, top_p=0.5),
        bench.ask(prompt(10), seed=8, **values),
    ]
    again = bench.ask(prompt(10), seed=7, **values)
    assert again.text() == alone
    assert others[2].text() != alone
    assert others[0].text() == bench.reference(prompt(30, seed=1), max_tokens=33)


def test_requests_without_a_seed_differ(make) -> None:
    bench = make()
    assert bench.answer(prompt(10), **HOT) != bench.answer(prompt(10), **HOT)


def test_the_repetition_penalty_is_that_of_transformers(make) -> None:
    bench = make()
    ids = bench.tokenizer(prompt(40), return_tensors="pt")["input_ids"]
    made = bench.model.generate(
        ids,
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.7,
        eos_token_id=None,
        pad_token_id=0,
    )
    expected = bench.tokenizer.decode(made[0, 40:], skip_special_tokens=True)
    assert expected != bench.reference(prompt(40), max_tokens=30)
    assert bench.answer(prompt(40), max_tokens=30, repetition_penalty=1.7) == expected


def test_the_end_token_ends_an_answer_unless_it_is_ignored(make) -> None:
    bench = make()
    whole = bench.reference(prompt(10), max_tokens=12)
    words = whole.split()
    end = next(word for word in words[3:] if words.index(word) >= 3)
    bench.engine._end_tokens = frozenset({bench.tokenizer.convert_tokens_to_ids(end)})
    events = bench.ask(prompt(10), max_tokens=12, ignore_eos=False).all()
    assert events[-1].finish_reason == "stop"
    assert "".join(event.text for event in events).split() == words[: words.index(end)]
    assert bench.answer(prompt(10), max_tokens=12) == whole


def test_a_stop_token_ends_its_request_alone_whether_or_not_the_end_is_ignored(make) -> None:
    bench = make(slots=2)
    whole = bench.reference(prompt(10), max_tokens=12)
    words = whole.split()
    end = next(word for word in words[3:] if words.index(word) >= 3)
    ids = frozenset({VOCABULARY + 5, bench.tokenizer.convert_tokens_to_ids(end)})
    other = bench.ask(prompt(10), max_tokens=12)
    for ignored in (True, False):
        asked = {"max_tokens": 12, "stop_token_ids": ids, "ignore_eos": ignored}
        events = bench.ask(prompt(10), **asked).all()
        assert events[-1].finish_reason == "stop"
        assert "".join(event.text for event in events).split() == words[: words.index(end)]
        assert events[-1].completion_tokens == words.index(end)
    assert other.text() == whole


def test_a_stop_string_that_is_a_special_token_ends_the_answer_at_the_token(make) -> None:
    bench = make()
    text = bench.answer(prompt(5), max_tokens=20).split()
    end = text[7]
    bench.tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    bench.engine._chat = ChatTokenizer(bench.tokenizer)
    events = bench.ask(prompt(5), max_tokens=20, stop=(end,)).all()
    assert events[-1].finish_reason == "stop"
    assert 0 < events[-1].completion_tokens < 20
    assert end not in "".join(event.text for event in events)


def test_a_stop_string_ends_one_answer_and_frees_its_slot(make) -> None:
    bench = make(slots=2)
    whole = bench.reference(prompt(10), max_tokens=12)
    stop = " ".join(whole.split()[5:7])
    other = bench.ask(prompt(20), max_tokens=30)
    events = bench.ask(prompt(10), max_tokens=12, stop=(stop,)).all()
    assert events[-1].finish_reason == "stop"
    assert "".join(event.text for event in events) == whole[: whole.index(stop)]
    assert other.text() == bench.reference(prompt(20), max_tokens=30)
    eventually(bench.is_empty)


def test_a_cancelled_request_frees_its_slot_within_two_steps(make, monkeypatch) -> None:
    bench = make(slots=1)
    runner = bench.engine._runner
    asked = bench.ask(prompt(5), max_tokens=900)
    asked.events.get(timeout=TIMEOUT)
    steps, step = [], runner.step

    def counted(ids: Any) -> Any:
        steps.append(asked.job.cancelled)
        return step(ids)

    monkeypatch.setattr(runner, "step", counted)
    asked.job.cancel()
    assert asked.all()[-1].finish_reason == "cancelled"
    eventually(bench.is_empty)
    assert sum(steps) <= 2
    assert bench.answer(prompt(6), max_tokens=5) == bench.reference(prompt(6), max_tokens=5)


def test_a_prompt_that_is_being_read_can_be_cancelled(make, monkeypatch) -> None:
    monkeypatch.setitem(transformers_engine.CHUNK_TOKENS, "cpu", 4)
    bench = make()
    runner, chunks = bench.engine._runner, []
    extend = runner.extend

    def cancelling(sequence: Any, ids: Any) -> Any:
        chunks.append(len(ids))
        if len(chunks) == 3:
            asked.job.cancel()
        return extend(sequence, ids)

    monkeypatch.setattr(runner, "extend", cancelling)
    asked = bench.ask(prompt(400), max_tokens=5)
    assert asked.all()[-1].finish_reason == "cancelled"
    eventually(bench.is_empty)
    assert len(chunks) <= 4


TEXT = "añb €5 你好 🎉👩‍👩‍👧 ok é"


def test_characters_of_many_bytes_arrive_whole(make, monkeypatch) -> None:
    bench = make(tokenizer=byte_tokenizer())
    script = bench.tokenizer(TEXT)["input_ids"]
    made = iter(script)
    monkeypatch.setattr(bench.engine, "_choose", lambda *_, **__: [next(made)])
    events = bench.ask("x", max_tokens=len(script)).all()
    assert "".join(event.text for event in events) == TEXT
    assert not any("\ufffd" in event.text for event in events)


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("reason", ["length", "stop"])
def test_an_answer_that_ends_inside_a_character_ends_before_it(
    make, monkeypatch, kept, reason
) -> None:
    bench = make(tokenizer=byte_tokenizer())
    script = bench.tokenizer("ok \N{PARTY POPPER}")["input_ids"][: 3 + kept]
    made = iter([*script, *(bench.engine._end_tokens if reason == "stop" else ())])
    monkeypatch.setattr(bench.engine, "_choose", lambda *_, **__: [next(made)])
    most = len(script) + (reason == "stop")
    events = bench.ask("x", max_tokens=most, ignore_eos=False).all()
    assert "".join(event.text for event in events) == "ok "
    assert (events[-1].finish_reason, events[-1].completion_tokens) == (reason, len(script))


def test_bytes_that_spoil_a_character_that_was_shown_cost_no_answer() -> None:
    """Decoders that fall back to bytes turn all bytes in a row into U+FFFD when one is wrong."""
    words = ["<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁a"]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    decoder = TokenDecoder(transformers.PreTrainedTokenizerFast(tokenizer_object=backend))
    shown = [decoder.push(vocabulary[word]) for word in ("<0xC3>", "<0xA9>", "<0x9F>", "▁a", "▁a")]
    assert "".join(shown).replace("\ufffd", "") == "é a a"


def test_bytes_that_are_no_text_fail_nobody(make) -> None:
    bench = make(tokenizer=byte_tokenizer())
    # A random model makes random bytes.
    for seed in range(5):
        made = bench.answer("hello", max_tokens=60, temperature=2.0, seed=seed)
        assert made


def test_a_fault_while_a_prompt_is_read_fails_that_request_only(make, monkeypatch) -> None:
    bench = make()
    extend = bench.engine._runner.extend

    def faulty(sequence: Any, ids: Any) -> Any:
        if len(ids) == 13:
            raise ZeroDivisionError
        return extend(sequence, ids)

    monkeypatch.setattr(bench.engine._runner, "extend", faulty)
    good = bench.ask(prompt(10), max_tokens=20)
    bad = bench.ask(prompt(13), max_tokens=20)
    assert isinstance(bad.all()[-1].error, EngineError)
    assert good.text() == bench.reference(prompt(10), max_tokens=20)
    eventually(bench.is_empty)


def test_a_client_or_a_text_that_fails_ends_its_own_request_only(make) -> None:
    bench = make()
    work = bench.engine.encode((Message(role="user", content=prompt(5)),), Sampling(max_tokens=50))

    def broken(event: TextEvent) -> None:
        raise BrokenPipeError

    good = bench.ask(prompt(10), max_tokens=20)
    bench.engine.submit([work], [broken])
    assert good.text() == bench.reference(prompt(10), max_tokens=20)
    eventually(bench.is_empty)


def test_a_request_whose_numbers_overflow_fails_alone_and_leaves_nothing_behind(make) -> None:
    bench = make(slots=2)
    runner = bench.engine._runner
    step = runner.step

    def poisoned(ids: Any) -> Any:
        if runner.rows == 2:
            first = runner._cache._starts[1]
            runner._cache.layers[1].values[1, :, first] = float("nan")
        return step(ids)

    good = bench.ask(prompt(60), max_tokens=300)
    runner.step = poisoned
    bad = bench.ask(prompt(9), max_tokens=20)
    error = bad.all()[-1].error
    assert isinstance(error, EngineError)
    assert "not a number" in str(error)
    runner.step = step
    again = bench.ask(prompt(3), max_tokens=20)
    assert again.text() == bench.reference(prompt(3), max_tokens=20)
    assert good.text() == bench.reference(prompt(60), max_tokens=300)


def test_a_prompt_that_was_no_number_once_is_not_handed_on(make) -> None:
    need_native_step()
    bench = make(NATIVE, slots=2, dtype="bfloat16")
    runner = bench.engine._runner
    forward = runner._forward

    def poisoned(chunks: Any) -> Any:
        logits = forward(chunks)
        for sequence, _ in chunks:
            for page in sequence._pages:
                ctypes.memset(page, 0xFF, runner.pages.page_bytes)
        runner.highest = [-1] * len(chunks)
        return logits.clone().fill_(float("nan"))

    runner._forward = poisoned
    text = prompt(100)
    assert "not a number" in str(bench.ask(text, max_tokens=5).all()[-1].error)
    runner._forward = forward
    eventually(bench.is_empty)
    assert bench.answer(text, max_tokens=5) == bench.answer(text, max_tokens=5)


def test_a_prompt_that_torch_kept_is_not_handed_on_after_a_token_that_is_no_number(make) -> None:
    bench = make(slots=2)
    runner = bench.engine._runner
    step, text = runner.step, prompt(100)
    good = bench.answer(text, max_tokens=5)
    assert runner.cached_prefix_tokens > 0
    runner.step = lambda ids: step(ids).fill_(float("nan"))
    assert "not a number" in str(bench.ask(text, max_tokens=5).all()[-1].error)
    runner.step = step
    eventually(lambda: bench.is_empty() and runner.cached_prefix_tokens == 0)
    assert bench.answer(text, max_tokens=5) == good


def test_a_model_whose_numbers_are_none_from_the_start_is_refused_in_a_sentence(make) -> None:
    bench = make()
    with torch.no_grad():
        bench.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(SettingsError, match=r"llama cannot be served: the logits .* not finite"):
        bench.engine._use(bench.model, bench.tokenizer)


def test_a_model_whose_numbers_are_gone_ends_the_engine(make) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    bench = make(deaths=deaths)
    model = bench.engine._runner._model
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    while deaths.empty():
        with contextlib.suppress(EngineStoppedError):
            assert bench.ask(prompt(20), max_tokens=5).all()[-1].error is not None
    assert "not a number" in deaths.get(timeout=TIMEOUT)


def test_after_a_step_that_failed_the_engine_answers_again(make, monkeypatch) -> None:
    bench = make()
    step = bench.engine._runner.step

    def broken(ids: Any) -> Any:
        monkeypatch.setattr(bench.engine._runner, "step", step)
        raise MemoryError

    monkeypatch.setattr(bench.engine._runner, "step", broken)
    assert isinstance(bench.ask(prompt(5), max_tokens=9).all()[-1].error, EngineError)
    assert bench.answer(prompt(5), max_tokens=9) == bench.reference(prompt(5), max_tokens=9)


def test_a_row_that_cannot_leave_costs_the_batch_and_not_the_engine(make, monkeypatch) -> None:
    bench = make(slots=2)
    runner = bench.engine._runner
    leave = runner.leave

    def broken(row: int) -> None:
        monkeypatch.setattr(runner, "leave", leave)
        raise RuntimeError("a row is stuck")

    monkeypatch.setattr(runner, "leave", broken)
    other = bench.ask(prompt(5), max_tokens=900)
    other.events.get(timeout=TIMEOUT)
    assert bench.ask(prompt(6), max_tokens=5).all()[-1].finish_reason == "length"
    assert isinstance(other.all()[-1].error, EngineError)
    eventually(bench.is_empty)
    assert bench.answer(prompt(9), max_tokens=9) == bench.reference(prompt(9), max_tokens=9)


def test_prompts_that_always_fail_never_end_the_engine(make, monkeypatch) -> None:
    deaths: queue.Queue[str] = queue.Queue()
    bench = make(deaths=deaths)
    extend = bench.engine._runner.extend

    def faulty(sequence: Any, ids: Any) -> Any:
        if len(ids) == 13:
            raise RuntimeError("out of memory for this one")
        return extend(sequence, ids)

    monkeypatch.setattr(bench.engine._runner, "extend", faulty)
    for _ in range(10):
        assert isinstance(bench.ask(prompt(13), max_tokens=9).all()[-1].error, EngineError)
    assert bench.answer(prompt(5), max_tokens=9) == bench.reference(prompt(5), max_tokens=9)
    assert deaths.empty()


@pytest.mark.parametrize("family", ["llama", NATIVE])
def test_a_device_that_fails_for_ever_ends_the_engine_with_its_reason(
    make, monkeypatch, family
) -> None:
    if family == NATIVE:
        need_native_step()
    deaths: queue.Queue[str] = queue.Queue()
    bench = make(family, deaths=deaths)
    running = bench.ask(prompt(5), max_tokens=900)
    running.events.get(timeout=TIMEOUT)

    def sticky(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(bench.engine._runner, "_forward", sticky)
    assert isinstance(running.all()[-1].error, EngineError)
    for _ in range(2):
        assert isinstance(bench.ask(prompt(5), max_tokens=9).all()[-1].error, EngineError)
    assert "device-side assert triggered" in deaths.get(timeout=TIMEOUT)
    with pytest.raises(EngineStoppedError, match="device-side assert"):
        bench.ask(prompt(5), max_tokens=9)
    assert bench.engine.state().running == 0


def storm(bench: Bench, count: int) -> int:
    """Send requests of any length and parameters, cut some at random; return how many were cut."""
    numbers = random.Random(5)
    asked = []
    for index in range(count):
        hot = {
            "temperature": numbers.choice([0.0, 0.01, 1.0, 2.0]),
            "top_p": numbers.choice([1e-6, 0.5, 0.95, 1.0]),
            "top_k": numbers.choice([0, 1, 50, VOCABULARY, 1_000_000]),
            "repetition_penalty": numbers.choice([0.01, 1.0, 1.2, 2.0]),
            "stop": numbers.choice([(), ("t1",), (" ",)]),
            "stop_token_ids": numbers.choice([frozenset(), frozenset({1, 9, 40})]),
            "ignore_eos": numbers.random() < 0.5,
        }
        length = min(int(numbers.expovariate(1 / 15)) + 1, 200)
        text = prompt(length, seed=index)
        if index >= 500:
            asked[index - 500].all_once()  # the queue is bounded
        asked.append(bench.ask(text, max_tokens=numbers.randint(1, 25), **hot))
        if numbers.random() < 0.3:
            numbers.choice(asked[-100:]).job.cancel()
    ends = [one.all_once()[-1] for one in asked]
    assert [end.error for end in ends if end.error] == []
    assert {end.finish_reason for end in ends} == {"stop", "length", "cancelled"}
    return sum(end.finish_reason == "cancelled" for end in ends)


@pytest.mark.parametrize("family", ["mistral, sliding window", NATIVE])
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_of_any_length_and_parameters_with_cuts_leave_every_slot_free(
    make, family, count
) -> None:
    if family == NATIVE:
        need_native_step()
    bench = make(family, slots=8)
    assert storm(bench, count) >= count / 10
    eventually(bench.is_empty)
    assert bench.engine.state().kv_usage == 0.0
    again = bench.answer(prompt(9), max_tokens=9)
    assert again == make(family, slots=8).answer(prompt(9), max_tokens=9)


def test_answers_of_the_native_step_are_the_same_alone_and_in_a_changing_batch(make) -> None:
    need_native_step()
    bench = make(NATIVE, slots=3)
    assert isinstance(bench.engine._runner, NativeRunner)
    wanted = [(5, 9), (1, 30), (40, 12), (17, 3), (450, 20), (3, 40), (9, 1), (60, 25)]
    prompts = [prompt(length, seed=length) for length, _ in wanted]
    alone = [
        bench.answer(text, max_tokens=tokens)
        for text, (_, tokens) in zip(prompts, wanted, strict=True)
    ]
    assert len(set(alone)) == len(alone)
    asked = [
        bench.ask(text, max_tokens=tokens)
        for text, (_, tokens) in zip(prompts, wanted, strict=True)
    ]
    assert [one.text() for one in asked] == alone
    hot = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 20, "seed": 7}
    alone = [bench.answer(prompt(20), **hot)]
    asked = [bench.ask(prompt(30, seed=1), max_tokens=9), bench.ask(prompt(20), **hot)]
    assert asked[1].text() == alone[0]
    eventually(bench.is_empty)
    assert bench.engine._runner.pages.used == 0


def test_the_native_step_reads_at_most_so_many_tokens_beside_the_running_rows(
    make, monkeypatch
) -> None:
    need_native_step()
    monkeypatch.setattr(transformers_engine, "MIXED_TOKENS", 16)
    bench = make(NATIVE)
    runner, calls, came = bench.engine._runner, [], threading.Event()
    advance = runner.advance

    def counted(tokens: Any, chunks: Any) -> Any:
        calls.append((len(tokens), sum(len(chunk) for _, chunk in chunks)))
        if len(tokens) == 1:  # the first request runs on only when the others have come
            came.wait(TIMEOUT)
        return advance(tokens, chunks)

    monkeypatch.setattr(runner, "advance", counted)
    running = bench.ask(prompt(3), max_tokens=60)
    running.events.get(timeout=TIMEOUT)
    lengths = (100, 5, 6)
    others = [bench.ask(prompt(length, seed=length), max_tokens=2) for length in lengths]
    came.set()
    for one in (*others, running):
        one.text()
    assert sum(read for _, read in calls) == 114
    assert max(read for rows, read in calls if rows) == 16


def test_the_native_step_reads_a_shared_system_message_once(make, monkeypatch) -> None:
    need_native_step()
    bench, alone = make(NATIVE), make(NATIVE)
    system = prompt(70, seed=1)
    bench.answer(f"{system} {prompt(8, seed=2)}", max_tokens=30)
    runner, read = bench.engine._runner, []
    advance = runner.advance

    def counted(tokens: Any, chunks: Any) -> Any:
        read.append(sum(len(chunk) for _, chunk in chunks))
        return advance(tokens, chunks)

    monkeypatch.setattr(runner, "advance", counted)
    question = f"{system} {prompt(9, seed=3)}"
    again = bench.answer(question, max_tokens=12)
    assert sum(read) == 9
    assert again == alone.answer(question, max_tokens=12)


def test_a_fault_in_the_native_step_fails_that_request_only(make, monkeypatch) -> None:
    need_native_step()
    bench = make(NATIVE)
    runner = bench.engine._runner
    forward = runner._forward

    def faulty(chunks: Any) -> Any:
        if any(len(chunk) == 13 for _, chunk in chunks):
            raise ZeroDivisionError
        return forward(chunks)

    expected = bench.answer(prompt(10), max_tokens=200)
    monkeypatch.setattr(runner, "_forward", faulty)
    good = bench.ask(prompt(10), max_tokens=200)
    bad = bench.ask(prompt(13, seed=1), max_tokens=20)
    assert isinstance(bad.all()[-1].error, EngineError)
    assert good.text() == expected
    eventually(bench.is_empty)
    assert runner.pages.used == 0


def test_a_fault_of_mixed_forward_passes_that_stays_is_logged_once(
    make, monkeypatch, capsys
) -> None:
    need_native_step()
    bench = make(NATIVE, slots=4, dtype="bfloat16")
    runner, tried = bench.engine._runner, []

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return getattr(runner, name)

        def advance(self, *_: Any) -> Any:
            tried.append(1)
            raise MemoryError("no memory for a step")

    expected = [bench.answer(prompt(30, seed=seed), max_tokens=8) for seed in range(12)]
    eventually(bench.is_empty)
    monkeypatch.setattr(bench.engine, "_runner", Broken())
    found = [bench.answer(prompt(30, seed=seed), max_tokens=8) for seed in range(12)]
    assert found == expected
    assert 1 <= len(tried) < 12
    assert capsys.readouterr().err.count("MemoryError: no memory for a step") == 1


def test_cuts_and_faults_of_the_native_step_leave_every_page_free(make, monkeypatch) -> None:
    need_native_step()
    bench = make(NATIVE, slots=8)
    runner, numbers = bench.engine._runner, random.Random(5)
    expected = bench.answer(prompt(9), max_tokens=9)
    choose, calls = bench.engine._choose, []

    def broken(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) % 60 == 0:
            raise ZeroDivisionError
        return choose(*arguments, **more)

    monkeypatch.setattr(bench.engine, "_choose", broken)
    asked = []
    for index in range(300):
        length = min(int(numbers.expovariate(1 / 30)) + 1, 400)
        text = prompt(length, seed=index)
        heat = numbers.choice([0.0, 1.0])
        asked.append(bench.ask(text, max_tokens=numbers.randint(1, 25), temperature=heat))
        if numbers.random() < 0.3:
            numbers.choice(asked).job.cancel()
    ends = [one.all()[-1] for one in asked]
    assert {end.finish_reason for end in ends} == {None, "length", "cancelled"}
    monkeypatch.setattr(bench.engine, "_choose", choose)
    eventually(bench.is_empty)
    assert runner.pages.used == 0
    assert bench.answer(prompt(9), max_tokens=9) == expected


def test_torch_computes_where_the_native_step_is_switched_off_or_does_not_fit(
    make, monkeypatch, capsys
) -> None:
    need_native_step()
    assert isinstance(make(NATIVE, cpu_step="torch").engine._runner, TorchRunner)
    assert "native" not in capsys.readouterr().err
    bench = make("gemma")
    assert isinstance(bench.engine._runner, TorchRunner)
    assert "torch computes the steps, not the native step: it does not know" in (
        capsys.readouterr().err
    )
    monkeypatch.setitem(sys.modules, "triton_native.checkpoint", None)
    bench = make(NATIVE)
    assert isinstance(bench.engine._runner, TorchRunner)
    assert "the native step is not installed" in capsys.readouterr().err
    assert bench.answer(prompt(9), max_tokens=9)


_LOAD = """
import sys
import threading
from pathlib import Path
from triton_hf.models.settings import ModelSettings
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.metrics import Metrics
engine = TransformersEngine.__new__(TransformersEngine)
engine._metrics = Metrics()
engine.settings = ModelSettings(
    repo_id="org/tiny", device="cpu", max_prompt_tokens=32, max_total_tokens=64
)
engine._open(Path(sys.argv[1]))
print(type(engine._runner).__name__)
print(sorted(engine._end_tokens), "transformers.models.llama.modeling_llama" in sys.modules)
"""


def test_what_the_native_step_computes_is_served_from_its_files_without_the_models_code(
    tmp_path,
) -> None:
    need_native_step()
    make_model(NATIVE).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    command = [sys.executable, "-c", _LOAD, str(tmp_path)]
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["NativeRunner", "[1] False"]
    assert "the native step computes" in done.stderr


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_from_files_the_engine_answers_as_from_a_model_in_memory(make, tmp_path, weights) -> None:
    need_native_step()
    bench = make(NATIVE, weights=weights)
    bench.model.save_pretrained(tmp_path)
    bench.tokenizer.save_pretrained(tmp_path)
    expected = bench.answer(prompt(9), max_tokens=20)
    bench.engine._open(tmp_path)
    assert isinstance(bench.engine._runner, NativeRunner)
    assert bench.answer(prompt(9), max_tokens=20) == expected


def test_half_a_file_is_refused_by_the_native_step_in_the_same_sentence(tmp_path) -> None:
    make_model(NATIVE).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.settings = ModelSettings(
        repo_id="org/tiny", device="cpu", max_prompt_tokens=32, max_total_tokens=64
    )
    (file,) = tmp_path.glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(SettingsError, match="org/tiny cannot be loaded") as caught:
        engine._open(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_in_int8_are_the_native_steps_where_it_fits_and_torchs_elsewhere(
    make, capsys
) -> None:
    small = make("gemma", weights="int8")
    kinds = [type(layer) for layer in small.engine._runner._model.modules()]
    assert Int8Linear in kinds
    assert torch.nn.Linear not in kinds
    assert small.answer(prompt(9), max_tokens=9)
    need_native_step()
    native = make(NATIVE, weights="int8")
    assert native.answer(prompt(9), max_tokens=9)
    if isinstance(native.engine._runner, NativeRunner):
        assert "the native step computes, AVX512-VNNI, int8" in capsys.readouterr().err
    else:
        assert "this CPU has no AVX512-VNNI" in capsys.readouterr().err


def test_a_model_whose_angles_change_with_the_length_is_served_up_to_there() -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0}
    rope |= {"short_factor": factors, "long_factor": [2.0] * 4}
    config = transformers.Phi3Config(
        **SIZES,
        num_key_value_heads=2,
        original_max_position_embeddings=128,
        rope_parameters=rope,
    )
    assert longest_context(config) == 128
    assert longest_context(FAMILIES["phi3"]()) == SIZES["max_position_embeddings"]
    nested = transformers.Gemma3TextConfig(**GROUPED, query_pre_attn_scalar=8)
    assert longest_context(nested) == SIZES["max_position_embeddings"]


def test_a_prompt_of_far_too_much_text_is_refused_before_it_is_tokenized(make) -> None:
    bench = make()
    bench.engine._chat.tokenizer = None  # nobody asks it
    with pytest.raises(RequestError, match=r"has 20000 characters; .* at most 600 tokens"):
        bench.ask("t1 a" * 5000)


def test_a_model_that_keeps_another_state_is_refused_with_its_name() -> None:
    config = transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    engine = TransformersEngine.__new__(TransformersEngine)
    engine.settings = ModelSettings(repo_id="x/y", max_total_tokens=64)
    model = transformers.AutoModelForCausalLM.from_config(config).train(False)
    with pytest.raises(SettingsError, match="models of the type 'mamba' cannot be served"):
        engine._use(model, word_tokenizer())


def test_half_a_weights_file_is_refused_in_one_sentence_with_the_models_name(tmp_path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    settings = ModelSettings(repo_id="org/tiny", dtype="float32", device="cpu")
    loading.load_model(tmp_path, settings)
    (file,) = tmp_path.glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(SettingsError, match="org/tiny cannot be loaded") as caught:
        loading.load_model(tmp_path, settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_quota_limits_the_threads_beside_a_gpu_too(tmp_path, monkeypatch, device) -> None:
    threads: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(loading, "usable_cores", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    settings = ModelSettings(repo_id="org/none", device=device)
    with pytest.raises(SettingsError, match="org/none cannot be loaded"):
        loading.load_model(tmp_path, settings)
    assert threads == [3]
