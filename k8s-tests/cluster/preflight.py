"""What the machine must have before anything is changed; each fault with what to do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries, network, plan
from tools.place import VERSION, cache

GIGABYTE = 1e9
MEMORY_GIGABYTES = 6
PYTHON = (3, 11)
# Measured, with a margin; the first two are gone after `make clean`, the last after a reset.
ENVIRONMENT_GIGABYTES = 7
IMAGE_GIGABYTES = 8
RUN_GIGABYTES = 12
BUILDAH = Path("/var/lib/containers")
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
    "docker.io": "/usr/sbin/dockerd",  # the Docker way is tested on a real engine
    "slirp4netns": "/usr/bin/slirp4netns",
    "skopeo": "/usr/bin/skopeo",
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "gcc": "/usr/bin/gcc",
}


@dataclass(frozen=True, kw_only=True)
class Room:
    """Free disk that something takes.

    Attributes:
        folder: below which it goes.
        gigabytes: how much.
        what: what takes it.
    """

    folder: Path
    gigabytes: float
    what: str


def faults(groups: Sequence[str] = ("core",), *, make_up: bool = False) -> list[str]:
    """Return one sentence for each thing that is missing and that we cannot install.

    Args:
        groups: what will be built (see `cluster.binaries`).
        make_up: whether Python environment, model and images are made as well.
    """
    found = []
    if sys.platform != "linux":
        return ["the embedded cluster needs Linux; set KUBECONFIG to use another cluster"]
    if os.geteuid() != 0:
        found.append("root is needed for namespaces: use sudo, or set KUBECONFIG to a cluster")
    if missing := [c for c in binaries.select(groups) if not binaries.is_built(c)]:
        try:
            binaries.check_toolchain(missing)
        except binaries.BinariesError as error:
            found.append(str(error))
    found += disk_faults([*_cluster_rooms(missing), *(_other_rooms() if make_up else ())])
    if make_up:
        found += python_faults()
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


def disk_faults(rooms: Sequence[Room]) -> list[str]:
    """Return a fault for each file system that has less free than all that goes there takes."""
    found = []
    for device in dict.fromkeys(device_of(room.folder) for room in rooms):
        here = [room for room in rooms if device_of(room.folder) == device]
        needed = sum(room.gigabytes for room in here)
        free = shutil.disk_usage(_existing(here[0].folder)).free / GIGABYTE
        if free < needed:
            folders = " and ".join(dict.fromkeys(str(room.folder) for room in here))
            parts = ", ".join(f"{room.gigabytes:.0f} {room.what}" for room in here)
            found.append(
                f"{needed:.0f} GB of free disk are needed below {folders} ({parts}), and "
                f"{free:.0f} GB are there: free some, or set TRITON_CACHE to another disk"
            )
    return found


def python_faults() -> list[str]:
    """Return what Python itself lacks for the environment of `make venv`."""
    found = []
    wanted = ".".join(map(str, PYTHON))
    if python_version() < PYTHON:
        this = ".".join(map(str, python_version()))
        found.append(f"Python {wanted} or newer is needed, python3 is {this}: put one on PATH")
    elif not has_ensurepip() and not _environment_is_made():
        found.append("Python has no ensurepip: run `apt-get install python3-venv`")
    return found


def python_version() -> tuple[int, int]:
    """Return the version of the Python that runs this."""
    return sys.version_info[:2]


def has_ensurepip() -> bool:
    """Return whether an environment can be made; Debian has that in a package of its own."""
    return importlib.util.find_spec("ensurepip") is not None


def device_of(folder: Path) -> int:
    """Return the file system on which a folder is or will be."""
    return _existing(folder).stat().st_dev


def _cluster_rooms(missing: Sequence[binaries.Component]) -> list[Room]:
    found = []
    if missing:
        what = f"to build {', '.join(component.name for component in missing)}"
        room = binaries.room_gigabytes(missing)
        found.append(Room(folder=cache(), gigabytes=room, what=what))
    if not plan.kubeconfig().exists():
        what = "for images in the registry and on the nodes"
        found.append(Room(folder=cache(), gigabytes=RUN_GIGABYTES, what=what))
    return found


def _other_rooms() -> list[Room]:
    found = []
    if not _environment_is_made():
        what = "for the Python environment and the model"
        found.append(Room(folder=cache(), gigabytes=ENVIRONMENT_GIGABYTES, what=what))
    if not image_is_built():
        what = "for the server's images"
        found.append(Room(folder=BUILDAH, gigabytes=IMAGE_GIGABYTES, what=what))
    return found


def image_is_built() -> bool:
    """Return whether Docker or buildah has an image of the server.

    buildah may be missing still, so its files are asked.
    """
    if shutil.which("docker"):
        words = ["docker", "image", "inspect", f"triton-hf:{VERSION}"]
        if subprocess.run(words, capture_output=True).returncode == 0:
            return True
    listing = BUILDAH / "storage" / "overlay-images" / "images.json"
    name = f'"localhost/triton-hf:{VERSION}"'
    return os.access(listing, os.R_OK) and name in listing.read_text()


def _environment_is_made() -> bool:
    return any(cache().glob("venv-*/.complete"))


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
