"""What happens before tritonserver starts."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from triton_hf.server.launch import REGION, remove_stale_regions


def region(folder: Path, name: str, *, age: float) -> Path:
    file = folder / f"{REGION}{name}"
    file.write_bytes(b"x" * mmap.PAGESIZE)
    then = time.time() - age
    os.utime(file, (then, then))
    return file


def test_only_regions_that_are_old_and_nobodys_are_removed(tmp_path: Path) -> None:
    dead = region(tmp_path, "dead", age=120)
    young = region(tmp_path, "young", age=5)
    mapped = region(tmp_path, "mapped", age=120)
    other = tmp_path / "other"
    other.write_bytes(b"x")
    os.utime(other, (0, 0))

    with mapped.open("r+b") as file, mmap.mmap(file.fileno(), mmap.PAGESIZE):
        assert remove_stale_regions(tmp_path) == 1

    assert not dead.exists()
    assert young.exists()
    assert mapped.exists()
    assert other.exists()


def test_without_the_folder_nothing_is_removed(tmp_path: Path) -> None:
    assert remove_stale_regions(tmp_path / "none") == 0
