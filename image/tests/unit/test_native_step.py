"""The native step beside torch, on tiny random models."""

from __future__ import annotations

import copy
import ctypes
import gc
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lib.triton_client import need_native_step
from triton_hf.runtime import cache_root
from triton_native.checkpoint import FolderCheckpoint, ModelCheckpoint
from triton_native.library import (
    AMX,
    AVX512,
    LEVELS,
    UnavailableError,
    best_level,
    fallback,
    load_library,
    source_key,
)
from triton_native.runner import NativeRunner
from triton_native.weights import rotation

VOCABULARY = 321
POSITIONS = 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied, a key head for each query head": lambda: transformers.LlamaConfig(
        **SIZES | {"tie_word_embeddings": True, "head_dim": 32, "num_key_value_heads": 6}
    ),
    "llama, 13 query heads for each key head": lambda: transformers.LlamaConfig(
        **SIZES | {"num_attention_heads": 26, "hidden_size": 416}
    ),
    "llama, inputs in blocks of unlike length": lambda: transformers.LlamaConfig(
        **SIZES | {"hidden_size": 576, "intermediate_size": 1120}
    ),
    "mistral, sliding window": lambda: transformers.MistralConfig(**SIZES, sliding_window=9),
    "qwen2, biases": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3, norms of queries and keys": lambda: transformers.Qwen3Config(**SIZES),
}


class Now:
    """What `make_runner` makes: each promise holds for every level, and for weights in int8."""

    level = AVX512
    int8 = False

    @classmethod
    def coarse(cls) -> float:
        """How much coarser a result may be than one in bf16."""
        return 5.0 if cls.int8 else 1.0


@pytest.fixture(scope="module", autouse=True, params=[*LEVELS.values(), "int8"])
def level(request: pytest.FixtureRequest) -> Any:
    library = need_native_step()
    Now.int8 = request.param == "int8"
    names = {name: number for number, name in LEVELS.items()}
    Now.level = names.get(request.param, AVX512)
    if Now.int8 and not library.native_int8():
        pytest.skip("this CPU has no AVX512-VNNI")


def make_model(kind: str = "llama", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = MODELS[kind]()
    for name, value in changes.items():
        setattr(config, name, value)
    return in_bfloat16(transformers.AutoModelForCausalLM.from_config(config))


def in_bfloat16(model: Any) -> Any:
    """As `from_pretrained` loads it: the angles stay in float32."""
    for one in model.parameters():
        one.data = one.data.bfloat16()
    return model.train(False)


def make_runner(model: Any, *, slots: int = 4, threads: int = 2) -> NativeRunner:
    """The model itself stays whole."""
    return NativeRunner(
        ModelCheckpoint(copy.deepcopy(model)),
        slots=slots,
        positions=POSITIONS,
        threads=threads,
        cache=cache_root(),
        level=Now.level,
        int8=Now.int8,
    )


def rounding_like(model: Any) -> Any:
    """What the step of this run is compared with: torch, rounding where the step rounds."""
    if not Now.int8:
        return model
    rounding = copy.deepcopy(model).float()
    for layer in rounding.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = in_int8(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs: (in_int8(inputs[0].bfloat16()),))
    return rounding


def in_int8(values: torch.Tensor) -> torch.Tensor:
    """Each 32 numbers in a row as whole numbers up to 127 with a scale of their own."""
    blocks = values.float().reshape(-1, 32)
    scales = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-20) / 127
    return ((blocks / scales).round() * scales).reshape(values.shape)


def prompt(length: int, *, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    made: list[int] = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
    return made


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one.float() - two.float()).norm() / two.float().norm())


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_as_near_to_exact_ones_as_those_of_torch_that_rounds_alike(kind) -> None:
    model = make_model(kind)
    runner = make_runner(model)
    ids = prompt(70)
    with torch.inference_mode():
        plain = rounding_like(model)(torch.tensor([ids])).logits[0, -1]
        exact = copy.deepcopy(model).float()(torch.tensor([ids])).logits[0, -1]
    found = runner.extend(runner.begin(), ids)[0]
    assert distance(found, exact) < 1.5 * distance(plain, exact) + 0.002


