"""One node of the cluster: start, stop, run a command in it, import images, fail on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries, network, plan
from cluster.plan import NodePlan

CGROUPS = Path("/sys/fs/cgroup")
SOCKET = "/run/containerd/containerd.sock"
KEPT = ("containerd",)  # folders of a node that outlive `down`: its images
BINDS = {
    "/etc/kubernetes": "etc-kubernetes",
    "/etc/cni": "etc-cni",
    "/var/lib/kubelet": "kubelet",
    "/var/lib/containerd": "containerd",
    "/var/lib/etcd": "etcd",
    "/var/lib/cni": "cni",
    "/var/log/pods": "log-pods",
    "/var/log/containers": "log-containers",
}


class NodeError(Exception):
    """A node does not start or a command in it failed; the text says which and why."""


@dataclass(frozen=True)
class Node:
    """A node, running or not."""

    plan: NodePlan

    @property
    def name(self) -> str:
        """Its name in Kubernetes."""
        return self.plan.name

    def pid(self) -> int | None:
        """Return the process that holds the node's namespaces, as this machine numbers it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.plan.folder / "pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if str(self._settings()).encode() in words:
                return pid
        return None

    def running(self) -> bool:
        """Return whether the node's process 1 lives."""
        return self.pid() is not None

    def start(self) -> None:
        """Start the node: its namespaces, containerd, and the kubelet once kubeadm configured it.

        A GPU node's device plugin follows the kubelet.

        Raises:
            NodeError: when containerd does not answer within 30 s.
        """
        if self.running():
            return
        self._write_files()
        self._make_cgroups()
        with (self.plan.folder / "init.log").open("ab") as log:
            child = subprocess.Popen(
                [
                    *network.enter(self.plan.namespace),
                    *("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"),
                    "--mount-proc",
                    *(sys.executable, "-I", str(Path(__file__).with_name("node_init.py"))),
                    str(self._settings()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        init = _wait_for_child(child.pid)
        (self.plan.folder / "pid").write_text(str(init))
        self._wait_for_containerd()

    def stop(self) -> None:
        """Kill the node with every process in it, as a power cut would."""
        if (pid := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 20
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        (self.plan.folder / "pid").unlink(missing_ok=True)

    def hold_kubelet(self) -> None:
        """Stop the kubelet and keep it down; containers go on."""
        self._signal(signal.SIGUSR1)

    def release_kubelet(self) -> None:
        """Let the kubelet run again."""
        self._signal(signal.SIGUSR2)

    def command(self, words: Sequence[str]) -> list[str]:
        """Return the words that run a command inside the node's namespaces.

        Raises:
            NodeError: when the node is not running.
        """
        if (pid := self.pid()) is None:
            raise NodeError(f"node {self.name} is not running")
        return ["nsenter", "-t", str(pid), "-m", "-u", "-p", "-n", "--", *words]

    def run(self, words: Sequence[str], *, timeout: float = 300) -> str:
        """Run a command inside the node; return its stdout.

        Raises:
            NodeError: when the exit code is not 0, with what the command printed.
        """
        done = subprocess.run(
            self.command(words),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PATH": self._path()},
        )
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
            raise NodeError(f"{self.name}: {' '.join(words[:4])} failed: {said}")
        return done.stdout

    def device_plugin(self) -> list[str]:
        """Return the words that start the plugin which advertises GPUs; none on other nodes."""
        if not self.plan.gpu:
            return []
        program = str(binaries.path("device-plugin"))
        return [program, f"-resource={plan.GPU_RESOURCE}", f"-count={plan.GPUS_PER_NODE}"]

    def import_images(self, archives: Iterable[Path]) -> None:
        """Bring image archives to the node; those that it has already cost nothing."""
        file = self.plan.folder / "containerd" / "imported.json"
        known = set(json.loads(file.read_text())) if file.exists() else set()
        for archive in archives:
            if archive.name not in known:
                self.ctr("images", "import", str(archive))
                known.add(archive.name)
                file.write_text(json.dumps(sorted(known)))

    def ctr(self, *words: str) -> str:
        """Run containerd's own client for the images and containers of Kubernetes."""
        return self.run(["ctr", "-a", SOCKET, "-n", "k8s.io", *words])

    def forget_containers(self) -> None:
        """Remove the containers that an earlier cluster left in containerd's books."""
        for container in self.ctr("containers", "ls", "-q").split():
            with contextlib.suppress(NodeError):
                self.ctr("containers", "rm", container)

    def forget_images(self, *, pushed: Collection[str]) -> None:
        """Remove images that were pulled from our registry and have been replaced there since.

        Args:
            pushed: digests of the manifests that the registry has under a tag.
        """
        rows = [line.split() for line in self.ctr("images", "ls").splitlines()[1:]]
        pulled = {row[2] for row in rows if row[0].startswith(f"{plan.REGISTRY}/")}
        for row in rows:
            if row[2] in pulled - set(pushed):
                self.ctr("images", "rm", row[0])

    def wipe(self, *, images: bool = False) -> None:
        """Remove the node's files; its images stay unless asked."""
        for path in self.plan.folder.glob("*"):
            if path.name in KEPT and not images:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _settings(self) -> Path:
        return self.plan.folder / "node.json"

    def _signal(self, number: signal.Signals) -> None:
        if (pid := self.pid()) is None:
            raise NodeError(f"node {self.name} is not running")
        os.kill(pid, number)

    def _path(self) -> str:
        folder = binaries.path("kubelet").parent
        return f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def _write_files(self) -> None:
        folder = self.plan.folder
        binds = {inside: str(folder / name) for inside, name in BINDS.items()}
        binds[plan.SHARED] = str(plan.state() / "shared")
        for inside, outside in binds.items():
            Path(inside).mkdir(parents=True, exist_ok=True)
            Path(outside).mkdir(parents=True, exist_ok=True)
        (plan.state() / "shared").chmod(0o777)
        hosts = "".join(f"{n.address} {n.name}\n" for n in plan.NODES)
        names = f"{plan.SERVICES_ADDRESS} {plan.HUB_HOST} registry.local\n"
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}{names}")
        # Nobody answers there. An address of the pod itself would be a loop, at which CoreDNS ends
        # until the add-on has replaced the configuration that kubeadm gave it.
        (folder / "resolv.conf").write_text(f"nameserver {plan.SERVICES_ADDRESS}\n")
        binds["/etc/hosts"] = str(folder / "hosts")
        binds["/etc/resolv.conf"] = str(folder / "resolv.conf")
        (folder / "containerd.toml").write_text(containerd_config(folder))
        registry = folder / "certs.d" / plan.REGISTRY
        registry.mkdir(parents=True, exist_ok=True)
        url = f"http://{plan.SERVICES_ADDRESS}:{plan.REGISTRY_PORT}"
        (registry / "hosts.toml").write_text(
            f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'
        )
        cni = folder / "etc-cni" / "net.d"
        cni.mkdir(parents=True, exist_ok=True)
        (cni / "10-pods.conflist").write_text(json.dumps(cni_config(self.plan), indent=2))
        # Without it the kubelet of a node without static pods writes an error a second.
        (folder / "etc-kubernetes" / "manifests").mkdir(exist_ok=True)
        settings = {
            "name": self.name,
            "folder": str(folder),
            "binds": binds,
            "kubelet": str(binaries.path("kubelet")),
            "device_plugin": self.device_plugin(),
        }
        self._settings().write_text(json.dumps(settings, indent=2))

    def _make_cgroups(self) -> None:
        for controller in CGROUPS.iterdir():
            if not (controller / "cgroup.procs").exists():
                continue
            folder = controller / plan.PREFIX / self.name
            folder.mkdir(parents=True, exist_ok=True)
            for level in (folder.parent, folder):
                for name in ("cpuset.cpus", "cpuset.mems"):
                    if (level / name).exists() and not (level / name).read_text().strip():
                        (level / name).write_text((level.parent / name).read_text())

    def _wait_for_containerd(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ctr("version")
                return
            except NodeError as error:
                if time.monotonic() > deadline:
                    log = (self.plan.folder / "containerd.log").read_text()[-1500:]
                    raise NodeError(f"containerd of {self.name} does not answer: {log}") from error
            time.sleep(0.2)


def remove_cgroups() -> None:
    """Remove the cgroups of all nodes, deepest first."""
    for controller in CGROUPS.iterdir():
        root = controller / plan.PREFIX
        if root.is_dir():
            folders = sorted(
                (Path(base) for base, _, _ in os.walk(root)), key=lambda path: -len(path.parts)
            )
            for folder in folders:
                with contextlib.suppress(OSError):
                    folder.rmdir()


def containerd_config(folder: Path) -> str:
    """Return containerd's configuration for a node whose files lie in `folder`."""
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{SOCKET}"
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10.1"
  restrict_oom_score_adj = true
  max_concurrent_downloads = 4
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/certs.d"
"""


def cni_config(node: NodePlan) -> dict[str, object]:
    """Return the CNI configuration of a node: a bridge, a range of its own, host ports.

    No masquerading: a NetworkPolicy would see the node's address in place of the pod's.
    """
    bridge = {
        "type": "bridge",
        "bridge": "pods",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": node.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def _wait_for_child(parent: int) -> int:
    """Return the process that `unshare` started, as this machine numbers it."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            for child in children:
                if b"node_init.py" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.02)
    raise NodeError("the node's first process did not start; see its init.log")
