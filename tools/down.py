"""`make down`: remove the release and the embedded cluster; with --all the caches too."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from tools import place


def remove_releases(here: place.Place, namespace: str) -> int:
    """Remove what `make up` and `make load` made on a cluster of somebody else's.

    The namespace stays, because there may be more in it.
    """
    releases = (place.LOAD_RELEASE, place.RELEASE)
    label = f"app.kubernetes.io/instance in ({', '.join(releases)})"
    inside = ["-n", namespace, "--ignore-not-found"]
    commands = [
        *(["helm", "uninstall", name, *inside, "--wait"] for name in releases),
        # What an uninstall keeps: claims, Secrets with a token, Jobs that were hooks.
        ["kubectl", "delete", "jobs,pvc,secrets", *inside, "-l", label],
        ["kubectl", "delete", "secret", place.TOKEN_SECRET, *inside],
    ]
    for words in commands:
        if not shutil.which(words[0], path=place.tool_path()):
            print(f"make down: {words[0]} is not on PATH: install it", file=sys.stderr)
            return 1
        code = subprocess.run(words, env=here.environment(), check=False).returncode
        if code:
            return code
    print(
        f"make down: the namespace {namespace} stays; `kubectl delete namespace {namespace}` "
        "removes it with all that is in it",
        file=sys.stderr,
    )
    return 0


def main() -> int:
    """Remove what `make up` made; return the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="make down", description=__doc__)
    parser.add_argument("--all", action="store_true", help="remove the caches as well")
    parser.add_argument("--namespace", default=place.NAMESPACE, help="on another cluster")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = place.python_path()
    if named := place.foreign_kubeconfig():
        code = remove_releases(place.foreign(named), options.namespace)
        if options.all:
            print(
                "make clean: images and caches stay, because KUBECONFIG names a cluster; without "
                "it they are removed, and the embedded cluster too",
                file=sys.stderr,
            )
        return code
    verb = "reset" if options.all else "down"
    code = subprocess.run([sys.executable, "-m", "cluster", verb], check=False).returncode
    if options.all and code == 0:
        remove_images()
        shutil.rmtree(place.cache(), ignore_errors=True)
    return code


def remove_images() -> None:
    """Remove the images that were built here; the command says why when it cannot."""
    if shutil.which("docker") or shutil.which("buildah"):
        words = [sys.executable, "-m", "tools.image_build", "--remove-all"]
        subprocess.run(words, check=False)


if __name__ == "__main__":
    raise SystemExit(main())
