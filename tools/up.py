"""`make up`: from a bare machine to a model's answer through the ingress.

Flow: images, model and cluster are made side by side -> images pushed -> helm install -> question.
On a cluster that KUBECONFIG names nothing of a cluster is built; images come from IMAGE_REGISTRY.

Standard library only until the Python environment stands.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster import preflight
from tools import place
from tools.steps import Board, Step, StepFailedError, run_all

PYTHON = str(place.ROOT / ".venv" / "bin" / "python")
BUILD = "tools.image_build"
IMAGES = {"full": "triton-hf", "light": "triton-hf-light"}


def build_command(target: str, *, push: str = "", plain_http: bool = False) -> list[str]:
    """Return the command that builds (and pushes) one target of the server's image."""
    plain = ["--plain-http"] if plain_http else []
    tag = f"{IMAGES[target]}:{place.VERSION}"
    words = [sys.executable, "-m", BUILD, "--target", target, "--tag", tag]
    return [*words, "--push", f"{push}/{tag}", *plain] if push else words


def environment_step() -> Step:
    """Return the step that makes the Python environment."""
    return Step(name="environment", command=["make", "--no-print-directory", "venv"])


def embedded_steps() -> list[Step]:
    """Return the steps on a machine without a cluster."""
    return [
        # Both the cluster and the images are made with what Debian's packages bring.
        Step(name="packages", command=[sys.executable, "-m", "cluster", "packages"]),
        Step(name="cluster", command=[sys.executable, "-m", "cluster", "up"], after=("packages",)),
        environment_step(),
        Step(
            name="model",
            command=[
                PYTHON,
                "-m",
                "tools.hub_mirror",
                "--fill",
                "--root",
                str(place.cache() / "hub"),
            ],
            after=("environment",),
        ),
        Step(name="hub", command=[PYTHON, "-m", "cluster", "hub"], after=("model", "cluster")),
        Step(name="image-light", command=build_command("light"), after=("packages",)),
        Step(name="image", command=build_command("full"), after=("image-light",)),
    ]


def check_foreign() -> None:
    """Say what is missing for a cluster that is not ours, before anything is done.

    Raises:
        StepFailedError: with one sentence for each missing part.
    """
    missing = [
        f"{tool} is not on PATH: install it"
        for tool in ("kubectl", "helm")
        if not shutil.which(tool, path=place.tool_path())
    ]
    named = place.foreign_kubeconfig() or ""
    if not any(Path(file).is_file() for file in named.split(os.pathsep)):
        missing.append(f"KUBECONFIG names {named}, which does not exist")
    if not missing:
        missing = cluster_faults(place.foreign(named))
    if not os.environ.get("IMAGE_REGISTRY"):
        missing.append("set IMAGE_REGISTRY to a registry that the cluster can pull from")
    if os.environ.get("PUSH") and not _can_build():
        missing.append(
            "PUSH=1 builds the images, and neither Docker's engine nor buildah is here: start "
            "Docker, or push images from a machine that can build and leave PUSH out"
        )
    values = os.environ.get("VALUES")
    if values and not Path(values).is_file():
        missing.append(f"VALUES names {values}, which does not exist")
    missing += preflight.python_faults()
    if missing:
        raise StepFailedError("\nmake up: ".join(missing))


def cluster_faults(here: place.Place) -> list[str]:
    """Return what a cluster lacks for the release, one sentence each.

    With VALUES set, storage and ingress are what that file says, and are not looked at.
    """
    try:
        _kubectl(here, "get", "--raw", "/readyz")
    except StepFailedError as error:
        return [f"the API of the cluster does not answer ({error}): check KUBECONFIG and network"]
    if os.environ.get("VALUES"):
        return []
    found = []
    classes = json.loads(_kubectl(here, "get", "storageclass", "-o", "json"))["items"]
    if not any(_is_default(each, "storageclass.kubernetes.io") for each in classes):
        found.append(
            f"the cluster has no default StorageClass (it has {_names(classes)}): mark one as "
            "default, or set modelStore.storageClass in a file and VALUES to its name"
        )
    classes = json.loads(_kubectl(here, "get", "ingressclass", "-o", "json"))["items"]
    if not any(_is_default(each, "ingressclass.kubernetes.io") for each in classes):
        found.append(
            f"the cluster has no default IngressClass (it has {_names(classes)}): install an "
            "ingress controller, or set ingress.className in a file and VALUES to its name"
        )
    return found


def _kubectl(here: place.Place, *words: str) -> str:
    done = subprocess.run(
        ["kubectl", "--request-timeout=5s", *words],
        env=here.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise StepFailedError(said[-1] if said else f"kubectl ended with {done.returncode}")
    return done.stdout


def _is_default(each: dict[str, Any], group: str) -> bool:
    annotations = each["metadata"].get("annotations", {})
    return bool(annotations.get(f"{group}/is-default-class") == "true")


def _names(classes: list[dict[str, Any]]) -> str:
    return ", ".join(each["metadata"]["name"] for each in classes) or "none"


def _can_build() -> bool:
    """Return whether Docker's engine answers, or buildah is here for root."""
    if shutil.which("docker"):
        done = subprocess.run(["docker", "info"], capture_output=True, check=False)
        if done.returncode == 0:
            return True
    return shutil.which("buildah") is not None and os.geteuid() == 0


def check_machine() -> None:
    """Say what is missing here for the embedded cluster, before anything is done.

    Raises:
        StepFailedError: with one sentence for each missing part.
    """
    if found := preflight.faults(make_up=True):
        raise StepFailedError("\nmake up: ".join(found))


def run(board: Board, *, logs: Path) -> None:
    """Run every step, of which each goes on where an earlier run stopped.

    Raises:
        StepFailedError: when a step fails.
    """
    if place.foreign_kubeconfig() is not None:
        run_all([environment_step()], board, logs=logs)
    else:
        run_all(embedded_steps(), board, logs=logs)
    here = place.current()
    if here.embedded or os.environ.get("PUSH"):
        pushes = [
            Step(
                name=f"push-{target}",
                command=build_command(target, push=here.push, plain_http=here.embedded),
            )
            for target in IMAGES
        ]
        run_all(pushes, board, logs=logs)
    run_all([Step(name="release", command=[PYTHON, "-m", "tools.install"])], board, logs=logs)


def main() -> int:
    """Run everything; return 0, 1 after one sentence, or 130 when it was stopped."""
    os.chdir(place.ROOT)
    os.environ["PYTHONPATH"] = place.python_path()
    for number in (signal.SIGTERM, signal.SIGHUP):  # the steps end with us, as on Ctrl-C
        signal.signal(number, signal.default_int_handler)
    board = Board()
    logs = place.cache() / "logs"
    try:
        if place.foreign_kubeconfig() is None:
            check_machine()
        else:
            check_foreign()
        try:
            run(board, logs=logs)
        finally:
            board.record(logs / "up.json")
    except (StepFailedError, SystemExit) as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make up: stopped; run it again to go on from here", file=sys.stderr)
        return 130
    print(board.table(), file=sys.stderr)
    print(f"  (the same as JSON: {logs / 'up.json'})", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
