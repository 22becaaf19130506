"""`make down`: remove the release and the embedded cluster; with --all the caches too."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from support import place


def main() -> int:
    """Remove what `make up` made; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="make down", description=__doc__)
    parser.add_argument("--all", action="store_true", help="remove the caches as well")
    everything = parser.parse_args().all
    os.environ["PYTHONPATH"] = str(place.ROOT / "k8s-tests")
    if place.foreign_kubeconfig():
        here = place.current()
        words = ["helm", "uninstall", "triton", "-n", "triton", "--ignore-not-found"]
        return subprocess.run(words, env=here.environment(), check=False).returncode
    verb = "reset" if everything else "down"
    code = subprocess.run([sys.executable, "-m", "cluster", verb], check=False).returncode
    if everything and code == 0:
        shutil.rmtree(place.cache(), ignore_errors=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
