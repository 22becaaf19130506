"""The release that the faults hit, what Kubernetes says of it, and how its processes are hurt."""

from __future__ import annotations

import signal
from typing import Any

from cluster.node import Node
from cluster.plan import node as plan_of
from lib import small
from tools import helm
from tools.helm import Release
from tools.place import RELEASE, Place
from tools.wait import until

MODEL = "simulated"
PARAMETERS = {"ttft_ms": 100, "inter_token_ms": 20, "slots": 16, "max_queue": 64}
SIMULATED = {"engine": "simulated", "parameters": PARAMETERS}
PROBE_SECONDS = 5
# Nodes of the embedded cluster that carry servers: with two, a pod has a peer on another node.
WORKERS = ("gpu-1", "gpu-2")

_SIGNAL_STUB = """
import glob, os, sys
model, number = sys.argv[1], int(sys.argv[2])
hit = []
for file in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        words = open(file, "rb").read().decode().split(chr(0))
    except OSError:
        continue
    if "triton_python_backend_stub" in words[0] and f"/{model}/1/model.py" in " ".join(words):
        hit.append(int(file.split("/")[2]))
assert len(hit) == 1, f"{len(hit)} processes of {model}"
os.kill(hit[0], number)
"""
_ASK = """
import json, sys, urllib.request
body = json.dumps({"user_message": sys.argv[2], "max_tokens": 2}).encode()
url = f"http://127.0.0.1:8000/v2/models/{sys.argv[1]}/generate"
print(json.load(urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=10)))
"""

_METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8002/metrics", timeout=10).read().decode())
"""


def values(here: Place, namespace: str, *, light: bool = True, **more: Any) -> dict[str, Any]:
    """Return values of two servers with the probes that the chart has by default.

    They are on two nodes where Kubernetes can do it at once; see `on_two_nodes`.

    Args:
        here: the cluster.
        namespace: makes the host name of the Ingress unique.
        light: whether the image without torch does.
        more: top-level values that replace these.
    """
    chosen = small.values(here, f"{namespace}.test", models={MODEL: SIMULATED}, light=light)
    chosen = small.several(chosen, RELEASE, 2)
    if here.embedded:
        chosen["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
        chosen["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    return chosen | more


def extra_model(name: str, config: str, code: str) -> dict[str, Any]:
    """Return values that add a model which is not of the store, from a ConfigMap.

    File by file: a ConfigMap mounted as a folder brings `..data` along, which Triton takes for a
    model.
    """
    files = {"config.pbtxt": f"{name}/config.pbtxt", "model.py": f"{name}/1/model.py"}
    mounts = [
        {"name": name, "mountPath": f"/{name}/{path}", "subPath": key, "readOnly": True}
        for key, path in files.items()
    ]
    return {
        "server": {"extraArgs": [f"--model-repository=/{name}"]},
        "extraVolumes": [{"name": name, "configMap": {"name": name}}],
        "extraVolumeMounts": mounts,
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": name},
                "data": {"config.pbtxt": config, "model.py": code},
            }
        ],
    }


def settled(release: Release, replicas: int) -> list[dict[str, Any]]:
    """Return the pods once so many are ready, in the Service, and no other is left.

    Raises:
        AssertionError: it is not so yet.
    """
    found = helm.get(release.place, release.namespace, "pods", "-l", release.selector("server"))[
        "items"
    ]
    names = {pod["metadata"]["name"] for pod in found}
    assert len(names) == replicas, names
    assert all(ready(pod) for pod in found), {pod["metadata"]["name"]: ready(pod) for pod in found}
    assert in_rotation(release) == names
    return list(found)


def wait_settled(release: Release, replicas: int, *, seconds: float = 180) -> list[dict[str, Any]]:
    """Wait for `settled`; return the pods."""
    return until(lambda: settled(release, replicas), seconds=seconds)


def ready(pod: dict[str, Any]) -> bool:
    """Return whether Kubernetes calls a pod ready."""
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def in_rotation(release: Release) -> set[str]:
    """Return the pods to which the HTTP Service sends requests."""
    service = fullname(release)
    slices = helm.get(
        release.place,
        release.namespace,
        "endpointslice",
        *("-l", f"kubernetes.io/service-name={service}"),
    )["items"]
    return {
        point["targetRef"]["name"]
        for each in slices
        for point in each.get("endpoints") or []
        if point.get("conditions", {}).get("ready")
    }


def fullname(release: Release) -> str:
    """Return the name of the release's Deployment, which is that of its HTTP Service, too."""
    words = ("deployment", "-l", release.selector())
    (found,) = helm.get(release.place, release.namespace, *words)["items"]
    return str(found["metadata"]["name"])