@pytest.mark.parametrize("kind", MODELS)
def test_each_layer_computes_what_it_computes_in_torch(kind) -> None:
    whole = make_model(kind)
    ids = prompt(40)
    for layers in range(1, len(whole.model.layers) + 1):
        model = copy.deepcopy(whole)
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
        with torch.inference_mode():
            plain = model(torch.tensor([ids])).logits[0, -1]
        runner = make_runner(model)
        found = runner.extend(runner.begin(), ids)[0]
        assert distance(found, plain) < 0.03 * Now.coarse(), f"{layers} layers"


@pytest.mark.parametrize("kind", MODELS)
def test_the_likeliest_token_is_that_of_torch_or_one_as_good(kind) -> None:
    model = make_model(kind)
    runner = make_runner(model)
    ids = prompt(120)
    with torch.inference_mode():
        plain = model(torch.tensor([ids])).logits[0].float()
    sequence = runner.begin()
    runner.extend(sequence, ids[:20])
    runner.join(sequence)
    equal = 0
    for position in range(20, len(ids)):
        best = int(runner.step([ids[position]])[0].argmax())
        highest = float(plain[position].max())
        # Numbers in bf16 are this coarse: half a step for each of the two results.
        assert highest - float(plain[position, best]) <= 0.02 * Now.coarse() * abs(highest)
        equal += best == int(plain[position].argmax())
    assert equal >= (70 if Now.int8 else 90)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [1, 7, 32, 33])
def test_a_prompt_in_chunks_gives_the_same_bits(kind, size) -> None:
    runner = make_runner(make_model(kind))
    ids = prompt(100)
    whole = runner.extend(runner.begin(), ids).clone()
    sequence = runner.begin()
    for start in range(0, len(ids), size):
        logits = runner.extend(sequence, ids[start : start + size])
    assert torch.equal(logits, whole)


@pytest.mark.parametrize("kind", MODELS)
def test_a_row_gets_the_same_bits_alone_and_beside_others(kind) -> None:
    runner = make_runner(make_model(kind), slots=9)
    alone = []
    sequence = runner.begin()
    runner.extend(sequence, prompt(45))
    runner.join(sequence)
    for token in prompt(30, seed=1):
        alone.append(runner.step([token])[0].clone())
    runner.clear()
    # Prompts of other lengths are read beside it, join after it, and leave before it.
    own, *others = (runner.begin() for _ in range(9))
    parts = [(own, prompt(45)), *((one, prompt(n * 13, seed=n)) for n, one in enumerate(others, 1))]
    runner.advance([], parts)
    runner.join(own)
    rows = 1
    late = runner.begin()
    for step, token in enumerate(prompt(30, seed=1)):
        logits = runner.advance([token, *[5] * (rows - 1)], [(late, [step])])
        assert torch.equal(logits[0], alone[step]), f"step {step}"
        if others:
            runner.join(others.pop())
            rows += 1
        elif rows > 1:
            runner.leave(rows - 1)
            rows -= 1


def test_the_number_of_threads_changes_no_bit() -> None:
    model = make_model(hidden_size=160, intermediate_size=320)
    one, three = make_runner(model, threads=1), make_runner(model, threads=3)
    ids = prompt(90)
    for _ in range(20):
        first, second = one.begin(), three.begin()
        assert torch.equal(one.extend(first, ids), three.extend(second, ids))
        one.join(first)
        three.join(second)
        assert torch.equal(one.step([7] * one.rows), three.step([7] * three.rows))
        if one.rows == 4:
            one.clear()
            three.clear()


