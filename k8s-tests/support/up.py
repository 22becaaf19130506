"""`make up`: from a bare machine to a model's answer through the ingress.

Flow: images, model and cluster are made side by side -> images pushed -> helm install -> question.
On a cluster that KUBECONFIG names nothing of a cluster is built; images come from IMAGE_REGISTRY.

Standard library only until the Python environment stands.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

from cluster import preflight
from support import place
from support.steps import Board, Step, StepFailedError, run_all

PYTHON = str(place.ROOT / ".venv" / "bin" / "python")
BUILD = str(place.ROOT / "image" / "build.py")
IMAGES = {"full": "triton-hf", "light": "triton-hf-light"}


def build_command(target: str, *, push: str = "", plain_http: bool = False) -> list[str]:
    """Return the command that builds (and pushes) one target of the server's image."""
    plain = ["--plain-http"] if plain_http else []
    tag = f"{IMAGES[target]}:{place.VERSION}"
    words = [sys.executable, BUILD, "--target", target, "--tag", tag]
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
            command=[PYTHON, "-m", "support.hub", "--fill", "--root", str(place.cache() / "hub")],
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
    file = place.foreign_kubeconfig()
    if file is not None and not file.is_file():
        missing.append(f"KUBECONFIG names {file}, which does not exist")
    if not os.environ.get("IMAGE_REGISTRY"):
        missing.append("set IMAGE_REGISTRY to a registry that the cluster can pull from")
    if missing:
        raise StepFailedError("; ".join(missing))


def check_machine() -> None:
    """Say what is missing here for the embedded cluster, before anything is done.

    Raises:
        StepFailedError: with one sentence for each missing part.
    """
    if found := preflight.faults():
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
    run_all([Step(name="release", command=[PYTHON, "-m", "support.install"])], board, logs=logs)


def main() -> int:
    """Run everything; return 0, 1 after one sentence, or 130 when it was stopped."""
    os.chdir(place.ROOT)
    os.environ["PYTHONPATH"] = str(place.ROOT / "k8s-tests")
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
