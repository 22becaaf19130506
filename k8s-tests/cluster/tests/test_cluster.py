"""What `up` and `down` promise, asked of a second cluster that the one in use cannot meet.

It has namespaces of its own for network, mounts and processes, layers over /etc and /var, its
own prefix and its own cache (with the programs and archives of this machine's). So nothing that
goes wrong here reaches another cluster, and all that is left over is in sight.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import binaries, node, plan, preflight
from tools.place import ROOT, cache, python_path
from tools.wait import until

pytestmark = pytest.mark.root

PREFIX = "tc"
PAUSE = "registry.k8s.io/pause:3.10.1"

# Process 1 of the second machine: it reaps what is left without a parent.
REAPER = """
import os, time
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.1)
"""
LAYERS = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /run
mkdir /run/layers
for folder in etc var; do
  mkdir -p /run/layers/$folder.upper /run/layers/$folder.work
  mount -t overlay overlay -o \
    lowerdir=/$folder,upperdir=/run/layers/$folder.upper,workdir=/run/layers/$folder.work /$folder
done
"""
# The nodes as `up` starts them, with a container on each and no Kubernetes yet.
NODES = f"""
from cluster import images, lifecycle, network, plan, services
network.up()
services.start_registry()
archive = images.archives(["pause"])["pause"]
for each in lifecycle.NODES:
    each.start()
    each.import_images([archive])
    cgroup = f"/{{plan.PREFIX}}/{{each.name}}/one"
    each.ctr("run", "-d", "--cgroup", cgroup, "{PAUSE}", "one", "/usr/local/bin/pause")
"""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Namespaces that stand for a machine.

    Attributes:
        pid: its process 1.
        cache: its TRITON_CACHE.
    """

    pid: int
    cache: Path

    def start(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command in it."""
        enter = ["nsenter", "-t", str(self.pid), "-n", "-m", "-p", "--"]
        environment = {
            **{name: value for name, value in os.environ.items() if name != "KUBECONFIG"},
            "TRITON_CACHE": str(self.cache),
            "TRITON_CLUSTER_PREFIX": PREFIX,
            "PYTHONPATH": python_path(),
        }
        return subprocess.Popen(
            [*enter, *words], env=environment, cwd=ROOT, text=True, stdin=subprocess.DEVNULL, **more
        )

    def run(self, *words: str) -> str:
        """Run a command in it; return its stdout."""
        child = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = child.communicate(timeout=400)
        assert child.returncode == 0, err
        return out

    def cluster(self, *words: str) -> str:
        """Run `python3 -m cluster`; return its stdout."""
        return self.run(sys.executable, "-m", "cluster", *words)

    def kubectl(self, *words: str) -> str:
        """Ask its cluster."""
        config = f"--kubeconfig={self.cache}/cluster/kubeconfig"
        return self.run(str(binaries.path("kubectl")), config, *words)

    def processes(self) -> set[str]:
        """Return the names of the processes in it that live, but for its first."""
        found = set()
        for folder in Path(f"/proc/{self.pid}/root/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                name, _, state = (folder / "stat").read_text().partition("(")[2].rpartition(") ")
                if folder.name != "1" and state[0] != "Z":
                    found.add(name)
        return found

    def files(self, pattern: str) -> list[str]:
        """Return the files in its /run, /etc or /var that match a pattern."""
        found = sorted(Path(f"/proc/{self.pid}/root").glob(pattern.lstrip("/")))
        return [each.name for each in found]

    def traces(self) -> set[str]:
        """Return where something is mounted in it, and the folders that nodes need there."""
        lines = Path(f"/proc/{self.pid}/mounts").read_text().splitlines()
        folders = [each for each in (*node.BINDS, plan.SHARED) if self.files(each)]
        # `ip netns` makes a mount of its folder for namespaces and never takes it away.
        return {*folders, *(f"mount {line.split()[1]}" for line in lines)} - {"mount /run/netns"}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if missing := preflight.missing_packages():
        pytest.skip(f"needs the packages {', '.join(missing)}: run make up once")
    if not all(binaries.is_built(component) for component in binaries.select(["core"])):
        pytest.skip("needs the programs of the cluster: run make up once")
    if subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to make namespaces (CAP_SYS_ADMIN)")
    own = tmp_path / "cache"
    own.mkdir()
    for name in ("bin", "images"):
        (own / name).symlink_to(cache() / name)
    words = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with subprocess.Popen([*words, sys.executable, "-I", "-c", REAPER]) as holder:
        try:
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
            first = until(lambda: int(children.read_text().split()[0]), seconds=10, every=0.05)
            found = Machine(pid=first, cache=own)
            own_network = Path(f"/proc/{first}/ns/net")
            until(lambda: not own_network.samefile("/proc/self/ns/net"), seconds=5, every=0.05)
            found.run("sh", "-c", LAYERS)
            yield found
        finally:
            holder.kill()
            holder.wait()
            until(lambda: no_cgroups() or remove_cgroups(), seconds=20, every=0.2)


def no_cgroups() -> bool:
    """Return whether no control group of the second machine is there."""
    return not list(node.CGROUPS.glob(f"*/{PREFIX}"))


def remove_cgroups() -> bool:
    """Remove what a failed test left."""
    for root in node.CGROUPS.glob(f"*/{PREFIX}"):
        for base, _, _ in os.walk(root, topdown=False):
            Path(base).rmdir()
    return no_cgroups()


def nothing_is_left(machine: Machine, before: set[str]) -> None:
    """Assert that no process, mount, network, control group or folder of a cluster is there."""
    assert machine.processes() == set()
    assert machine.traces() <= before
    assert machine.files(f"/run/netns/{PREFIX}-*") == []
    assert f"{PREFIX}-host" not in machine.run("ip", "-o", "link")
    assert "198.18." not in machine.run("ip", "route")
    assert no_cgroups()
    kept = {path.name for path in (machine.cache / "cluster").glob("nodes/*/*")}
    assert kept <= set(node.KEPT)
    assert not (machine.cache / "cluster" / "kubeconfig").exists()


# Ports that the cluster uses on its own addresses.
PORTS = {80, 5000, 6443, 8080}
BUSY = f"""
import os, socket, time
held = [socket.create_server(("", port)) for port in {sorted(PORTS)}]
print(os.getpid(), flush=True)
time.sleep(3600)
"""


@contextlib.contextmanager
def busy_ports(machine: Machine) -> Iterator[None]:
    """Let something else on the machine listen on all addresses at the cluster's ports."""
    with machine.start(sys.executable, "-c", BUSY, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        try:
            yield
        finally:
            machine.run("kill", pid)


def listening(machine: Machine) -> set[int]:
    """Return the ports on which something listens in the machine itself."""
    tables = [Path(f"/proc/{machine.pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.splitlines()[1:]]
    return {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == "0A"}


def test_busy_ports_of_the_machine_do_not_matter_because_nothing_binds_there(
    machine: Machine,
) -> None:
    with busy_ports(machine):
        machine.run(sys.executable, "-c", NODES)

        assert {"containerd", "pause", "docker-registry"} <= machine.processes()
        assert listening(machine) == PORTS
    assert listening(machine) == set()


def test_down_leaves_no_process_mount_namespace_or_cgroup(machine: Machine) -> None:
    before = machine.traces()
    machine.run(sys.executable, "-c", NODES)
    assert {"containerd", "pause", "docker-registry"} <= machine.processes()
    assert not no_cgroups()

    machine.cluster("down")

    nothing_is_left(machine, before)


def test_down_finds_the_processes_of_a_cluster_whose_records_are_lost(machine: Machine) -> None:
    before = machine.traces()
    machine.run(sys.executable, "-c", NODES)
    for file in machine.cache.glob("cluster/**/*pid"):
        file.unlink()

    machine.cluster("down")

    nothing_is_left(machine, before)


def test_down_clears_what_a_killed_up_left(machine: Machine) -> None:
    before = machine.traces()
    words = (sys.executable, "-m", "cluster", "up")
    said = machine.cache / "said"
    with said.open("w") as file:
        up = machine.start(*words, stderr=file, start_new_session=True)

    def runs() -> bool:
        assert up.poll() is None, said.read_text()
        return "containerd" in machine.processes()

    try:
        until(runs, seconds=60, every=0.1)
    finally:
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()

    machine.cluster("down")

    nothing_is_left(machine, before)


def test_down_without_a_cluster_changes_nothing(machine: Machine) -> None:
    before = machine.traces()

    machine.cluster("down")

    nothing_is_left(machine, before)


def gpus(machine: Machine) -> dict[str, str]:
    """Return what each node says that it can give out."""
    nodes = json.loads(machine.kubectl("get", "nodes", "-o", "json"))["items"]
    return {
        each["metadata"]["name"]: each["status"]["allocatable"].get(plan.GPU_RESOURCE, "0")
        for each in nodes
    }


def started(machine: Machine) -> dict[str, str]:
    """Return when each container of each pod was started."""
    pods = json.loads(machine.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    return {
        f"{each['metadata']['name']}/{container['name']}": container["state"]["running"][
            "startedAt"
        ]
        for each in pods
        for container in each["status"]["containerStatuses"]
    }


@pytest.mark.slow
def test_up_is_idempotent_and_resumes_after_a_kill_of_everything(machine: Machine) -> None:
    before = machine.traces()
    with busy_ports(machine):
        machine.cluster("up")
        assert listening(machine) == PORTS
    expected = {each.name: str(each.gpu * plan.GPUS_PER_NODE) for each in plan.NODES}
    assert gpus(machine) == expected
    first = until(lambda: started(machine), seconds=60)

    machine.cluster("up")
    # No pod is new and no container was started again.
    assert started(machine).items() <= first.items()

    for record in machine.cache.glob("cluster/**/*pid"):
        machine.run("kill", "-9", record.read_text())
    machine.cluster("up")
    assert gpus(machine) == expected

    machine.cluster("down")
    nothing_is_left(machine, before)