def test_a_row_that_leaves_gives_its_number_to_the_last_and_its_memory_back() -> None:
    runner = make_runner(make_model())
    for seed in range(3):
        sequence = runner.begin()
        runner.extend(sequence, prompt(40 + seed, seed=seed))
        runner.join(sequence)
    expected = runner.step([1, 2, 3])[2].clone()
    for sequence in runner._rows:
        sequence.length -= 1  # the same step again
    used = runner.pages.used
    runner.leave(0)
    assert runner.rows == 2
    assert runner.pages.used < used
    assert torch.equal(runner.step([3, 2])[0], expected)
    runner.clear()
    assert runner.pages.used == 0


def test_a_sequence_that_is_dropped_gives_its_memory_back() -> None:
    runner = make_runner(make_model())
    sequence = runner.begin()
    runner.extend(sequence, prompt(100))
    assert runner.pages.used == 4
    del sequence
    assert runner.pages.used == 0


def test_a_sequence_that_ends_after_its_model_does_not_use_it() -> None:
    runner: Any = make_runner(make_model())
    sequence = runner.begin()
    runner.extend(sequence, prompt(40))
    library, calls = runner.pages._library, []

    class Noted:
        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(library, name)

    runner.pages._library = Noted()
    # Unused at once, as at the end of a process: Python chooses which ends first.
    runner.sequence, runner.itself = sequence, runner
    del runner, sequence
    gc.collect()
    assert "native_free_page" in calls
    assert calls[-1] == "native_destroy"


def test_memory_is_bounded_by_slots_and_positions_and_what_does_not_fit_changes_nothing() -> None:
    runner = make_runner(make_model(), slots=1)
    sequence, other = runner.begin(), runner.begin()
    runner.extend(sequence, prompt(POSITIONS - 20))
    with pytest.raises(MemoryError, match="no page for keys and values"):
        runner.extend(other, prompt(40))
    with pytest.raises(IndexError, match=f"at most {POSITIONS} tokens"):
        runner.extend(sequence, prompt(21))
    runner.extend(sequence, prompt(20))
    assert runner.pages.used == POSITIONS // runner.pages.tokens


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31 - 1])
def test_a_token_outside_of_the_vocabulary_is_an_error_and_no_crash(token) -> None:
    runner = make_runner(make_model())
    with pytest.raises(IndexError, match=f"from 0 to {VOCABULARY - 1}"):
        runner.extend(runner.begin(), [1, token])
    with pytest.raises(IndexError, match="at least one token"):
        runner.extend(runner.begin(), [])


def test_what_is_no_number_in_one_row_reaches_no_other_and_no_later_one() -> None:
    runner = make_runner(make_model(), slots=2)
    sequence = runner.begin()
    expected = runner.extend(sequence, prompt(40)).clone()
    ctypes.memset(sequence._pages[0], 0xFF, runner.pages.page_bytes)
    runner.join(sequence)
    beside = runner.begin()
    logits = runner.advance([1], [(beside, prompt(40))])
    assert logits[0].isnan().all()
    assert torch.equal(logits[1:], expected)
    assert list(runner.highest) == [-1, int(expected[0].argmax())]
    runner.clear()
    again = runner.begin()
    assert torch.equal(runner.extend(again, prompt(40)), expected)


