"""Install the release of `make up` and ask its model one question through the ingress.

Every step is idempotent: a second run changes nothing and asks again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tools import helm, place, pushed_images
from tools.ask import Door, question
from tools.helm import Release
from tools.steps import Board
from tools.wait import until

NAMESPACE = place.NAMESPACE
RELEASE = place.RELEASE
MODEL = "smollm2-135m"
SYSTEM = "You are a useful assistant, please answer in one short sentence."
USER = "Why is the sky blue?"
VALUES = Path(__file__).parent / "values"


def token() -> str:
    """Return HF_TOKEN from the environment, else from .env, else the empty string."""
    if named := os.environ.get("HF_TOKEN"):
        return named
    file = place.ROOT / ".env"
    if file.is_file():
        for line in file.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "HF_TOKEN":
                return value.strip().strip("\"'")
    return ""


def values_of_user() -> tuple[Path, ...]:
    """Return the file that VALUES names, if it names one.

    Raises:
        helm.CommandFailedError: when there is no such file.
    """
    if not (named := os.environ.get("VALUES")):
        return ()
    if not Path(named).is_file():
        raise helm.CommandFailedError(f"VALUES names {named}, which does not exist")
    return (Path(named),)


def triton_version() -> str | None:
    """Return the version of the Triton in the image, None when nothing here knows it.

    TRITON_VERSION says it; else the image that was built here does. The chart leaves out flags
    that an older one does not know.
    """
    if named := os.environ.get("TRITON_VERSION"):
        return named
    build = [sys.executable, "-m", "tools.image_build"]
    done = subprocess.run(
        [*build, "--tag", f"triton-hf:{place.VERSION}", "--triton-version"],
        env={**os.environ, "PYTHONPATH": place.python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def ensure_namespace(here: place.Place, name: str) -> None:
    """Create or update a namespace that enforces Pod Security `restricted`."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
        },
    }
    helm.run(here, "kubectl", "apply", "-f", "-", stdin=json.dumps(manifest))


def ensure_token(here: place.Place, namespace: str, name: str, value: str) -> None:
    """Create or update the Secret that holds the Hugging Face token."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"token": value},
    }
    helm.run(here, "kubectl", "apply", "-f", "-", stdin=json.dumps(manifest))


def door(here: place.Place, release: Release) -> Door:
    """Return where requests for `release` enter the cluster, once its Ingress is routed.

    A controller needs a moment to see a new Ingress; until then it answers 404.

    Raises:
        helm.CommandFailedError: when the release has no Ingress, or it has no address yet.
    """
    ingresses = helm.get(
        here, release.namespace, "ingress", "-l", f"app.kubernetes.io/instance={release.name}"
    )["items"]
    if not ingresses:
        raise helm.CommandFailedError(f"release {release.name} has no Ingress; set ingress.enabled")
    entrance = entrance_of(here, ingresses[0])
    ready = next(
        path["path"]
        for path in ingresses[0]["spec"]["rules"][0]["http"]["paths"]
        if path["path"].endswith("/ready")
    )
    until(lambda: entrance.request("GET", ready, timeout=5)[0] == 200, seconds=60, every=0.3)
    return entrance


def entrance_of(here: place.Place, ingress: dict[str, Any]) -> Door:
    """Return where requests for an Ingress enter the cluster, routed already or not.

    Raises:
        helm.CommandFailedError: when it has no address yet.
    """
    host = ingress["spec"]["rules"][0].get("host", "")
    points = ingress.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    if points:
        address = points[0].get("ip") or points[0]["hostname"]
    elif here.embedded:
        address = gateway_address(here)
    else:
        raise helm.CommandFailedError(
            "the Ingress has no address yet; is an ingress controller running?"
        )
    return Door(address=address, port=80, host=host)


def gateway_address(here: place.Place) -> str:
    """Return the address of the node that runs the embedded cluster's gateway."""
    node: dict[str, Any] = json.loads(
        helm.run(here, "kubectl", "get", "node", "system", "-o", "json")
    )
    addresses = node["status"]["addresses"]
    return str(next(a["address"] for a in addresses if a["type"] == "InternalIP"))


def grpc_address(release: Release) -> str:
    """Return host:port of a release's gRPC on the embedded cluster, where it has a node port."""
    services = helm.get(
        release.place,
        release.namespace,
        "service",
        "-l",
        f"app.kubernetes.io/instance={release.name}",
    )["items"]
    ports = [port for service in services for port in service["spec"]["ports"]]
    (found,) = [port["nodePort"] for port in ports if port["name"] == "grpc"]
    return f"{gateway_address(release.place)}:{found}"


