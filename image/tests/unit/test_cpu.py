"""The CPU probe."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_hf import cpu


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that monkeypatch takes away what the code under test sets.
    monkeypatch.setenv(cpu.VARIABLE, "x")
    monkeypatch.delenv(cpu.VARIABLE)


def test_the_child_reads_the_tile_palette_of_this_cpu() -> None:
    palette = cpu._run(cpu._CHILD)
    assert palette is not None
    assert int(palette) >= 0


@pytest.mark.usefixtures("no_limit")
@pytest.mark.parametrize(
    ("flags", "works", "limit"),
    [
        ({"amx_tile", "avx512_bf16"}, False, "AVX512_CORE_BF16"),
        ({"amx_tile"}, False, "AVX512_CORE"),
        ({"amx_tile", "avx512_bf16"}, True, None),
        ({"avx2"}, False, None),
    ],
)
def test_onednn_is_kept_off_tiles_that_are_shown_but_hidden(monkeypatch, flags, works, limit):
    monkeypatch.setattr(cpu, "cpu_flags", lambda _: frozenset(flags))
    monkeypatch.setattr(cpu, "amx_works", lambda: works)
    assert cpu.apply_cpu_limits().get(cpu.VARIABLE) == limit


def test_a_value_that_a_person_set_is_left_alone(monkeypatch) -> None:
    monkeypatch.setenv(cpu.VARIABLE, "AVX2")
    assert cpu.apply_cpu_limits() == {cpu.VARIABLE: "AVX2"}


def test_flags_come_from_cpuinfo(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nflags\t\t: fpu amx_tile\n")
    assert cpu.cpu_flags(file) == {"fpu", "amx_tile"}
    assert cpu.cpu_flags(tmp_path / "none") == frozenset()


def test_at_least_one_core_is_used() -> None:
    assert cpu.usable_cores() >= 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_both_kinds_of_cgroup_is_read(tmp_path: Path, files, cores) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu._cgroup_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.4, 1), (2.5, 2), (3.6, 4), (100.0, 8)])
def test_a_quota_cuts_the_cores_and_leaves_one(monkeypatch, quota, cores) -> None:
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpu, "_cgroup_quota", lambda: quota)
    assert cpu.usable_cores() == cores
