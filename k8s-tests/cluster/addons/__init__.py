"""Add-ons of the cluster: ordinary manifests, filled in with a few values and applied.

`apply(kubectl, values)` brings them to a running cluster, `wait(kubectl)` returns once their
pods are ready, and `archives()` names the image archives that nodes need before.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from cluster import binaries

MANIFESTS = Path(__file__).parent
PROGRESS_SECONDS = 8.0


class AddonError(Exception):
    """An add-on cannot be applied or does not become ready; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Addon:
    """One add-on.

    Attributes:
        name: the manifest's file name without ".yaml".
        archives: image archives (cluster.images) that its pods need on the nodes.
        definitions: kept files of a component (cluster.binaries) with its CRDs, applied first.
        workloads: what must be rolled out, as (namespace, kind/name).
    """

    name: str
    archives: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()
    workloads: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Values:
    """What the manifests leave open.

    Attributes:
        system_node: name of the node that holds Traefik and the controllers.
        system_address: its address, which Ingress and Gateway report as theirs.
        service_range: range of cluster addresses of Services.
        hosts: names outside the cluster and the addresses that its DNS gives for them.
        api_address: address of the API server; that of the system node by default.
        local_path: folder of each node for volumes of class `standard`.
        shared_path: folder that all nodes mount, for volumes of class `shared`.
    """

    system_address: str
    service_range: str
    hosts: Mapping[str, str] = field(default_factory=dict)
    system_node: str = "system"
    api_address: str = ""
    api_port: int = 6443
    # Below the kubelet's folder, which each node has to itself.
    local_path: str = "/var/lib/kubelet/local-path"
    shared_path: str = "/var/local-path-shared"


ADDONS: Mapping[str, Addon] = {
    addon.name: addon
    for addon in (
        Addon(name="coredns", workloads=(("kube-system", "deployment/coredns"),)),
        Addon(
            name="kube-router",
            archives=("kube-router",),
            workloads=(("kube-system", "daemonset/kube-router"),),
        ),
        Addon(
            name="local-path",
            archives=("local-path-provisioner", "curl"),
            workloads=(("local-path-storage", "deployment/local-path-provisioner"),),
        ),
        Addon(
            name="traefik",
            archives=("traefik",),
            definitions=("gateway-api-crds.yaml",),
            workloads=(("traefik", "deployment/traefik"),),
        ),
        Addon(
            name="monitoring",
            archives=(
                "prometheus-operator",
                "prometheus",
                "prometheus-adapter",
                "kube-state-metrics",
            ),
            definitions=("prometheus-operator-crds.yaml",),
            workloads=(
                ("monitoring", "deployment/prometheus-operator"),
                ("monitoring", "statefulset/prometheus-main"),
                ("monitoring", "deployment/prometheus-adapter"),
                ("monitoring", "deployment/kube-state-metrics"),
            ),
        ),
        Addon(
            name="keda",
            archives=("keda",),
            definitions=("keda-crds.yaml",),
            workloads=(
                ("keda", "deployment/keda-operator"),
                ("keda", "deployment/keda-metrics-apiserver"),
            ),
        ),
    )
}
CORE = ("coredns", "kube-router", "local-path", "traefik")
# Brought when asked for; the group of programs (cluster.binaries) has the same name.
EXTRAS = tuple(name for name in ADDONS if name not in CORE)


def archives(names: Iterable[str] = CORE) -> list[str]:
    """Return the names of the image archives (cluster.images) that these add-ons need."""
    return list(dict.fromkeys(name for addon in _select(names) for name in addon.archives))


def apply(kubectl: Sequence[str], values: Values, names: Iterable[str] = CORE) -> None:
    """Apply add-ons; applying them again changes nothing.

    Args:
        kubectl: the words that start kubectl for this cluster.
        values: what the manifests leave open.
        names: the add-ons.

    Raises:
        AddonError: when an add-on is unknown or kubectl refuses it.
        binaries.BinariesError: when the module with its CRDs cannot be had.
    """
    addons = _select(names)
    definitions = [name for addon in addons for name in addon.definitions]
    if definitions:
        found = binaries.ensure(definitions)
        text = "---\n".join(found[name].read_text() for name in definitions)
        _kubectl(kubectl, [*_APPLY, "-f", "-"], text=text)
        kinds = ["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"]
        _kubectl(kubectl, kinds, text=text)
    text = "---\n".join(manifest(addon.name, values) for addon in addons)
    _kubectl(kubectl, [*_APPLY, "-f", "-"], text=text)


def wait(kubectl: Sequence[str], names: Iterable[str] = CORE, *, seconds: float = 300) -> None:
    """Return once the workloads of add-ons are rolled out; progress on stderr.

    Raises:
        AddonError: after so many seconds, naming what is not ready and what its pods say.
    """
    start = time.monotonic()
    for addon in _select(names):
        for namespace, workload in addon.workloads:
            _wait_for(kubectl, namespace, workload, start=start, seconds=seconds)


def manifest(name: str, values: Values) -> str:
    """Return the manifest of an add-on, filled in."""
    addon = _select([name])[0]
    text = (MANIFESTS / f"{addon.name}.yaml").read_text()
    lines = [f"{address} {host}" for host, address in values.hosts.items()]
    return Template(text).substitute(
        vars(values),
        api_address=values.api_address or values.system_address,
        host_zones=" ".join(f"{host}:53" for host in values.hosts) or "no-such-host.invalid:53",
        host_lines=textwrap.indent("\n".join(lines), " " * 12).lstrip(),
    )


# Server-side: the Gateway API's definitions are too large for the annotation of the other way.
_APPLY = ("apply", "--server-side", "--force-conflicts", "--field-manager=cluster-addons")


def _select(names: Iterable[str]) -> list[Addon]:
    wanted = list(names)
    if unknown := [name for name in wanted if name not in ADDONS]:
        raise AddonError(f"there is no add-on {unknown[0]!r}; known: {', '.join(ADDONS)}")
    return [ADDONS[name] for name in wanted]


def _wait_for(
    kubectl: Sequence[str], namespace: str, workload: str, *, start: float, seconds: float
) -> None:
    while True:
        left = seconds - (time.monotonic() - start)
        step = max(1, min(PROGRESS_SECONDS, left))
        words = ["rollout", "status", workload, "-n", namespace, f"--timeout={step:.0f}s"]
        done = subprocess.run([*kubectl, *words], capture_output=True, text=True)
        if done.returncode == 0:
            return
        elapsed = time.monotonic() - start
        said = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""])[-1]
        print(f"add-ons: {workload}: {said} ({elapsed:.0f} s)", file=sys.stderr, flush=True)
        if elapsed > seconds:
            pods = ["get", "pods,events", "-n", namespace, "-o", "wide"]
            shown = subprocess.run([*kubectl, *pods], capture_output=True, text=True).stdout
            raise AddonError(
                f"{workload} in {namespace} is not ready after {elapsed:.0f} s\n{shown}"
            )
        if "timed out" not in done.stderr:
            time.sleep(1)  # kubectl could not ask at all: do not ask in a tight loop


def _kubectl(kubectl: Sequence[str], words: Sequence[str], *, text: str) -> None:
    done = subprocess.run([*kubectl, *words], input=text, capture_output=True, text=True)
    if done.returncode:
        raise AddonError(f"kubectl {words[0]} failed: {done.stderr.strip()}")
