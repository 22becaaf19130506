"""A pod that asks the servers something from inside the cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tools import helm, pushed_images
from tools.place import Place
from tools.wait import until

# By this label the chart's network policy knows a load test, which may call HTTP and gRPC.
LOAD_TEST = {"app.kubernetes.io/name": "locust"}


def manifest(
    here: Place, name: str, script: str, *words: str, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a pod that runs Python, as a namespace that enforces `restricted` admits it."""
    container = {
        "name": "main",
        "image": pushed_images.reference(here, "triton-hf-light"),
        "command": ["python3", "-c", script, *words],
        "resources": {"limits": {"memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [container],
            "terminationGracePeriodSeconds": 0,
        },
    }


def start(here: Place, namespace: str, pod: Mapping[str, Any], *, says: str) -> None:
    """Make a pod and wait until its log holds a text."""
    kubectl = ("kubectl", "-n", namespace)
    name = str(pod["metadata"]["name"])
    helm.run(here, *kubectl, "apply", "-f", "-", stdin=json.dumps(pod))
    until(lambda: says in helm.run(here, *kubectl, "logs", name), seconds=90)


def python(here: Place, namespace: str, pod: str, script: str, *words: str) -> str:
    """Run Python in a pod; return its stdout."""
    inside = ("exec", pod, "--", "python3", "-c", script, *words)
    return helm.run(here, "kubectl", "-n", namespace, *inside, timeout=60)
