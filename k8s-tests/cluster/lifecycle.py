"""Bring the cluster up and down. Every step looks first, so a killed run is gone on with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import addons, binaries, images, kubeadm, network, node, plan, preflight, services
from cluster.node import Node

SILENCE = 8.0
NODES = tuple(Node(each) for each in plan.NODES)
SYSTEM = NODES[0]


class ClusterError(Exception):
    """The cluster cannot be brought up or down; the text says why and what to do."""


class UnfitError(ClusterError):
    """This machine lacks something; nothing was changed."""

    exit_code = 2


@contextmanager
def step(name: str) -> Iterator[None]:
    """Say that a step goes on, every few seconds, and how long it took."""
    start = time.monotonic()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:  # a process of its own: threads do not survive the forks of a step
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(SILENCE)
            while os.getppid() == parent:
                elapsed = time.monotonic() - start
                print(f"cluster: {name} ... {elapsed:.0f} s", file=sys.stderr, flush=True)
                time.sleep(SILENCE)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    print(f"cluster: {name}, {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def alone() -> Iterator[None]:
    """Let one process at a time change the cluster."""
    plan.state().mkdir(parents=True, exist_ok=True)
    start = spoken = time.monotonic()
    with (plan.state() / "lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now - spoken > SILENCE:
                    spoken = now
                    text = f"waiting for another command to finish, {now - start:.0f} s"
                    print(f"cluster: {text}", file=sys.stderr, flush=True)
                time.sleep(0.2)
        yield


def up(*, hpa_sync: str = "15s", node_grace: str = "20s", extras: Sequence[str] = ()) -> None:
    """Bring the cluster up; when it is up, look and change nothing.

    Args:
        hpa_sync: time between two looks of the autoscaler.
        node_grace: time after which a silent node is no longer ready.
        extras: add-ons beside those that every cluster has; what is there already stays.

    Raises:
        UnfitError: when something is missing; nothing was changed.
        ClusterError: when something does not start.
    """
    names = (*addons.CORE, *extras)
    groups = ("core", *extras)
    if found := preflight.faults(groups):
        raise UnfitError("; ".join(found))
    packages()
    with alone():
        binaries.ensure(groups)
        with step("images of the cluster"):
            archives = images.archives([*images.CONTROL_PLANE, *addons.archives(names)])
        with step("network, registry and Hub mirror"):
            network.up()
            services.start_registry()
        if not healthy():
            _make(archives, hpa_sync=hpa_sync, node_grace=node_grace)
        with step("add-ons"):
            SYSTEM.import_images(archives[name] for name in addons.archives(names))
            _addons(names)


def packages() -> None:
    """Install the Debian packages that are missing; the images are built with some of them, too."""
    with alone(), step("packages"):
        preflight.install_packages()


def healthy() -> bool:
    """Return whether every node runs and the API says that it is ready."""
    if not plan.kubeconfig().exists() or not all(each.running() for each in NODES):
        return False
    with contextlib.suppress(ClusterError):
        return {n["metadata"]["name"] for n in ready_nodes()} == {n.name for n in NODES}
    return False


def ready_nodes() -> list[dict[str, Any]]:
    """Return the nodes that Kubernetes calls ready."""
    nodes = json.loads(kubectl("get", "nodes", "-o", "json", "--request-timeout=5s"))["items"]
    return [
        each
        for each in nodes
        for condition in each["status"].get("conditions", [])
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]


def kubectl(*words: str) -> str:
    """Run kubectl as the cluster's administrator; return its stdout.

    Raises:
        ClusterError: when the exit code is not 0.
    """
    done = subprocess.run(
        [*kubectl_words(), *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(words[:3])}: {done.stderr.strip()}")
    return done.stdout


def kubectl_words() -> list[str]:
    """Return the words that start kubectl for this cluster."""
    return [str(binaries.path("kubectl")), f"--kubeconfig={plan.kubeconfig()}"]


def down(*, everything: bool = False) -> None:
    """Remove processes, mounts, namespaces and cgroups; images and programs stay in the cache.

    Args:
        everything: remove the images of nodes and registry, too.
    """
    with alone():
        with step("stopping the nodes"):
            for each in reversed(NODES):
                each.stop()
            services.stop()
            _kill_leftovers()
            network.down()
            node.remove_cgroups()
        with step("removing files"):
            for each in NODES:
                each.wipe(images=everything)
            for name in ("shared", *(("registry",) if everything else ())):
                shutil.rmtree(plan.state() / name, ignore_errors=True)
            plan.kubeconfig().unlink(missing_ok=True)
            _remove_empty_folders()


def status() -> dict[str, Any]:
    """Return what runs and where it answers."""
    return {
        "healthy": healthy(),
        "kubeconfig": str(plan.kubeconfig()),
        "nodes": {each.name: "running" if each.running() else "stopped" for each in NODES},
        "registry": {
            "push": f"{plan.SERVICES_ADDRESS}:{plan.REGISTRY_PORT}",
            "pull": plan.REGISTRY,
            "running": services.answers(plan.REGISTRY_PORT),
        },
        "hub": {
            "url": f"http://{plan.HUB_HOST}:{plan.HUB_PORT}",
            "running": services.answers(plan.HUB_PORT),
        },
        "ingress": plan.SYSTEM.address,
    }


def _make(archives: dict[str, Path], *, hpa_sync: str, node_grace: str) -> None:
    with step("clearing what an earlier cluster left"):
        for each in NODES:
            each.stop()
            each.wipe()
        node.remove_cgroups()
        shutil.rmtree(plan.state() / "shared", ignore_errors=True)
        plan.kubeconfig().unlink(missing_ok=True)
    with step("starting the nodes, importing images"):
        pushed = services.pushed_digests()
        for each in NODES:
            each.start()
            each.forget_containers()
            each.forget_images(pushed=pushed)
        for each in NODES:
            wanted = images.CONTROL_PLANE if each is SYSTEM else images.EVERY_NODE
            names = [*wanted, *addons.archives()] if each is SYSTEM else [*wanted, "curl"]
            each.import_images(archives[name] for name in dict.fromkeys(names))
    with step("kubeadm init"):
        _kubeadm(SYSTEM, "init", kubeadm.init_config(hpa_sync=hpa_sync, node_grace=node_grace))
        admin = SYSTEM.plan.folder / "etc-kubernetes" / "admin.conf"
        plan.kubeconfig().touch(mode=0o600)
        plan.kubeconfig().write_bytes(admin.read_bytes())
        kubectl("-n", "kube-system", "scale", "deployment/coredns", "--replicas=1")
    with step("kubeadm join"), ThreadPoolExecutor() as pool:
        list(pool.map(lambda n: _kubeadm(n, "join", kubeadm.join_config(n.plan)), NODES[1:]))
    with step("waiting for the nodes"):
        _wait_until(_all_ready, "the nodes are not ready or show no GPUs", 90)


def _kubeadm(each: Node, verb: str, config: str) -> None:
    file = each.plan.folder / "kubeadm.yaml"
    file.write_text(config)
    skip = ["--skip-phases=preflight"] if verb == "init" else []
    each.run([str(binaries.path("kubeadm")), verb, f"--config={file}", *skip], timeout=240)


def _all_ready() -> bool:
    """Return whether every node is ready, and the kubelets of GPU nodes count their GPUs."""
    found = {each["metadata"]["name"]: each["status"]["allocatable"] for each in ready_nodes()}
    return all(
        each.name in found
        and int(found[each.name].get(plan.GPU_RESOURCE, 0)) == each.plan.gpu * plan.GPUS_PER_NODE
        for each in NODES
    )


def _addons(names: Sequence[str]) -> None:
    values = addons.Values(
        system_address=plan.SYSTEM.address,
        service_range=plan.SERVICE_RANGE,
        hosts={
            plan.HUB_HOST: plan.SERVICES_ADDRESS,
            "registry.local": plan.SERVICES_ADDRESS,
        },
    )
    addons.apply(kubectl_words(), values, names)
    addons.wait(kubectl_words(), names)


def _wait_until(check: Any, text: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ClusterError):
            if check():
                return
        if time.monotonic() > deadline:
            raise ClusterError(f"{text} after {seconds:.0f} s; see the logs in {plan.state()}")
        time.sleep(0.5)


def _kill_leftovers() -> None:
    """Kill what still runs in our network namespaces, from a run that was killed itself."""
    inodes = set()
    for name in network.namespaces():
        with contextlib.suppress(OSError):
            inodes.add(os.stat(f"/run/netns/{name}").st_ino)
    deadline = time.monotonic() + 20
    while (pids := _inside(inodes)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _inside(inodes: set[int]) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns" / "net").stat().st_ino in inodes:
                found.append(int(folder.name))
    return found


def _remove_empty_folders() -> None:
    """Remove the mount points that a node needs on the machine, where nothing is in them."""
    for inside in (*node.BINDS, plan.SHARED):
        with contextlib.suppress(OSError):
            Path(inside).rmdir()
