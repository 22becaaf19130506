"""Values of a release that fits a small machine: the light image, simulated models."""

from __future__ import annotations

from typing import Any

from cluster import plan
from tools import place, pushed_images

SIMULATED = {"engine": "simulated", "parameters": {"ttft_ms": 20, "inter_token_ms": 2, "slots": 4}}

# Peers of a network policy in the embedded cluster: its gateway, and its nodes, whose ports lead to
# pods under the node's address.
TRAEFIK = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "traefik"}}}
NODES = {"ipBlock": {"cidr": plan.FABRIC_RANGE}}


def values(
    here: place.Place, host: str, *, models: dict[str, Any] | None = None, light: bool = True
) -> dict[str, Any]:
    """Return the values of a small release on the cluster in use."""
    memory = "512Mi" if light else "3Gi"
    chosen: dict[str, Any] = {
        "image": pushed_images.values(here, "triton-hf-light" if light else "triton-hf")
        | {"tritonVersion": "2.51.0"},
        "gpu": {"count": 0},
        "models": {"llama3-8b": None, **(models or {"simulated": SIMULATED})},
        "modelStore": {"size": "1Gi"},
        "modelSync": {"timeoutSeconds": 180, "resources": resources("1Gi")},
        "resources": resources(memory),
        "sharedMemory": "64Mi",
        "minReadySeconds": 0,
        "probes": {"startup": {"budgetSeconds": 180, "periodSeconds": 1}},
        "shutdown": {"preStopSeconds": 5, "drainSeconds": 20},
        "ingress": {"enabled": True, "host": host},
        # Where the controller of another cluster is, is not known here.
        "networkPolicy": {"gateway": [TRAEFIK if here.embedded else {"namespaceSelector": {}}]},
    }
    if here.embedded:
        chosen["huggingface"] = {"endpoint": place.EMBEDDED_HUB}
        chosen["modelStore"] |= {"storageClass": "shared", "accessModes": ["ReadWriteMany"]}
        chosen["ingress"]["className"] = "traefik"
    return chosen


def several(chosen: dict[str, Any], release: str, count: int) -> dict[str, Any]:
    """Return the values with several servers; where one node can mount the store, all run there."""
    store = chosen["modelStore"]
    if "ReadWriteMany" in store.get("accessModes", ()):
        return chosen | {"replicas": count}
    labels = {"app.kubernetes.io/instance": release, "app.kubernetes.io/component": "server"}
    near = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": [near]}
    return chosen | {
        "replicas": count,
        "modelStore": store | {"allPodsOnOneNode": True},
        "affinity": {"podAffinity": rule},
    }


def resources(memory: str) -> dict[str, Any]:
    """Return resources that fit a crowd of releases on a small machine."""
    return {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": memory}}
