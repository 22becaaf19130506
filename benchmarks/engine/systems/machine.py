"""What the machine itself allows and what processes take of it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SWEEP_BYTES = 1 << 29  # much more than any cache holds
SWEEPS = 12
PRODUCT_SIZE = 2048  # of square matrices
PRODUCTS = 8


def read_bandwidth(*, threads: int) -> list[float]:
    """Bytes per second of each of some sweeps over one buffer, read by all threads together.

    The sweep is the C library's search for a byte that is not there: vector code that only reads.
    """
    with contextlib.closing(mmap.mmap(-1, SWEEP_BYTES)) as buffer:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            buffer.madvise(mmap.MADV_HUGEPAGE)
        place = ctypes.c_char.from_buffer(buffer)
        try:
            address = ctypes.addressof(place)
            ctypes.memset(address, 1, SWEEP_BYTES)
            return [_sweep(address, threads) for _ in range(SWEEPS)]
        finally:
            del place


def _sweep(address: int, threads: int) -> float:
    search = ctypes.CDLL(None).memchr
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    search.restype = ctypes.c_void_p
    share = SWEEP_BYTES // threads
    readers = [
        threading.Thread(target=search, args=(address + index * share, 0, share))
        for index in range(threads)
    ]
    start = time.perf_counter()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return share * threads / (time.perf_counter() - start)


def multiply_rates(*, threads: int) -> list[float]:
    """Operations per second of large products by torch, in whichever of bf16 and fp32 is faster.

    Processors without instructions for bf16 are faster in fp32.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [
            _products(torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, dtype=kind))
            for kind in (
                torch.bfloat16,
                torch.float32,
            )
        ]
    finally:
        torch.set_num_threads(before)
    return max(found, key=max)


def _products(matrix: torch.Tensor) -> list[float]:
    rates = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        matrix @ matrix
        rates.append(2 * PRODUCT_SIZE**3 / (time.perf_counter() - start))
    return rates


def session_bytes(session: int) -> int:
    """Memory of all processes of a session; what they share with others counts in part."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == session:
                text = (folder / "smaps_rollup").read_text()
                total += sum(int(size) for size in re.findall(r"^Pss: +(\d+)", text, re.M)) * 1024
    return total


def has_bf16() -> bool:
    """Whether the processor multiplies in bf16."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16"})


def describe() -> dict[str, object]:
    """Processor, cores, memory and load of this machine."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model[1] if model else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "load_average_before": round(os.getloadavg()[0], 2),
    }
