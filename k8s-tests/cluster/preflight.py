"""What the machine must have before anything is changed; each fault with what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster import binaries, network, plan
from support.place import cache

GIGABYTE = 1e9
MEMORY_GIGABYTES = 6
RUN_GIGABYTES = 12  # images in the registry and on the nodes
# What Debian's packages bring, by a command or file of theirs.
PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "iptables": "/usr/sbin/iptables",
    "ipset": "/usr/sbin/ipset",
    "conntrack": "/usr/sbin/conntrack",
    "iproute2": "/usr/bin/ip",
    "busybox-static": "/usr/bin/busybox",
    "curl": "/usr/bin/curl",
    "docker-registry": "/usr/bin/docker-registry",
    "skopeo": "/usr/bin/skopeo",
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "gcc": "/usr/bin/gcc",
}


def faults(groups: Sequence[str] = ("core",)) -> list[str]:
    """Return one sentence for each thing that is missing and that we cannot install.

    Args:
        groups: what will be built (see `cluster.binaries`).
    """
    found = []
    if sys.platform != "linux":
        return ["the embedded cluster needs Linux; set KUBECONFIG to use another cluster"]
    if os.geteuid() != 0:
        found.append("root is needed for namespaces: use sudo, or set KUBECONFIG to a cluster")
    if missing := [c for c in binaries.select(groups) if not binaries.is_built(c)]:
        try:
            binaries.check_machine(missing)
        except binaries.BinariesError as error:
            found.append(str(error))
    free = shutil.disk_usage(_existing(cache())).free / GIGABYTE
    if free < RUN_GIGABYTES and not plan.kubeconfig().exists():
        found.append(
            f"{RUN_GIGABYTES} GB of free disk are needed below {cache()} for images, and "
            f"{free:.0f} GB are there: free some, or set TRITON_CACHE to another disk"
        )
    if (memory := memory_bytes() / GIGABYTE) < MEMORY_GIGABYTES:
        found.append(
            f"{MEMORY_GIGABYTES} GB of memory are needed, this machine has {memory:.0f}: use a "
            "larger one, or set KUBECONFIG to a cluster"
        )
    found += _busy_addresses()
    if not Path("/sys/fs/cgroup").is_dir():
        found.append(
            "cgroups are not mounted at /sys/fs/cgroup: mount them, or start a container "
            "that runs this with --privileged"
        )
    if missing_packages() and not shutil.which("apt-get"):
        names = ", ".join(missing_packages())
        found.append(f"install these (there is no apt-get here to do it): {names}")
    return found


def missing_packages() -> list[str]:
    """Return the Debian packages that are not installed."""
    return [name for name, file in PACKAGES.items() if not Path(file).exists()]


def install_packages() -> None:
    """Install the missing packages, saying so first.

    Raises:
        RuntimeError: when apt-get fails, with the end of what it said.
    """
    if not (names := missing_packages()):
        return
    print(f"cluster: installing Debian packages: {' '.join(names)}", file=sys.stderr, flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *names]
    # dpkg first: an installation that was stopped half-way blocks every later one.
    for command in (["dpkg", "--configure", "-a"], ["apt-get", "update", "-q"], words):
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            lines = []
            for line in child.stdout or ():
                lines.append(line)
                print(f"cluster: apt: {line.rstrip()[:100]}", file=sys.stderr, flush=True)
        if child.returncode:
            raise RuntimeError(f"{' '.join(command[:2])} failed: {''.join(lines[-5:])}")


def memory_bytes() -> float:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def routes() -> list[str]:
    """Return the routes of this machine, a line each; none where nothing can list them."""
    if not shutil.which("ip"):
        return []
    return subprocess.run(["ip", "route"], capture_output=True, text=True).stdout.splitlines()


def _busy_addresses() -> list[str]:
    """Return a fault when somebody else uses our address range."""
    if network.namespaces():
        return []
    taken = [line for line in routes() if line.startswith(("198.18.", "198.19."))]
    return [
        f"the range {plan.WHOLE_RANGE} is in use on this machine ({line.strip()}): remove that "
        f"route with `ip route del {line.split()[0]}`, or use a machine without it"
        for line in taken[:1]
    ]


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder
