"""Metrics that the embedded cluster cannot have, served by a pod beside a release.

There is no GPU, so nothing makes `nv_gpu_*` and DCGM's metrics; and kubelets tell the size of a
volume only where a driver measures it. The numbers are made up; names and labels are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dashboards import known_metrics, story
from lib import small
from tools import helm, pushed_images
from tools.helm import Release

NAME = "stand-in"
PORT = 8002
VOLUME = {
    "kubelet_volume_stats_available_bytes": 2e9,
    "kubelet_volume_stats_capacity_bytes": 8e9,
}
# A counter stands as what it gains in a second.
SERVE = """
import http.server, os, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        lines = []
        for line in os.environ["PAGE"].splitlines():
            series, kind, value = line.rsplit(" ", 2)
            factor = time.time() if kind == "counter" else 1.0
            lines.append(f"{series} {float(value) * factor}")
        body = (chr(10).join(lines) + chr(10)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


def lines(namespace: str, release: str, pods: list[str], claim: str) -> Iterator[str]:
    """Yield every series with its labels, its kind and its value (of a counter: in a second)."""
    for number, pod in enumerate(pods):
        labels = {"namespace": namespace, "release": release, "pod": pod}
        labels |= {"gpu_uuid": f"GPU-{number}", "gpu": str(number)}
        for name in sorted(known_metrics.TRITON_GPU | known_metrics.DCGM):
            kind, known = (
                ("counter", story.COUNTERS) if name in story.COUNTERS else ("gauge", story.GAUGES)
            )
            yield f"{name}{_inside(labels)} {kind} {known[name]:g}"
    for name, value in VOLUME.items():
        labels = {"namespace": namespace, "persistentvolumeclaim": claim}
        yield f"{name}{_inside(labels)} gauge {value:g}"


def _inside(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"


def objects(release: Release, page: str) -> list[dict[str, Any]]:
    """Return the pod that serves a page, and the monitor that scrapes it."""
    labels = {"app": NAME}
    container = {
        "name": "page",
        "image": pushed_images.reference(release.place, "triton-hf-light"),
        "command": ["python3", "-c", SERVE],
        "env": [{"name": "PAGE", "value": page}, {"name": "PORT", "value": str(PORT)}],
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": small.resources("128Mi"),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": user,
            "containers": [container],
        },
    }
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": NAME},
        "spec": {
            "selector": {"matchLabels": labels},
            # Namespace, pod and release are those that a series is about.
            "podMetricsEndpoints": [{"port": "metrics", "interval": "2s", "honorLabels": True}],
        },
    }
    return [pod, monitor]


def serve(release: Release) -> None:
    """Put the page of a release's pods and claim beside it; it goes with the namespace.

    Raises:
        CommandFailedError: the pod does not become ready.
    """
    here, namespace = release.place, release.namespace
    pods = [pod["metadata"]["name"] for pod in release.pods()]
    (claim,) = helm.get(here, namespace, "pvc")["items"]
    page = "\n".join(lines(namespace, release.name, pods, claim["metadata"]["name"]))
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects(release, page)})
    kubectl = ("kubectl", "-n", namespace)
    helm.run(here, *kubectl, "apply", "-f", "-", stdin=text)
    helm.run(here, *kubectl, "wait", "--for=condition=Ready", f"pod/{NAME}", "--timeout=120s")
