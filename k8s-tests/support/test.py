"""`make test`: every stage, each with its own closing line.

Stages go on after a failure, so that one run shows everything that is broken; the exit code is 1
when any of them failed. Nothing is tried twice.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from support import place

FAST = "not slow and not gpu"


def stages() -> dict[str, Sequence[str]]:
    """Return the commands by stage."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--durations=8"]
    # What the tests of autoscaling need and `make up` does not; another cluster has its own.
    addons = [sys.executable, "-m", "cluster", "up", "--with=monitoring"]
    embedded = place.foreign_kubeconfig() is None
    return {
        "lint": [sys.executable, "-m", "support.lint"],
        # Before the unit tests: some of them look at the programs that it builds.
        "up": [sys.executable, "-m", "support.up"],
        **({"addons": addons} if embedded else {}),
        # Before the unit tests, too: it builds the validator that some of them use.
        "chart": [*pytest, "-m", f"chart and not cluster and {FAST}"],
        "unit": [*pytest, "-m", f"not triton and not chart and not cluster and {FAST}"],
        "serving": [*pytest, "-m", f"triton and not cluster and {FAST}"],
        "cluster": [*pytest, "-m", f"cluster and {FAST}"],
    }


def main() -> int:
    """Run all stages; return 0 when every one passed."""
    env = {**os.environ, "PYTHONPATH": str(place.ROOT / "k8s-tests")}
    results: dict[str, tuple[int, float]] = {}
    for name, words in stages().items():
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        code = subprocess.run(list(words), cwd=place.ROOT, env=env, check=False).returncode
        results[name] = (code, time.monotonic() - start)
    print("\nstage        result      took", file=sys.stderr)
    for name, (code, seconds) in results.items():
        print(f"{name:<13}{'ok' if code == 0 else 'FAILED':<9}{seconds:7.0f} s", file=sys.stderr)
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
