"""`make load`: test the release of `make up` from inside the cluster, and bring the report here.

Flow: image in the registry -> helm upgrade --install charts/locust -> wait for the master's Job ->
report from the volume to results/. `fetch` does the last step alone, for any run on a volume. On a
cluster that KUBECONFIG names the image is built and pushed with PUSH=1, else taken from there.

Exit codes: 0 pass, 1 objectives missed, 2 bad input, 3 invalid run, 4 the test could not be run.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import helm, install, place, pushed_images, up
from tools.helm import CommandFailedError, Release
from tools.steps import Board, Step, StepFailedError, run_all
from tools.wait import until

CHART = place.ROOT / "charts" / "locust"
VALUES = place.ROOT / "k8s-tests" / "load" / "values.yaml"
RESULTS = place.ROOT / "results"
RELEASE = place.LOAD_RELEASE
IMAGE = "triton-load"
VERDICTS = {0: "pass", 1: "fail", 2: "bad input", 3: "invalid"}
NOT_RUN = 4
INVALID = 3


class NotRunError(Exception):
    """The test could not be run or its report not be fetched; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        folder: name of its folder on the volume, which is that of the master's pod.
        exit_code: of the master; 3 when it died and left none.
        reason: why there is no exit code, or the empty string.
    """

    folder: str
    exit_code: int
    reason: str = ""


def selector(release: Release, component: str) -> str:
    """Return the labels of the pods and Jobs of one component of the newest run."""
    return f"app.kubernetes.io/name=locust,{release.selector(component)}"


def newest_job(release: Release, component: str) -> dict[str, Any] | None:
    """Return the Job of one component in the release's newest run."""
    here = release.place
    jobs = helm.get(here, release.namespace, "jobs", "-l", selector(release, component))["items"]
    return max(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"]), default=None)


def pods(release: Release, component: str) -> list[dict[str, Any]]:
    """Return the pods of one component in the release's newest run."""
    job = newest_job(release, component)
    if job is None:
        return []
    words = ("-l", f"batch.kubernetes.io/job-name={job['metadata']['name']}")
    return list(helm.get(release.place, release.namespace, "pods", *words)["items"])


def finished(job: dict[str, Any]) -> str:
    """Return `Complete` or `Failed`, or the empty string while a Job runs."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            return str(condition["type"])
    return ""


def describe(release: Release) -> str:
    """Return one line on the pods of a run."""
    words = []
    for component in ("master", "worker"):
        found = pods(release, component)
        running = sum(pod["status"]["phase"] == "Running" for pod in found)
        waits = {install.pod_state(p) for p in found if p["status"]["phase"] == "Pending"}
        words.append(f"{component}: {running} of {len(found)} running {' '.join(waits)}".strip())
    return ", ".join(words)


def wait(release: Release, board: Board, *, seconds: float) -> Ended:
    """Wait for the end of the master's Job, showing its log; return how it ended.

    Raises:
        NotRunError: when the time is over or the release is gone.
    """
    deadline = time.monotonic() + seconds
    shown, folder = "", ""
    log: subprocess.Popen[str] | None = None
    try:
        while True:
            job, masters = newest_job(release, "master"), pods(release, "master")
            if job is None:
                raise NotRunError(f"release {release.name} has no master Job; was it removed?")
            folder = masters[0]["metadata"]["name"] if masters else folder
            if end := finished(job):
                return how_it_ended(masters, folder, end)
            if log is None and masters and masters[0]["status"]["phase"] == "Running":
                log = follow(release, folder, board)
            if log is None and (state := describe(release)) != shown:
                board.say("load", state)
                shown = state
            if time.monotonic() > deadline:
                raise NotRunError(f"no end after {seconds:.0f} s: {describe(release)}")
            time.sleep(1)
    finally:
        if log is not None:
            with suppress(subprocess.TimeoutExpired):  # the last lines are still under way
                log.wait(timeout=5)
            log.terminate()


def how_it_ended(masters: list[dict[str, Any]], folder: str, condition: str) -> Ended:
    """Return the exit code of a finished master."""
    for pod in masters:
        for container in pod["status"].get("containerStatuses", []):
            if over := container["state"].get("terminated"):
                code = int(over["exitCode"])
                if code in VERDICTS:
                    return Ended(folder=folder, exit_code=code)
                reason = f"the master died with exit code {code} ({over.get('reason', '')})"
                return Ended(folder=folder, exit_code=INVALID, reason=reason)
    if condition == "Complete":
        return Ended(folder=folder, exit_code=0)
    return Ended(folder=folder, exit_code=INVALID, reason="the master's pod was removed")


def follow(release: Release, pod: str, board: Board) -> subprocess.Popen[str]:
    """Show a pod's log as it is written; return the process that reads it."""
    child = subprocess.Popen(
        ["kubectl", "-n", release.namespace, "logs", "--follow", pod],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=release.place.environment(),
    )

    def show() -> None:
        for line in child.stdout or ():
            if text := line.rstrip():
                board.say("master", text)

    threading.Thread(target=show, daemon=True).start()
    return child


# The report.


def idle_pod(
    release: Release,
    name: str,
    image: str,
    *,
    claim: str = "",
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return a pod that sleeps for a few minutes; it mounts the claim, if any, read-only."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container: dict[str, Any] = {
        "name": "reader",
        "image": image,
        "command": ["sleep", "300"],
        "securityContext": security,
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"memory": "64Mi"},
        },
    }
    volumes: list[dict[str, Any]] = []
    if claim:
        container["volumeMounts"] = [{"name": "results", "mountPath": "/results", "readOnly": True}]
        volumes = [{"name": "results", "persistentVolumeClaim": {"claimName": claim}}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": release.namespace, "labels": labels or {}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "activeDeadlineSeconds": 300,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 10001,
                "runAsGroup": 10001,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": volumes,
        },
    }


