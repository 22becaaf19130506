"""Network namespaces, one bridge as the fabric, and static routes between the pods of nodes.

The bridge lives in a namespace of its own, which also holds the registry and the Hub mirror.
The host gets one link and routes to our own test range; nodes have no way out of the machine.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from cluster import plan
from cluster.plan import NodePlan

HOST_LINK = f"{plan.PREFIX}-host"


class NetworkError(Exception):
    """A link, address or route cannot be made; the text holds the command and its answer."""


def up() -> None:
    """Make all namespaces, links and routes that are missing.

    Raises:
        NetworkError: when `ip` refuses a command.
    """
    if not exists(plan.FABRIC):
        _ip("netns", "add", plan.FABRIC)
        _inside(plan.FABRIC, "link", "set", "lo", "up")
        _inside(plan.FABRIC, "link", "add", "fabric", "type", "bridge")
        _inside(plan.FABRIC, "addr", "add", f"{plan.SERVICES_ADDRESS}/23", "dev", "fabric")
        _inside(plan.FABRIC, "link", "set", "fabric", "up")
    if not Path(f"/sys/class/net/{HOST_LINK}").exists():
        _plug(HOST_LINK, "host")
        _ip("addr", "add", f"{plan.HOST_ADDRESS}/23", "dev", HOST_LINK)
        _ip("link", "set", HOST_LINK, "up")
        for node in plan.NODES:
            _ip("route", "add", node.pods, "via", node.address)
        _ip("route", "add", plan.SERVICE_RANGE, "via", plan.SYSTEM.address)
    for node in plan.NODES:
        if not exists(node.namespace):
            _make_node(node)
    for node in plan.NODES:
        for other in plan.NODES:
            if other is not node:
                _inside(node.namespace, "route", "replace", other.pods, "via", other.address)
    _routes_of_fabric()


def down() -> None:
    """Remove every namespace of ours; links and routes go with them."""
    for name in namespaces():
        _ip("netns", "del", name)
    if Path(f"/sys/class/net/{HOST_LINK}").exists():
        _ip("link", "del", HOST_LINK)


def namespaces() -> list[str]:
    """Return the names of the network namespaces of ours that exist."""
    folder = Path("/run/netns")
    return sorted(path.name for path in folder.glob(f"{plan.PREFIX}-*")) if folder.is_dir() else []


def exists(namespace: str) -> bool:
    """Return whether a network namespace exists and is mounted."""
    return os.path.ismount(f"/run/netns/{namespace}")


def enter(namespace: str) -> list[str]:
    """Return the words before a command that is to run in a network namespace.

    `ip netns exec` would mount /sys anew and hide the cgroups.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def _make_node(node: NodePlan) -> None:
    _ip("netns", "add", node.namespace)
    outside = f"{plan.PREFIX}-n{node.number}"
    _plug("eth0", outside, namespace=node.namespace)
    for words in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{node.address}/23", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        # Packets of the node itself to a Service need a route before their target is rewritten;
        # this kernel has no dummy links, so an empty bridge is where the route ends.
        ("link", "add", "sink", "type", "bridge"),
        ("link", "set", "sink", "up"),
        ("route", "add", plan.SERVICE_RANGE, "dev", "sink", "src", node.address),
    ):
        _inside(node.namespace, *words)
    settings = ["net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"]
    if Path("/proc/sys/net/bridge").exists():
        settings.append("net.bridge.bridge-nf-call-iptables=1")
    for setting in settings:
        name, _, value = setting.partition("=")
        _sysctl(node.namespace, name, value)


def _sysctl(namespace: str, name: str, value: str) -> None:
    path = f"/proc/sys/{name.replace('.', '/')}"
    _run([*enter(namespace), "sh", "-c", f"echo {value} > {path}"])


def _plug(inside: str, outside: str, *, namespace: str | None = None) -> None:
    """Make a link pair: `inside` here or in a namespace, `outside` a port of the fabric."""
    with contextlib.suppress(NetworkError):
        _inside(plan.FABRIC, "link", "del", outside)
    where = ["netns", namespace] if namespace else []
    _inside(plan.FABRIC, "link", "add", outside, "type", "veth", "peer", "name", f"p-{outside}")
    if namespace:
        _inside(plan.FABRIC, "link", "set", f"p-{outside}", *where, "name", inside)
    else:
        _inside(
            plan.FABRIC, "link", "set", f"p-{outside}", "netns", str(os.getpid()), "name", inside
        )
    _inside(plan.FABRIC, "link", "set", outside, "master", "fabric", "up")


def _routes_of_fabric() -> None:
    for node in plan.NODES:
        _inside(plan.FABRIC, "route", "replace", node.pods, "via", node.address)


def _inside(namespace: str, *words: str) -> None:
    _run(["ip", "-n", namespace, *words])


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip()}")