def wait_ready(release: Release, board: Board, *, seconds: float) -> None:
    """Wait until every pod of the release's newest Deployment is ready, showing what is going on.

    Raises:
        helm.CommandFailedError: when the time is over; the text holds the last state and logs.
    """
    deadline = time.monotonic() + seconds
    shown, heard = "", 0.0
    while True:
        state = describe(release)
        if state != shown or time.monotonic() - heard > 8:
            board.say("release", state)
            shown, heard = state, time.monotonic()
        if state.startswith("ready"):
            return
        if time.monotonic() > deadline:
            logs = release.logs("model-sync") + release.logs()
            raise helm.CommandFailedError(f"not ready after {seconds:.0f} s: {state}\n{logs}")
        time.sleep(1)


def describe(release: Release) -> str:
    """Return one line on the state of a release: `ready ...` when all is as it should be."""
    deployments = helm.get(
        release.place, release.namespace, "deployment", "-l", release.selector()
    )["items"]
    if not deployments:
        return "no Deployment yet"
    deployment = deployments[0]
    wanted = deployment["spec"]["replicas"]
    status = deployment.get("status", {})
    fresh = status.get("observedGeneration") == deployment["metadata"]["generation"]
    ready = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
    if fresh and ready >= wanted and status.get("replicas", 0) == wanted:
        return f"ready: {ready} of {wanted} servers"
    words = [f"{ready} of {wanted} servers ready"]
    for component in ("model-sync", "server"):
        for pod in release.pods(component):
            words.append(f"{component}: {pod_state(pod)}")
    return ", ".join(words)


def pod_state(pod: dict[str, Any]) -> str:
    """Return what a pod waits for, in a few words."""
    status = pod["status"]
    for container in [
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ]:
        if waiting := container["state"].get("waiting"):
            if waiting["reason"] not in ("PodInitializing",):
                return (
                    f"{container['name']} {waiting['reason']} {waiting.get('message', '')}".strip()
                )
        elif "running" in container["state"] and not container["ready"]:
            return f"{container['name']} running, not ready"
    return str(status["phase"])


def ask(here: Door) -> None:
    """Print one request as a curl command, and the model's answer.

    Raises:
        AssertionError: when the model does not answer with text.
    """
    body = question(USER, system=SYSTEM, max_tokens=40, temperature=0.0)
    path = f"/v2/models/{MODEL}/infer"
    print(f"$ curl -H 'Host: {here.host}' http://{here.address}{path} -d '{body.decode()}'")
    outputs = here.infer(MODEL, USER, system=SYSTEM, max_tokens=40, temperature=0.0)
    print(json.dumps(outputs, indent=2, ensure_ascii=False))
    if not outputs["text_output"].strip():
        raise AssertionError("the model answered with an empty text")


def apply(release: Release, board: Board) -> None:
    """Install the release with the values of its cluster, and over them those of VALUES.

    Raises:
        helm.CommandFailedError: when VALUES names no file, or helm or kubectl says no.
    """
    here = release.place
    last = values_of_user()
    ensure_namespace(here, release.namespace)
    secret = token() or ("hf_test_token_open_sesame" if here.embedded else "")
    values: dict[str, Any] = {"image": pushed_images.values(here, "triton-hf")}
    if not here.embedded and (version := triton_version()):
        values["image"]["tritonVersion"] = version
    if secret:
        ensure_token(here, release.namespace, place.TOKEN_SECRET, secret)
        values["huggingface"] = {"token": {"existingSecret": place.TOKEN_SECRET}}
    board.say("release", f"helm upgrade --install {RELEASE} charts/triton -n {release.namespace}")
    file = VALUES / ("embedded.yaml" if here.embedded else "foreign.yaml")
    release.apply(values, wait=False, files=(file,), last=last)


def main() -> int:
    """Install, wait, ask; return 0, or 1 after one sentence."""
    parser = argparse.ArgumentParser(prog="python -m tools.install", description=__doc__)
    parser.add_argument("--namespace", default=NAMESPACE)
    options = parser.parse_args()
    board = Board()
    here = place.current()
    release = Release(place=here, namespace=options.namespace, name=RELEASE)
    try:
        apply(release, board)
        wait_ready(release, board, seconds=600)
        ask(door(here, release))
    except (AssertionError, TimeoutError) as error:
        print(f"make up: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