def on_two_nodes() -> dict[str, Any]:
    """Return values with which the second server waits until it can be on another node.

    A claim that is bound when its first pod has a node keeps pods that come before its volume is
    made on that node, and a spread that only prefers others does not hold them back.
    """
    spread = {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1}
    return {"topologySpreadConstraints": [{**spread, "whenUnsatisfiable": "DoNotSchedule"}]}


def grpc_by_node_port() -> dict[str, Any]:
    """Return values that open gRPC on a port of every node, for this machine and the gateway.

    On a busy machine the proxies need some seconds to hear that a pod ends: preStop is longer.
    """
    return {
        "shutdown": {"preStopSeconds": 10, "drainSeconds": 20},
        "service": {"type": "NodePort"},
        "networkPolicy": {"gateway": [small.TRAEFIK, small.NODES]},
    }


def pod(release: Release, name: str) -> dict[str, Any]:
    """Return one pod."""
    return dict(helm.get(release.place, release.namespace, "pod", name))


def container(release: Release, name: str) -> dict[str, Any]:
    """Return the state of the server's container in a pod."""
    statuses = pod(release, name)["status"]["containerStatuses"]
    (found,) = [status for status in statuses if status["name"] == "triton"]
    return dict(found)


def last_words(release: Release, name: str) -> str:
    """Return what the server of a pod said before it ended last; empty when it has not."""
    state = container(release, name)
    ended = state["state"].get("terminated") or state["lastState"].get("terminated") or {}
    return str(ended.get("message", ""))


def sync_words(release: Release) -> str:
    """Return what the model-sync pod that failed said.

    Raises:
        AssertionError: none has failed, or more than one.
    """
    ended = [
        status["state"].get("terminated") or {}
        for each in release.pods("model-sync")
        for status in each["status"].get("containerStatuses", [])
    ]
    words = [str(each["message"]).strip() for each in ended if each.get("exitCode")]
    assert len(words) == 1, f"{len(words)} pods of model-sync failed"
    return words[0]


def restarts(release: Release, name: str) -> int:
    """Return how often the server of a pod was started again."""
    return int(container(release, name)["restartCount"])


def back(release: Release, name: str, *, restarts_before: int) -> None:
    """Check that the server of a pod was started again and gets requests.

    Raises:
        AssertionError: not yet.
    """
    assert restarts(release, name) > restarts_before, "not started again yet"
    assert name in in_rotation(release), "not in rotation yet"


def inside(release: Release, name: str, script: str, *words: str) -> str:
    """Run Python in the server's container of a pod; return its stdout."""
    return helm.run(
        release.place,
        *("kubectl", "-n", release.namespace, "exec", name, "-c", "triton", "--"),
        *("python3", "-c", script, *words),
        timeout=60,
    )


def failures(release: Release, name: str) -> float:
    """Return how many requests a pod's server failed since it started, as Triton counts."""
    page = inside(release, name, _METRICS)
    lines = [line for line in page.splitlines() if line.startswith("nv_inference_request_failure{")]
    assert lines, "no such metric"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def signal_stub(release: Release, name: str, model: str, number: signal.Signals) -> None:
    """Send a signal to the process of one model in a pod."""
    inside(release, name, _SIGNAL_STUB, model, str(int(number)))


def ask_inside(release: Release, name: str, model: str, text: str) -> str:
    """Ask a model on the pod itself, past every proxy; return the answer's JSON."""
    return inside(release, name, _ASK, model, text)


def kill_server(release: Release, name: str) -> None:
    """Send SIGKILL to the first process of the server's container, tritonserver.

    From the node: inside the container the kernel protects process 1. Embedded cluster only.
    """
    number = container(release, name)["containerID"].removeprefix("containerd://")
    node_of(release, name).ctr("tasks", "kill", "--signal", "SIGKILL", number)


def node_of(release: Release, name: str) -> Node:
    """Return the embedded cluster's node that runs a pod."""
    return Node(plan_of(pod(release, name)["spec"]["nodeName"]))
