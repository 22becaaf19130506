"""The benchmark of the GPU path without a GPU: its arithmetic, and a run of a tiny model."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from benchmarks import gpu


def test_a_step_reads_the_weights_once_and_each_rows_keys_and_values() -> None:
    shape = gpu.SHAPES["llama3-8b"]
    # 128 KiB of keys and values a token in bf16.
    assert gpu.step_bytes(shape, clients=64, context=512, weights=15e9) == 15e9 + 64 * 512 * 131072


def test_the_table_says_how_many_times_the_limit_a_step_takes() -> None:
    ours = gpu.Result(
        system="ours, engine",
        clients=1,
        inter_token=0.0054,
        limit=0.0045,
        tokens_per_second=185.0,
        idle=0.0125,
    )
    peer = gpu.Result(
        system="vLLM", clients=1, inter_token=0.006, limit=None, tokens_per_second=160.0
    )
    lines = gpu.table([ours, peer], bandwidth=3.35e12).splitlines()
    assert lines[0] == "Memory: 3.35 TB/s"
    assert lines[-2:] == [
        "| ours, engine | 1 | 5.40 | 4.50 | 1.20 | 185 | 1.2% |",
        "| vLLM | 1 | 6.00 | - | - | 160 | - |",
    ]


def test_idle_is_the_time_between_the_end_of_a_step_and_the_start_of_the_next(monkeypatch) -> None:
    class Event:
        times = iter([0, 10, 50, 60, 61, 71, 73, 83])  # start and end of four steps

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = next(Event.times)

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Any) -> float:
            return float(other.time - self.time)

    class Runner:
        def launch(self, rows: Any) -> Any:
            return rows

    monkeypatch.setattr(torch.cuda, "Event", Event)
    runner = Runner()
    clock = gpu.StepClock(runner)
    assert [runner.launch(rows) for rows in range(4)] == [0, 1, 2, 3]
    assert clock.idle() == pytest.approx(2 / 22)  # the first half is not looked at


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    return gpu.main()


def test_without_a_gpu_it_says_so_and_ends_with_2(monkeypatch, capsys) -> None:
    assert run(monkeypatch) == 2
    assert "torch sees no NVIDIA GPU here" in capsys.readouterr().err


def test_a_tiny_model_runs_anywhere(monkeypatch, capsys, tmp_path) -> None:
    out = tmp_path / "results" / "gpu.json"
    sizes = ["--prompt", "4", "--answer", "8", "--runs", "1", "--clients", "1", "2"]
    assert run(monkeypatch, "--shape", "tiny", *sizes, "--out", str(out)) == 0
    found = json.loads(out.read_text())
    assert [one["clients"] for one in found["results"]] == [1, 2]
    assert all(one["inter_token"] > 0 for one in found["results"])
    assert (found["device"], found["bandwidth"], found["vllm"]) == ("cpu", None, "there is no GPU")
    assert "| ours, engine | 2 |" in capsys.readouterr().out
