"""What kubeadm is told: one control plane node, two GPU nodes, tuned for a small machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster import binaries, plan
from cluster.plan import NodePlan

SOCKET = "unix:///run/containerd/containerd.sock"
GPU_LABEL = "nvidia.com/gpu.present=true"
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


# One that still leads when the API server is back after longer than the nodes' grace may call all
# of them silent before they report, and their endpoints go. So it leads for less, as everywhere.
_LEASE = {
    "leader-elect-lease-duration": "20s",
    "leader-elect-renew-deadline": "15s",
    "leader-elect-retry-period": "3s",
}


def init_config(*, hpa_sync: str, node_grace: str) -> str:
    """Return the configuration of `kubeadm init`, a stream of JSON documents.

    Args:
        hpa_sync: how often the autoscaler looks, as a Go duration; Kubernetes' own is 15s.
        node_grace: how long a silent node stays Ready, longer than the renew deadline above;
            Kubernetes' own is 50s.
    """
    cluster = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "kubernetesVersion": binaries.KUBERNETES,
        "clusterName": "embedded",
        "networking": {"podSubnet": plan.POD_RANGE, "serviceSubnet": plan.SERVICE_RANGE},
        "etcd": {
            "local": {
                "dataDir": "/var/lib/etcd",
                "extraArgs": _arguments({"unsafe-no-fsync": "true"}),
            }
        },
        "apiServer": {"extraArgs": _arguments({"kubelet-preferred-address-types": "InternalIP"})},
        "controllerManager": {
            "extraArgs": _arguments(
                {
                    "allocate-node-cidrs": "false",
                    **_LEASE,
                    "horizontal-pod-autoscaler-sync-period": hpa_sync,
                    "node-monitor-grace-period": node_grace,
                }
            )
        },
        "scheduler": {"extraArgs": _arguments({"leader-elect": "false"})},
    }
    init = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "bootstrapTokens": [{"token": plan.TOKEN, "ttl": "0s"}],
        "localAPIEndpoint": {
            "advertiseAddress": plan.SYSTEM.address,
            "bindPort": plan.API_PORT,
        },
        "nodeRegistration": {**_registration(plan.SYSTEM), "taints": []},
    }
    return _documents(init, cluster, _kubelet(), _kube_proxy())


def join_config(node: NodePlan) -> str:
    """Return the configuration of `kubeadm join` for one node."""
    return _documents(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "JoinConfiguration",
            "discovery": {
                "bootstrapToken": {
                    "token": plan.TOKEN,
                    "apiServerEndpoint": f"{plan.SYSTEM.address}:{plan.API_PORT}",
                    # The network is closed, and both ends are this program.
                    "unsafeSkipCAVerification": True,
                }
            },
            "nodeRegistration": {
                **_registration(node),
                "taints": [GPU_TAINT] if node.gpu else [],
            },
        }
    )


def _registration(node: NodePlan) -> dict[str, Any]:
    flags = {
        "node-ip": node.address,
        "hostname-override": node.name,
        "cgroup-root": f"/{plan.PREFIX}/{node.name}",
        "housekeeping-interval": "30s",
    }
    if node.gpu:
        flags["node-labels"] = GPU_LABEL
    return {
        "name": node.name,
        "criSocket": SOCKET,
        "imagePullPolicy": "IfNotPresent",
        "ignorePreflightErrors": ["all"],
        "kubeletExtraArgs": _arguments(flags),
    }


def _kubelet() -> dict[str, Any]:
    never = {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"}
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "resolvConf": "/etc/resolv.conf",
        "clusterDNS": [plan.DNS_ADDRESS],
        "serializeImagePulls": False,
        # A machine whose disk is nearly full is no reason to throw away images or pods.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": never,
        "containerLogMaxSize": "5Mi",
        "containerLogMaxFiles": 2,
        "nodeStatusUpdateFrequency": "5s",
        # How soon a pod sees a changed Secret; 60 s become minutes in Prometheus' reloader.
        "syncFrequency": "10s",
        "logging": {"verbosity": 1},
    }


def _kube_proxy() -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": plan.POD_RANGE,
        # Limits of the kernel's tables are the machine's own matter.
        "conntrack": {"maxPerCore": 0},
    }


def _arguments(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _documents(*documents: dict[str, Any]) -> str:
    """Return YAML documents; JSON is YAML."""
    return "\n---\n".join(json.dumps(document, indent=1) for document in documents) + "\n"
