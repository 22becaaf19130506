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
NAMESPACES = Path("/run/netns")


class NetworkError(Exception):
    """A link, address or route cannot be made; the text holds the command and its answer."""


def up() -> None:
    """Make all namespaces, links and routes that are missing; what is half made is completed.

    Raises:
        NetworkError: when `ip` refuses a command.
    """
    for name in namespaces():
        if not exists(name):  # a file that outlived a start of the machine
            (NAMESPACES / name).unlink()
    _make_fabric()
    _make_host_link()
    for node in plan.NODES:
        _make_node(node)


def down() -> None:
    """Remove every namespace of ours and the host's link; links and routes go with them."""
    for name in namespaces():
        _ip("netns", "del", name)
    # The link goes with the fabric, but a moment later.
    if _has_link(HOST_LINK):
        with contextlib.suppress(NetworkError):
            _ip("link", "del", HOST_LINK)


def remove_nodes() -> None:
    """Remove the namespaces of the nodes with all that an earlier cluster left in them.

    Rules of the packet filter, bridges and links of pods are in there; nothing may run in them.
    """
    for node in plan.NODES:
        if (NAMESPACES / node.namespace).exists():
            _ip("netns", "del", node.namespace)


def namespaces() -> list[str]:
    """Return the names of the network namespaces of ours that exist."""
    return sorted(path.name for path in NAMESPACES.glob(f"{plan.PREFIX}-*"))


def exists(namespace: str) -> bool:
    """Return whether a network namespace exists and is mounted."""
    return os.path.ismount(NAMESPACES / namespace)


def enter(namespace: str) -> list[str]:
    """Return the words before a command that is to run in a network namespace.

    `ip netns exec` would mount /sys anew and hide the cgroups.
    """
    return ["nsenter", f"--net={NAMESPACES / namespace}"]


def _make_fabric() -> None:
    if not exists(plan.FABRIC):
        _ip("netns", "add", plan.FABRIC)
    _inside(plan.FABRIC, "link", "set", "lo", "up")
    if not _has_link("fabric", namespace=plan.FABRIC):
        # With an address of its own: a bridge otherwise takes that of a link, and another one
        # when that link goes, which its neighbours learn half a minute later.
        words = ("name", "fabric", "address", "02:00:c6:12:fe:02", "type", "bridge")
        _inside(plan.FABRIC, "link", "add", *words)
    _inside(plan.FABRIC, "addr", "replace", f"{plan.SERVICES_ADDRESS}/23", "dev", "fabric")
    _inside(plan.FABRIC, "link", "set", "fabric", "up")
    for node in plan.NODES:
        _inside(plan.FABRIC, "route", "replace", node.pods, "via", node.address)


def _make_host_link() -> None:
    _plug(HOST_LINK, "host")
    _ip("addr", "replace", f"{plan.HOST_ADDRESS}/23", "dev", HOST_LINK)
    _ip("link", "set", HOST_LINK, "up")
    for node in plan.NODES:
        _ip("route", "replace", node.pods, "via", node.address)
    _ip("route", "replace", plan.SERVICE_RANGE, "via", plan.SYSTEM.address)


def _make_node(node: NodePlan) -> None:
    if not exists(node.namespace):
        _ip("netns", "add", node.namespace)
    _plug("eth0", f"{plan.PREFIX}-n{node.number}", namespace=node.namespace)
    # Packets of the node itself to a Service need a route before their target is rewritten;
    # this kernel has no dummy links, so an empty bridge is where the route ends.
    if not _has_link("sink", namespace=node.namespace):
        _inside(node.namespace, "link", "add", "sink", "type", "bridge")
    for words in (
        ("link", "set", "lo", "up"),
        ("addr", "replace", f"{node.address}/23", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "sink", "up"),
        ("route", "replace", plan.SERVICE_RANGE, "dev", "sink", "src", node.address),
        *(
            ("route", "replace", other.pods, "via", other.address)
            for other in plan.NODES
            if other is not node
        ),
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
    """Join a link `inside`, here or in a namespace, to the fabric, where it is named `outside`."""
    if not _has_link(inside, namespace=namespace):
        with contextlib.suppress(NetworkError):
            _inside(plan.FABRIC, "link", "del", outside)
        peer = f"p-{outside}"
        _inside(plan.FABRIC, "link", "add", outside, "type", "veth", "peer", "name", peer)
        where = namespace or str(os.getpid())
        _inside(plan.FABRIC, "link", "set", peer, "netns", where, "name", inside)
    _inside(plan.FABRIC, "link", "set", outside, "master", "fabric", "up")


def _has_link(name: str, *, namespace: str | None = None) -> bool:
    where = ["-n", namespace] if namespace else []
    words = ["ip", *where, "link", "show", "dev", name]
    return subprocess.run(words, capture_output=True).returncode == 0


def _inside(namespace: str, *words: str) -> None:
    _run(["ip", "-n", namespace, *words])


def _ip(*words: str) -> None:
    _run(["ip", *words])


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise NetworkError(f"{' '.join(words)}: {done.stderr.strip()}")
