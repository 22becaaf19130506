"""`make lint`: every check that reads the code without running it; all are run, then it fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tools.place import ROOT, python_path

TYPED = (
    "image/triton_hf",
    "image/triton_native",
    "image/triton_openai",
    "image/embedded_triton",
    "load_testing/triton_load",
    "tools",
    "benchmarks/hostile.py",
    "benchmarks/scaling",
    "benchmarks/soak",
    "charts/dashboards",
    "k8s-tests/cluster",
    "k8s-tests/lib",
)


def scripts() -> list[str]:
    """Return the shell scripts of the repository."""
    names = ("triton-hf", "install-packages", "install-compiler")
    return ["run_server.sh", ".ci/run", *(f"image/{name}" for name in names)]


def main() -> int:
    """Run all checks; return how many failed."""
    os.environ["PYTHONPATH"] = python_path()
    python = sys.executable
    checks = {
        "ruff": [python, "-m", "ruff", "check", "."],
        "format": [python, "-m", "ruff", "format", "--check", "."],
        "mypy": [python, "-m", "mypy", *TYPED],
    }
    checks["imports"] = [str(ROOT / ".venv" / "bin" / "lint-imports"), "--no-cache"]
    checks["shellcheck"] = [str(ROOT / ".venv" / "bin" / "shellcheck"), *scripts()]
    failed = 0
    for name, words in checks.items():
        start = time.monotonic()
        code = subprocess.run(words, cwd=ROOT, check=False).returncode
        verdict = "ok" if code == 0 else f"FAILED ({code})"
        print(f"lint: {name:<12}{verdict} in {time.monotonic() - start:.0f} s", file=sys.stderr)
        failed += code != 0
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