def check_running(release: Release, name: str) -> None:
    """Raise with what a pod waits for, unless it runs."""
    pod = helm.get(release.place, release.namespace, "pod", name)
    if pod["status"]["phase"] != "Running":
        raise AssertionError(f"pod {name}: {install.pod_state(pod)}")


@contextmanager
def bystander(
    release: Release, image: str, *, claim: str = "", labels: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a pod beside a release, which can read its claim; give the pod's name.

    Raises:
        NotRunError: when it does not start within a minute.
    """
    here, name = release.place, f"{release.name}-reader-{uuid.uuid4().hex[:5]}"
    manifest = json.dumps(idle_pod(release, name, image, claim=claim, labels=labels))
    helm.run(here, "kubectl", "apply", "-f", "-", stdin=manifest)
    try:
        until(lambda: check_running(release, name), seconds=60, every=0.5)
        yield name
    except TimeoutError as error:
        what = f"the volume {claim} cannot be read" if claim else f"{name} does not start"
        raise NotRunError(f"{what}: {error}") from error
    finally:
        gone = ("delete", "pod", name, "--wait=false", "--ignore-not-found")
        helm.run(here, "kubectl", "-n", release.namespace, *gone)


def claim_of(release: Release) -> str:
    """Return the name of the claim that holds the reports of a release, even one that is gone.

    Raises:
        NotRunError: when there is none.
    """
    if job := newest_job(release, "master"):
        for volume in job["spec"]["template"]["spec"]["volumes"]:
            if volume["name"] == "results":
                return str(volume["persistentVolumeClaim"]["claimName"])
    found = helm.get(release.place, release.namespace, "pvc", "-l", selector(release, "results"))
    if not found["items"]:
        raise NotRunError(
            f"no volume with reports of release {release.name} in namespace {release.namespace}"
        )
    return str(found["items"][0]["metadata"]["name"])


def image_of(release: Release) -> str:
    """Return the image of the newest run, or the one that this checkout builds."""
    if job := newest_job(release, "master"):
        return str(job["spec"]["template"]["spec"]["containers"][0]["image"])
    return pushed_images.reference(release.place, IMAGE)


def fetch(release: Release, *, folder: str = "", into: Path = RESULTS) -> Path:
    """Copy the report of one run, the newest by default, from the volume; return its folder.

    Raises:
        NotRunError: when there is no volume or no such report.
    """
    with bystander(release, image_of(release), claim=claim_of(release)) as pod:
        words = ["kubectl", "-n", release.namespace, "exec", pod, "--"]
        names = helm.run(release.place, *words, "ls", "-t", "/results").split()
        names = [name for name in names if name != "lost+found"]
        if folder and folder not in names:
            raise NotRunError(f"the volume holds no run {folder}; it has {', '.join(names)}")
        if not names:
            raise NotRunError("the volume holds no report yet")
        chosen = folder or names[0]
        done = subprocess.run(
            [*words, "tar", "-C", "/results", "-cf", "-", chosen],
            capture_output=True,
            env=release.place.environment(),
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise NotRunError(f"copying {chosen} failed: {done.stderr.decode().strip()}")
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(into, filter="data")
    return into / chosen


# The command.


def ensure_image(here: place.Place, board: Board) -> None:
    """Build the image and push it; to the registry of another cluster only with PUSH."""
    if here.embedded or os.environ.get("PUSH"):
        step = Step(name="image-load", command=build_command(here))
        run_all([step], board, logs=place.cache() / "logs")


def build_command(here: place.Place) -> list[str]:
    """Return the command that builds the image and pushes it."""
    tag = f"{IMAGE}:{place.VERSION}"
    words = [sys.executable, "-m", up.BUILD, "--target", "load", "--tag", tag]
    plain = ["--plain-http"] if here.embedded else []
    return [*words, "--push", f"{here.push}/{tag}", *plain]


def run(options: argparse.Namespace, board: Board) -> int:
    """Test the release of `make up`; return the exit code that follows the verdict."""
    here = place.current()
    release = Release(place=here, namespace=options.namespace, name=options.release, chart=CHART)
    server = helm.get(here, options.namespace, "services", "-l", "app.kubernetes.io/name=triton")
    if not server["items"] and not options.values:
        raise NotRunError(f"no server in namespace {options.namespace}: run make up first")
    ensure_image(here, board)
    values: dict[str, Any] = {"image": pushed_images.values(here, IMAGE)}
    if here.embedded:
        # The nodes share one small machine; a core for each worker would leave none to the server.
        values["workers"] = {"resources": {"requests": {"cpu": "100m"}}}
        values["master"] = {"resources": {"requests": {"cpu": "50m"}}}
    board.say("load", f"helm upgrade --install {release.name} charts/locust")
    release.apply(values, wait=False, files=tuple(options.values or [VALUES]))
    ended = wait(release, board, seconds=options.timeout)
    board.say("load", f"exit code {ended.exit_code}: {VERDICTS[ended.exit_code]}")
    folder = None
    try:
        folder = fetch(release, folder=ended.folder, into=options.into)
    except NotRunError as error:
        print(f"make load: {error}", file=sys.stderr)
    tell(ended, folder, as_json=options.json)
    return ended.exit_code


def tell(ended: Ended, folder: Path | None, *, as_json: bool) -> None:
    """Print the summary, the verdict and the place of the report."""
    verdict = VERDICTS[ended.exit_code]
    if as_json:
        place_of = str(folder) if folder else None
        told = {"verdict": verdict, "exit_code": ended.exit_code, "reason": ended.reason}
        print(json.dumps({**told, "report": place_of}))
        return
    if folder and (folder / "summary.txt").is_file():
        print((folder / "summary.txt").read_text().rstrip())
    if ended.reason:
        print(f"{verdict}: {ended.reason}")
    if folder:
        print(f"report: {folder / 'report.html'}")


def main() -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="make load", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("do", nargs="?", choices=("run", "fetch"), default="run")
    parser.add_argument("--namespace", default=install.NAMESPACE)
    parser.add_argument("--release", default=RELEASE, help="release of charts/locust")
    parser.add_argument("--values", type=Path, action="append", help="file instead of our own")
    parser.add_argument("--timeout", type=float, default=3600, help="longest wait, in seconds")
    parser.add_argument("--run", default="", help="folder to fetch, the newest by default")
    parser.add_argument("--json", action="store_true", help="print verdict and place as JSON")
    parser.add_argument("--into", type=Path, default=RESULTS, help="folder of the report here")
    options = parser.parse_args()
    board = Board()
    try:
        if options.do == "run":
            return run(options, board)
        here = place.current()
        release = Release(place=here, namespace=options.namespace, name=options.release)
        print(fetch(release, folder=options.run, into=options.into))
        return 0
    except (NotRunError, CommandFailedError, StepFailedError) as error:
        print(f"make load: {error}", file=sys.stderr)
        return NOT_RUN
    except KeyboardInterrupt:
        print("make load: stopped; the test goes on in the cluster", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
