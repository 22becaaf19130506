"""The plan of the embedded cluster: its nodes, addresses and folders.

All addresses are in 198.18.0.0/15, the range that is kept for tests of networks (RFC 2544), so
none of them is anybody's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tools.place import cache

# Of network namespaces, links and cgroups that are ours; another one lets a test of `up` and
# `down` run a second cluster in a network of its own.
PREFIX = os.environ.get("TRITON_CLUSTER_PREFIX", "tk")
FABRIC = f"{PREFIX}-fabric"
FABRIC_RANGE = "198.18.254.0/23"
HOST_ADDRESS = "198.18.254.1"
SERVICES_ADDRESS = "198.18.254.2"  # registry and Hub mirror
POD_RANGE = "198.18.0.0/17"
SERVICE_RANGE = "198.19.0.0/16"
DNS_ADDRESS = "198.19.0.10"
WHOLE_RANGE = "198.18.0.0/15"
API_PORT = 6443
REGISTRY = "registry.local:5000"
REGISTRY_PORT = 5000
HUB_HOST = "hub.local"
HUB_PORT = 8080
TOKEN = "tritom.0123456789abcdef"  # noqa: S105 - the bootstrap token of a closed network
GPU_RESOURCE = "nvidia.com/gpu"
GPUS_PER_NODE = 4
SHARED = "/var/local-path-shared"


@dataclass(frozen=True, kw_only=True)
class NodePlan:
    """What one node is.

    Attributes:
        name: its host name and its name in Kubernetes.
        number: its place in the address plan, from 0.
        gpu: whether it carries the label, the taint and the capacity of a GPU node.
    """

    name: str
    number: int
    gpu: bool

    @property
    def namespace(self) -> str:
        """Name of its network namespace."""
        return f"{PREFIX}-{self.name}"

    @property
    def address(self) -> str:
        """Its address on the fabric."""
        return f"198.18.254.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The range of its pods' addresses."""
        return f"198.18.{self.number}.0/24"

    @property
    def folder(self) -> Path:
        """Where the node's own files lie on this machine."""
        return state() / "nodes" / self.name


NODES = (
    NodePlan(name="system", number=0, gpu=False),
    NodePlan(name="gpu-1", number=1, gpu=True),
    NodePlan(name="gpu-2", number=2, gpu=True),
)
SYSTEM = NODES[0]


def state() -> Path:
    """Return the folder of the cluster's state."""
    return cache() / "cluster"


def kubeconfig() -> Path:
    """Return the file that kubectl and helm use."""
    return state() / "kubeconfig"


def node(name: str) -> NodePlan:
    """Return the plan of one node by name."""
    return next(plan for plan in NODES if plan.name == name)
