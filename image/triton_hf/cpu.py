"""What this CPU offers: cores that may be used, and whether AMX can be trusted.

Some virtual machines pass the AMX flags on and hide CPUID leaf 0x1D. oneDNN then configures
empty tiles and the first bf16 matrix product dies with SIGILL. The cure is to keep oneDNN below
AMX; the variable must be set before oneDNN's first use.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VARIABLE = "ONEDNN_MAX_CPU_ISA"
CGROUP = Path("/sys/fs/cgroup")

# Runs in a process of its own: a CPU or a kernel that refuses ends that process, not ours.
# The machine code is: push rbx; mov eax,0x1d; xor ecx,ecx; cpuid; pop rbx; ret. CPUID leaf 0x1D
# gives the highest tile palette in EAX, and 0 when the leaf is hidden.
_CHILD = """
import ctypes, mmap
code = bytes.fromhex("53b81d00000031c90fa25bc3")
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_uint32)(address)())
"""
# Where such memory is not allowed: the real thing, a bf16 product that is large enough for AMX.
_CHILD_TORCH = """
import torch
a = torch.ones(64, 256, dtype=torch.bfloat16)
assert float((a @ a.T)[0, 0]) == 256.0
print(1)
"""


def apply_cpu_limits() -> dict[str, str]:
    """Cap oneDNN in this process's environment when AMX is broken; return what was set.

    A value that is set already is left alone, so a person can overrule the probe.
    """
    if VARIABLE in os.environ:
        return {VARIABLE: os.environ[VARIABLE]}
    flags = cpu_flags(Path("/proc/cpuinfo"))
    if "amx_tile" not in flags or amx_works():
        return {}
    limit = "AVX512_CORE_BF16" if "avx512_bf16" in flags else "AVX512_CORE"
    os.environ[VARIABLE] = limit
    print(
        f"triton-hf: this CPU shows AMX but hides its tile layout; {VARIABLE}={limit} keeps "
        "oneDNN off it",
        file=sys.stderr,
        flush=True,
    )
    return {VARIABLE: limit}


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Flags of the first core in a /proc/cpuinfo; empty where there are none."""
    try:
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def amx_works() -> bool:
    """Whether the tiles of a CPU that shows AMX can be used."""
    palette = _run(_CHILD)
    if palette is None:
        return _run(_CHILD_TORCH) is not None
    return palette != "0"


def _run(script: str) -> str | None:
    """Output of a Python script in a child process, None when it did not end well."""
    command = [sys.executable or "python3", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def usable_cores() -> int:
    """Cores that this process may use: its affinity, cut by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cores, round(quota))) if quota else cores


def _cgroup_quota(root: Path = CGROUP) -> float | None:
    """Cores that the cgroup grants, version 2 or 1; None where there is no limit."""
    try:
        quota, period = (root / "cpu.max").read_text("utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        number = int((root / "cpu" / "cpu.cfs_quota_us").read_text("utf-8"))
        period = (root / "cpu" / "cpu.cfs_period_us").read_text("utf-8")
        return None if number < 0 else number / int(period)
    except (OSError, ValueError):
        return None
