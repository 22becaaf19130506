"""What peers need beside this project's own packages: environments and sources in its cache."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engine.systems.base import UnavailableError
from triton_hf.runtime import cache_root

_PIP = ("install", "--quiet", "--no-cache-dir", "--disable-pip-version-check")


def cached(name: str) -> Path:
    """Where something of this name lives in the project's cache."""
    return cache_root() / "peers" / name


def environment(
    name: str, requirements: Sequence[str], *, install: bool, instead: Sequence[str] = ()
) -> Path:
    """Return the Python of an environment with these requirements; made when it is missing.

    Args:
        name: Of its folder in the cache.
        requirements: As pip takes them.
        install: Make it where it is missing.
        instead: Requirements that replace what packages ask for, whatever that is.

    Raises:
        UnavailableError: It is not there and may not or cannot be installed.
    """
    major, minor, _ = platform.python_version_tuple()
    place = cached(f"{name}-python{major}.{minor}")
    complete, python = place / ".complete", place / "bin" / "python"
    if complete.exists():
        return python
    if not install:
        raise UnavailableError(f"{' '.join(requirements)} is not installed; --install does it")
    try:
        run([sys.executable, "-m", "venv", "--clear", str(place)], "venv")
        pip = [str(python), "-m", "pip", *_PIP]
        if instead:  # pip cannot; uv can
            run([*pip, "uv"], "pip install uv")
            overrides = place / "overrides.txt"
            overrides.write_text("".join(f"{line}\n" for line in instead))
            pip = [str(place / "bin" / "uv"), "pip", "install", "--quiet", "--no-cache"]
            pip += ["--python", str(python), "--override", str(overrides), *_index(python)]
        run([*pip, *requirements], f"pip install {' '.join(requirements)}")
        complete.touch()
    finally:
        if not complete.exists():
            shutil.rmtree(place, ignore_errors=True)
    return python


def _index(python: Path) -> list[str]:
    """The index that pip is told to use, in words of uv, which does not ask pip."""
    asked = [str(python), "-m", "pip", "config", "get", "global.index-url"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    index = os.environ.get("PIP_INDEX_URL") or told
    return ["--default-index", index] if index else []


def run(command: Sequence[str], what: str) -> None:
    """Run a command whose output matters only when it fails.

    Raises:
        UnavailableError: It failed; the text holds its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["nothing"]
        raise UnavailableError(f"{what} failed: {errors[-1].strip()[:300]}")