def test_a_step_for_which_there_is_no_memory_leaves_nothing_half_grown() -> None:
    script = f"""
import resource, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import torch
import test_native_step as tests
runner = tests.make_runner(tests.make_model(), slots=1)
sequence, ids = runner.begin(), tests.prompt(100)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
runner._logits = torch.empty((4, runner._vocabulary))
sequence.reserve(100)
resource.setrlimit(resource.RLIMIT_AS, (used, limits[1]))
try:
    runner.extend(sequence, ids)
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
expected = tests.fresh(runner, ids)
print(torch.equal(runner.extend(sequence, ids)[0], expected))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split("\n")[-3:] == ["no memory for a step", "True", ""], done


def test_pages_that_are_forgotten_are_not_taken_over_and_all_come_back() -> None:
    runner = make_runner(make_model(), slots=2)
    ids, sequence, kept = prompt(100), runner.begin(), runner.begin()
    runner.extend(kept, prompt(70, seed=1))
    runner.extend(sequence, ids)
    kept.release()
    assert runner.resume(prompt(70, seed=1))[1] > 0
    assert runner.resume(ids)[1] > 0
    runner.forget()
    assert runner.pages.kept == 0
    assert runner.resume(ids)[1] == runner.resume(prompt(70, seed=1))[1] == 0
    runner.extend(sequence, prompt(40, seed=2))  # it goes on as if nothing had been
    sequence.release()
    assert runner.pages.used == 0
    assert runner.pages.kept <= 2  # what it has read since


def test_logits_that_are_no_numbers_are_seen_by_the_check() -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="not finite"):
        make_runner(model).check()


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 1, 15, 17, 250])
def test_the_largest_logit_of_each_row_is_found(vocabulary) -> None:
    torch.manual_seed(1)
    model = make_model(vocab_size=vocabulary)
    runner = make_runner(model, slots=3)
    for seed, length in enumerate((5, 40, 1)):
        sequence = runner.begin()
        tokens = [token % vocabulary for token in prompt(length, seed=seed)]
        logits = runner.extend(sequence, tokens)
        assert list(runner.highest) == logits.argmax(dim=-1).tolist()
        runner.join(sequence)
    logits = runner.step([0, 0, 0])
    assert list(runner.highest) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0), (3e38, -1)])
def test_of_equal_logits_the_first_is_the_largest_and_of_infinite_ones_none(
    weight, expected
) -> None:
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(weight)
        model.lm_head.weight.fill_(100.0)
    runner = make_runner(model)
    logits = runner.extend(runner.begin(), prompt(3))
    assert logits.isfinite().all() == (expected == 0)
    assert list(runner.highest) == [expected]


def test_sums_are_exact_where_all_weights_and_all_activations_are_alike() -> None:
    """No other numbers of the same norms have as large a sum: 32 bits just hold it."""
    model = make_model("llama, inputs in blocks of unlike length", tie_word_embeddings=False)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Embedding):
                layer.weight.fill_(0.0101)
    ids = prompt(40)
    with torch.inference_mode():
        exact = copy.deepcopy(model).float()(torch.tensor([ids])).logits[0, -1]
    runner = make_runner(model)
    assert distance(runner.extend(runner.begin(), ids)[0], exact) < 0.01 * Now.coarse()


@pytest.mark.parametrize("size", [30.0, 1e3, 1e6])
def test_a_weight_far_above_the_others_does_not_drown_them(size) -> None:
    model = make_model()
    with torch.no_grad():
        # What one input brings in through the first is multiplied by 0 behind it.
        model.model.layers[0].mlp.up_proj.weight[7] *= size
        model.model.layers[0].mlp.down_proj.weight[:, 7] = 0
    ids = prompt(40)
    with torch.inference_mode():
        plain = rounding_like(model)(torch.tensor([ids])).logits[0, -1]
        exact = copy.deepcopy(model).float()(torch.tensor([ids])).logits[0, -1]
    runner = make_runner(model)
    found = runner.extend(runner.begin(), ids)[0]
    assert distance(found, exact) < 1.5 * distance(plain, exact) + 0.002


def test_threads_sleep_while_nothing_is_asked() -> None:
    runner = make_runner(make_model(), threads=3)
    runner.check()
    tasks = {
        task for task in Path("/proc/self/task").iterdir() if "native-step" in _text(task / "comm")
    }
    assert len(tasks) >= 2
    before = sum(_ticks(task) for task in tasks)
    threading.Event().wait(0.5)
    assert sum(_ticks(task) for task in tasks) - before <= 2


def _text(file: Path) -> str:
    return file.read_text("utf-8")


def _ticks(task: Path) -> int:
    """Hundredths of a second of CPU time that a thread has used."""
    fields = _text(task / "stat").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_model_keeps_no_second_copy_of_the_weights() -> None:
    model = make_model()
    checkpoint = ModelCheckpoint(model)
    NativeRunner(checkpoint, slots=1, positions=POSITIONS, threads=1, cache=cache_root())
    left = sum(one.numel() for one in model.parameters())
    assert left == sum(one.numel() for one in model.parameters() if one.dim() == 1)


def test_the_level_of_a_runner_is_one_that_works_here_unless_it_is_asked_for() -> None:
    library = load_library(cache=cache_root())
    best = best_level(library)
    assert AVX512 <= best <= AMX
    assert library.native_check(best)
    checkpoint = ModelCheckpoint(make_model())
    runner = NativeRunner(checkpoint, slots=1, positions=8, threads=1, cache=cache_root())
    assert runner.instructions == LEVELS[best]


def test_instructions_that_the_flags_promise_and_the_cpu_does_not_have_are_left_alone(
    monkeypatch,
) -> None:
    real = load_library(cache=cache_root())

    class Boasting:
        _name = real._name

        @staticmethod
        def native_level() -> int:
            return AMX

    boasting = Boasting()
    assert best_level(boasting) == best_level(real)
    if best_level(real) < AMX:
        said = fallback(boasting)
        assert said is not None
        assert said.startswith("this CPU shows AMX, but a check of it ended with SIGILL; ")
        assert f"{LEVELS[best_level(real)]} is used, which is slower" in said


ROTATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 256},
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_angles_are_those_of_transformers_to_the_bit(kind) -> None:
    model = make_model(rope_parameters={"rope_type": kind, "rope_theta": 10000.0} | ROTATIONS[kind])
    like = torch.zeros(1, dtype=torch.bfloat16)
    expected = model.model.rotary_emb(like, torch.arange(POSITIONS)[None])
    for found, table in zip(rotation(model.config, POSITIONS), expected, strict=True):
        assert torch.equal(found, table[0, :, : found.shape[1]])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_from_files_the_step_computes_what_it_computes_from_memory(kind, shard, tmp_path) -> None:
    model = make_model(kind)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len([*tmp_path.glob("*.safetensors")]) == 1 or shard == "100KB"
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    settings = {"slots": 1, "positions": POSITIONS, "threads": 1, "cache": cache_root()}
    with FolderCheckpoint(tmp_path, config) as files:
        stored = NativeRunner(files, **settings, level=Now.level, int8=Now.int8)
    expected = fresh(make_runner(model), prompt(70))
    assert torch.equal(fresh(stored, prompt(70)), expected)


def resized(name: str, *shape: int) -> Any:
    """A model one of whose weights is not what its configuration says."""
    model = make_model()
    model.get_parameter(name).data = torch.zeros(shape, dtype=torch.bfloat16)
    return model


WIDTH = SIZES["hidden_size"]
REFUSED = {
    "more rows than words": (
        lambda: resized("model.embed_tokens.weight", VOCABULARY + 16, WIDTH),
        "model.embed_tokens.weight has the shape",
    ),
    "fewer heads": (
        lambda: resized("model.layers.1.self_attn.k_proj.weight", 16, WIDTH),
        "model.layers.1.self_attn.k_proj.weight has the shape",
    ),
    "a short norm": (lambda: resized("model.norm.weight", WIDTH - 16), "model.norm.weight has"),
    "another family": (lambda: make_other(transformers.GemmaConfig(**SIZES)), "type 'gemma'"),
    "another precision": (lambda: make_model().float(), "is float32"),
    "odd hidden size": (lambda: make_model(hidden_size=104), "hidden_size is 104, no multiple"),
    "odd head": (lambda: make_model(head_dim=24), "head_dim is 24, no multiple"),
    "odd middle": (lambda: make_model(intermediate_size=150), "intermediate_size is 150"),
    "another activation": (lambda: make_model(hidden_act="gelu"), "activation is 'gelu'"),
    "biases": (lambda: make_model(mlp_bias=True), "has biases"),
    "layers that differ": (
        lambda: make_other(
            transformers.Qwen2Config(
                **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
            )
        ),
        "only some of its layers",
    ),
    "positions that depend on the length": (
        lambda: make_model(
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        ),
        "type 'dynamic'",
    ),
}


def make_other(config: Any) -> Any:
    return in_bfloat16(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_does_not_fit_is_refused_with_the_reason_and_stays_whole(kind) -> None:
    make, reason = REFUSED[kind]
    model = make()
    size = sum(one.numel() for one in model.parameters())
    with pytest.raises(UnavailableError, match=reason):
        NativeRunner(ModelCheckpoint(model), slots=1, positions=64, threads=1, cache=cache_root())
    assert sum(one.numel() for one in model.parameters()) == size


def test_without_a_library_and_a_compiler_the_reason_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UnavailableError, match="there is no g\\+\\+"):
        load_library(cache=tmp_path)
    with pytest.raises(UnavailableError, match="not compiled for this installation"):
        load_library(cache=None)
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / f"{source_key()}.so").write_bytes(b"no library")
    with pytest.raises(UnavailableError, match="does not load"):
        load_library(cache=tmp_path)


def test_a_compiler_that_fails_is_named_with_its_message(tmp_path, monkeypatch) -> None:
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no space' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UnavailableError, match="failed \\(fatal error: no space\\)"):
        load_library(cache=tmp_path)
    assert list((tmp_path / "native").iterdir()) == []


def fresh(runner: NativeRunner, ids: list[int]) -> torch.Tensor:
    return runner.extend(runner.begin(), ids)[0].clone()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("common", [4, 5, 32, 33, 63, 64, 70, 99])
def test_a_prompt_that_starts_like_an_earlier_one_is_read_from_where_they_differ(
    kind, common
) -> None:
    runner = make_runner(make_model(kind))
    first = prompt(100)
    second = [*first[:common], (first[common] + 1) % VOCABULARY, *prompt(20, seed=1)]
    expected = fresh(runner, second)
    runner = make_runner(make_model(kind))
    fresh(runner, first)
    sequence, known = runner.resume(second)
    # The last page is not full, and fewer than 4 tokens of a page are not worth a copy.
    inside = common % 32 if common < 96 else 0
    assert known == min(common, 96) - (inside if inside < 4 else 0)
    assert torch.equal(runner.extend(sequence, second[known:])[0], expected)


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    runner = make_runner(make_model())
    ids = prompt(96)
    expected = fresh(runner, ids)
    for length in (1, 2, 5, 32, 33, 64, 96):
        _, known = runner.resume(ids[:length])
        assert known == (length - 1 if length > 4 else 0)
    sequence, known = runner.resume(ids)
    assert torch.equal(runner.extend(sequence, ids[known:])[0], expected)


def test_the_next_turn_of_a_conversation_takes_over_the_answer_too() -> None:
    runner = make_runner(make_model())
    sequence = runner.begin()
    runner.extend(sequence, prompt(20))
    runner.join(sequence)
    for token in prompt(50, seed=1):
        runner.step([token])
    turn = [*prompt(20), *prompt(50, seed=1), *prompt(9, seed=2)]
    assert runner.resume(turn)[1] == 64
    runner.leave(0)
    sequence, known = runner.resume(turn)
    assert known == 64
    again = runner.extend(sequence, turn[known:])[0].clone()
    assert torch.equal(again, fresh(make_runner(make_model()), turn))


def test_a_shared_page_stays_until_its_last_owner_leaves_and_is_kept_then() -> None:
    runner = make_runner(make_model(), slots=4)  # 32 pages, of which 8 are kept
    ids = prompt(65)
    one = runner.begin()
    runner.extend(one, ids)
    two, known = runner.resume(ids)
    assert (known, runner.pages.used) == (64, 3)
    one.release()
    assert (runner.pages.used, runner.pages.kept) == (2, 0)
    last = runner.extend(two, ids[64:])[0].clone()
    two.release()
    assert (runner.pages.used, runner.pages.kept) == (0, 2)
    assert torch.equal(last, fresh(make_runner(make_model()), ids))


def test_kept_pages_are_few_and_make_room_for_those_in_use() -> None:
    runner = make_runner(make_model(), slots=2)  # 16 pages, of which 4 are kept
    for seed in range(6):
        fresh(runner, prompt(POSITIONS, seed=seed))
        assert (runner.pages.used, runner.pages.kept) == (0, 4)
    # The start of a prompt is what is kept of it.
    assert runner.resume(prompt(POSITIONS, seed=5))[1] == 128
    expected = [fresh(make_runner(make_model()), prompt(POSITIONS, seed=n)) for n in (7, 8)]
    sequences = [runner.begin(), runner.begin()]
    chunks = [(one, prompt(POSITIONS, seed=n)) for one, n in zip(sequences, (7, 8), strict=True)]
    logits = runner.advance([], chunks)
    assert torch.equal(logits, torch.stack(expected))
    assert (runner.pages.used, runner.pages.kept) == (16, 0)
    assert runner.resume(prompt(POSITIONS, seed=5))[1] == 0


def test_memory_for_later_prompts_is_brought_in_before_them_and_no_more_than_is_kept() -> None:
    runner = make_runner(make_model(), slots=8)  # 64 pages, of which 16 are kept
    prepared = sum(1 for _ in iter(runner.prepare, False))
    assert prepared == 16
    expected = fresh(make_runner(make_model()), prompt(POSITIONS))
    assert torch.equal(fresh(runner, prompt(POSITIONS)), expected)
    assert (runner.pages.used, runner.pages.kept) == (0, 8)
    assert not runner.prepare()  # 8 are unused, and no more will be kept
    sequences = [runner.begin() for _ in range(2)]
    for seed, sequence in enumerate(sequences, start=1):
        runner.extend(sequence, prompt(POSITIONS, seed=seed))
    assert sum(1 for _ in iter(runner.prepare, False)) == 8


def test_no_more_than_a_bound_is_brought_in(monkeypatch) -> None:
    runner = make_runner(make_model(), slots=8)
    monkeypatch.setattr("triton_native.pages._MOST_PREPARED", 5 * runner.pages.page_bytes)
    assert sum(1 for _ in iter(runner.prepare, False)) == 5


def test_a_prepared_prompt_takes_no_new_memory() -> None:
    model = make_model(num_hidden_layers=12, head_dim=32, num_key_value_heads=6)
    runner = make_runner(model, slots=64)
    pages = runner.pages.limit // 4
    before = resident()
    while runner.prepare():
        pass
    taken = resident() - before
    assert taken >= pages * runner.pages.page_bytes > 30e6
    before = resident()
    for seed in range(pages * runner.pages.tokens // POSITIONS):
        runner.extend(sequence := runner.begin(), prompt(POSITIONS, seed=seed))
        runner.join(sequence)
    assert resident() - before < 0.2 * taken


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def test_a_copied_page_takes_over_only_what_is_common() -> None:
    runner = make_runner(make_model())
    ids = prompt(40)
    second = [*ids[:15], *prompt(9, seed=3)]
    expected = fresh(runner, second)
    whole, part = runner.begin(), runner.begin()
    runner.extend(whole, ids)
    runner.extend(part, ids[:15])
    # In the known page, what follows the common part is no number; 0 x NaN would be one neither.
    page = whole._pages[0]
    ctypes.memset(page, 0xFF, runner.pages.page_bytes)
    runner._library.native_copy_page(runner.pages.handle, part._pages[0], page, 15)
    words = (ctypes.c_uint16 * (runner.pages.page_bytes // 2)).from_address(page)
    assert 0xFFFF in words
    part.release()
    resumed, known = runner.resume(second)
    assert known == 15
    assert torch.equal(runner.extend(resumed, second[15:])[0], expected)
