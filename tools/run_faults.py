"""`make faults`: every fault on the cluster of `make up`, then the table of the results.

Usage: python -m tools.run_faults [WORDS OF PYTEST]. Exit code: pytest's, or that of
the table when all tests passed.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tools import fault_table, place


def main() -> int:
    """Bring up what the faults need, try them all, write the table; return the exit code."""
    env = {**os.environ, "PYTHONPATH": place.python_path()}

    def run(*words: str) -> int:
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=place.ROOT, env=env, check=False).returncode

    # Another cluster has a Prometheus of its own, or these tests are skipped.
    if place.foreign_kubeconfig() is None and (code := run("cluster", "up", "--with=monitoring")):
        return code
    code = run("pytest", "-q", "-m", "faults", "k8s-tests/faults", *sys.argv[1:])
    written = fault_table.main()
    return code or written


if __name__ == "__main__":
    raise SystemExit(main())
