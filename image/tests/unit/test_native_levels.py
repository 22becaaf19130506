"""Levels of CPU instructions: the one that works is used, and a fallback is never silent."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.triton_client import need_native_step
from triton_hf.compute import loading
from triton_hf.cpu import cpu_flags
from triton_hf.engines.transformers_engine import TransformersEngine
from triton_hf.health import Heartbeat
from triton_hf.metrics import Metrics
from triton_hf.models.settings import ModelSettings
from triton_hf.runtime import cache_root
from triton_native.library import AMX, AVX512_BF16, LEVELS, best_level, fallback, load_library


@pytest.fixture(autouse=True)
def native() -> None:
    need_native_step()


def test_a_level_whose_results_differ_is_left_alone_and_the_reason_is_said(tmp_path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text(
        "int native_level() { return 4; }\nint native_check(int l) { return l < 4; }\n"
    )
    library = tmp_path / "wrong.so"
    compiler = shutil.which("gcc") or pytest.skip("needs a C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    wrong = ctypes.CDLL(str(library))
    assert best_level(wrong) == AMX - 1
    assert fallback(wrong) == (
        "this CPU shows AMX, but a check of it gave other results than AVX512; "
        f"{LEVELS[AMX - 1]} is used, which is slower"
    )


def test_a_cpu_whose_level_works_has_nothing_to_say() -> None:
    library = load_library(cache=cache_root())
    if library.native_level() != best_level(library):
        pytest.skip("this CPU shows a level that it does not have")
    assert fallback(library) is None


@pytest.mark.skipif("amx_tile" in cpu_flags(Path("/proc/cpuinfo")), reason="tiles do not trap here")
def test_the_configuration_of_the_tiles_is_stored_before_it_is_loaded(tmp_path) -> None:
    """GCC 12 dropped 56 of its 64 bytes, so that no AMX level ever ran."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    probe = tmp_path / "ldtilecfg"
    source = Path(__file__).with_name("ldtilecfg.cpp")
    subprocess.run([compiler, "-O1", "-o", probe, source, "-ldl"], check=True)
    library = load_library(cache=cache_root())
    done = subprocess.run(
        [probe, library._name, str(AMX)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"no LDTILECFG was met: {done.returncode}"
    config = bytes.fromhex(done.stdout)
    bytes_of_row = [int.from_bytes(config[16 + 2 * t : 18 + 2 * t], "little") for t in range(16)]
    rows = config[48:]
    assert config[0] == 1, "palette"
    assert bytes_of_row == [64] * 8 + [0] * 8
    assert rows[6] == rows[7] == 16
    assert rows[0] == rows[1] == rows[4] > 0
    assert rows[2] == rows[3] == rows[5] > 0
    assert [*rows[8:]] == [0] * 8


@pytest.mark.parametrize("why", [None, "this CPU shows AMX, but a check of it ended with SIGILL"])
def test_a_fallback_is_a_warning_in_the_log(monkeypatch, capsys, why: str | None) -> None:
    runner = SimpleNamespace(instructions="AVX512-BF16", fallback=why)
    monkeypatch.setattr("triton_native.runner.NativeRunner", lambda *_, **__: runner)
    loading._make_native(None, ModelSettings(repo_id="org/m"))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert "org/m: the native step computes, AVX512-BF16" in said
    assert ("WARNING" in said) == (why is not None)
    assert why is None or f"org/m: WARNING: {why}" in said


def test_a_metric_shows_the_level_of_the_cpu_and_the_one_in_use(tmp_path: Path) -> None:
    metrics = Metrics()
    engine = TransformersEngine(
        settings=ModelSettings(repo_id="org/m"),
        metrics=metrics,
        heartbeat=Heartbeat(tmp_path / "m.json"),
    )
    engine._serve(SimpleNamespace(check=lambda: None, cpu_levels=(AMX, AVX512_BF16)))
    gauges, _, _ = metrics.drain()
    assert gauges["triton_hf_cpu_level", "shown"] == AMX
    assert gauges["triton_hf_cpu_level", "used"] == AVX512_BF16
    engine._serve(SimpleNamespace(check=lambda: None, cpu_levels=None))
    assert metrics.drain()[0] == {}
