"""`make test`: every stage, or those that are named, each with its own closing line.

Stages go on after a failure, so that one run shows everything that is broken; the exit code is 1
when any of them failed. Nothing is tried twice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from tools import place

FAST = "not slow and not gpu"
# Most tests without a server keep one core busy or wait; those of a file share what they prepare.
UNIT = ("image/tests", "k8s-tests", "tools", "benchmarks", "charts/dashboards")
TWO = ("-n", "2", "--dist", "loadfile")


def stages() -> dict[str, Sequence[str]]:
    """Return the commands by stage."""
    pytest = [sys.executable, "-m", "pytest", "-q", "--durations=30", "--durations-min=8"]
    alone = f"not triton and not chart and not cluster and not docker and {FAST}"
    # What the tests of autoscaling need and `make up` does not; another cluster has its own.
    addons = [sys.executable, "-m", "cluster", "up", "--with=monitoring"]
    embedded = place.foreign_kubeconfig() is None
    return {
        "lint": [sys.executable, "-m", "tools.lint"],
        # Before the unit tests: some of them look at the programs that it builds.
        "up": [sys.executable, "-m", "tools.up"],
        **({"addons": addons} if embedded else {}),
        # Before the unit tests, too: it builds the validator that some of them use.
        "chart": [*pytest, *TWO, "-m", f"chart and not cluster and {FAST}"],
        "unit": [*pytest, *TWO, "-m", alone, *UNIT],
        # Apart from those, because it measures.
        "load": [*pytest, *TWO, "-m", alone, "load_testing/tests"],
        # Some tests of the next stage serve with vLLM, which has an environment of its own.
        "vllm": [sys.executable, "-m", "tools.vllm_environment"],
        "serving": [*pytest, "-m", f"triton and not cluster and {FAST}"],
        "docker": [*pytest, "-m", f"docker and {FAST}", "image/tests/docker"],
        "cluster": [*pytest, "-m", f"cluster and {FAST}"],
    }


def main() -> int:
    """Run all stages, or those named; return 0 when every one passed."""
    known = stages()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"one of {', '.join(known)}")
    names = parser.parse_args().stages or list(known)
    for name in names:
        if name not in known:
            parser.error(f"there is no stage '{name}'; there are {', '.join(known)}")
    env = {**os.environ, "PYTHONPATH": place.python_path()}
    results: dict[str, tuple[int, float]] = {}
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        code = subprocess.run(list(known[name]), cwd=place.ROOT, env=env, check=False).returncode
        results[name] = (code, time.monotonic() - start)
    print("\nstage        result      took", file=sys.stderr)
    for name, (code, seconds) in results.items():
        print(f"{name:<13}{'ok' if code == 0 else 'FAILED':<9}{seconds:7.0f} s", file=sys.stderr)
    return int(any(code for code, _ in results.values()))


if __name__ == "__main__":
    raise SystemExit(main())
