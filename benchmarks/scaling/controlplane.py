"""A Kubernetes without nodes on loopback: etcd, API server, scheduler, controllers, adapter.

kwok plays the kubelets, so hundreds of nodes cost nothing but their objects. It is apart from the
cluster of `make up` and holds nothing that another test could disturb.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from cluster import binaries
from lib.prometheus import free_port
from tools import helm, wait
from tools.place import Place

PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok"),
    *("helm", "prometheus", "prometheus-adapter", "prometheus-operator-crds.yaml"),
    "kube-state-metrics",
)
METRICS_API = "custom.metrics.k8s.io"
ADAPTER_NAMESPACE = "monitoring"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a process has used: CPU seconds since its start, resident bytes now."""

    cpu_seconds: float
    resident_bytes: int


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """What runs, and how to reach it.

    Attributes:
        place: for kubectl and helm.
        programs: paths of the programs by name.
        folder: where logs and certificates are.
        url: of the API server.
        controllers_port: HTTPS port of the controller manager, with its metrics.
        token: lets in everywhere.
        processes: number of each running program by name.
    """

    place: Place
    programs: dict[str, Path]
    folder: Path
    url: str
    controllers_port: int
    token: str
    processes: dict[str, int] = field(default_factory=dict)

    def get(self, path: str, *, port: int | None = None) -> bytes:
        """Return the body of a GET from the API server, or from another component's HTTPS port.

        Raises:
            OSError: nobody answers, or with an error.
        """
        base = self.url if port is None else f"https://127.0.0.1:{port}"
        request = urllib.request.Request(
            base + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        # Certificates are those that each component has made itself, on loopback.
        trusting = ssl._create_unverified_context()  # noqa: S323
        with urllib.request.urlopen(request, timeout=60, context=trusting) as answer:
            body: bytes = answer.read()
            return body

    def usage(self) -> dict[str, Usage]:
        """Return what each program has used so far."""
        found = {}
        for name, number in self.processes.items():
            process = psutil.Process(number)
            times = process.cpu_times()
            found[name] = Usage(
                cpu_seconds=times.user + times.system,
                resident_bytes=process.memory_info().rss,
            )
        return found


def certificates(folder: Path) -> None:
    """Write what the aggregation layer and service accounts need into `folder`."""
    authority = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    authority += ["-subj", "/CN=front-proxy-ca", "-keyout", "ca.key", "-out", "ca.crt"]
    request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=front-proxy-client"]
    request += ["-keyout", "client.key", "-out", "client.csr"]
    sign = ["openssl", "x509", "-req", "-in", "client.csr", "-CA", "ca.crt", "-CAkey", "ca.key"]
    sign += ["-CAcreateserial", "-days", "2", "-out", "client.crt"]
    accounts = ["openssl", "genrsa", "-out", "sa.key", "2048"]
    for command in (authority, request, sign, accounts):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


def kubeconfig(url: str, token: str, certificate: Path) -> str:
    """Return a kubeconfig that trusts the certificate that the API server makes for itself."""
    cluster = {"server": url, "certificate-authority": str(certificate)}
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "fleet", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": token}}],
            "contexts": [{"name": "fleet", "context": {"cluster": "fleet", "user": "admin"}}],
            "current-context": "fleet",
        }
    )


@contextlib.contextmanager
def program(folder: Path, name: str, command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one program until the block ends; its output goes to `folder`/NAME.log."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def running(folder: Path, *, sync_seconds: int = 15) -> Iterator[ControlPlane]:
    """Run a control plane with kwok until the block ends.

    Args:
        folder: for data, certificates and logs.
        sync_seconds: pause between two looks of the HPA controller.

    Raises:
        BinariesError: a program is not built and cannot be.
        TimeoutError: the API server does not get ready; see the logs in `folder`.
    """
    paths = binaries.ensure(PROGRAMS)
    certificates(folder)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    etcd, peer, port, controllers, scheduler = (free_port() for _ in range(5))
    url = f"https://127.0.0.1:{port}"
    config = folder / "kubeconfig"
    config.write_text(kubeconfig(url, token, folder / "apiserver" / "apiserver.crt"))
    here = Place(kubeconfig=config, push="", pull="", embedded=True)
    made = ControlPlane(
        place=here,
        programs=paths,
        folder=folder,
        url=url,
        controllers_port=controllers,
        token=token,
    )
    with contextlib.ExitStack() as stack:

        def start(name: str, command: Sequence[str]) -> None:
            made.processes[name] = stack.enter_context(program(folder, name, command)).pid

        start("etcd", _etcd(paths, etcd, peer))
        start("apiserver", _apiserver(paths, etcd, port))
        wait.until(lambda: _ready(here), seconds=90, every=0.5)
        start("controllers", _controllers(paths, config, controllers, sync_seconds))
        start("scheduler", _scheduler(paths, config, scheduler))
        start("kwok", _kwok(paths, config, folder))
        yield made


@contextlib.contextmanager
def state_metrics(plane: ControlPlane) -> Iterator[int]:
    """Run kube-state-metrics until the block ends; yield its loopback port."""
    port = free_port()
    command = [str(plane.programs["kube-state-metrics"]), "--host=127.0.0.1", f"--port={port}"]
    command += [f"--kubeconfig={plane.folder / 'kubeconfig'}", "--telemetry-host=127.0.0.1"]
    command += [f"--telemetry-port={free_port()}"]
    kinds = ("deployments", "horizontalpodautoscalers", "jobs", "nodes", "persistentvolumeclaims")
    command += [f"--resources={','.join([*kinds, 'pods', 'replicasets', 'statefulsets'])}"]
    with program(plane.folder, "kube-state-metrics", command) as process:
        plane.processes["kube-state-metrics"] = process.pid
        try:
            yield port
        finally:
            del plane.processes["kube-state-metrics"]


@contextlib.contextmanager
def adapter(
    plane: ControlPlane, prometheus: str, rules: Mapping[str, Any], *, name: str = "adapter"
) -> Iterator[int]:
    """Run a prometheus-adapter on loopback until the block ends; yield its HTTPS port.

    Args:
        plane: a running control plane.
        prometheus: base URL.
        rules: the adapter's configuration.
        name: tells it from another one.

    Raises:
        TimeoutError: it does not answer; see NAME.log.
    """
    port = free_port()
    config = plane.folder / "kubeconfig"
    file = plane.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(dict(rules), width=1000))
    options = {
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "cert-dir": name,
        "prometheus-url": prometheus,
        "config": file,
        "metrics-relist-interval": "5s",
        "metrics-max-age": "60s",
        "lister-kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
    }
    command = [str(plane.programs["prometheus-adapter"])]
    command += [f"--{key}={value}" for key, value in options.items()]
    with program(plane.folder, name, command) as process:
        plane.processes[name] = process.pid
        try:
            wait.until(lambda: bool(plane.get("/readyz", port=port)), seconds=60, every=0.5)
            yield port
        finally:
            del plane.processes[name]


def serve_metrics(plane: ControlPlane, port: int) -> None:
    """Put the adapter on a loopback port behind the API server, and wait until it answers there.

    The API server reaches it by a Service of the type ExternalName, because no pod network exists.

    Raises:
        TimeoutError: the API server gets no answer; see apiserver.log.
    """
    helm.run(plane.place, "kubectl", "apply", "-f", "-", stdin=_metrics_service(port))
    wait.until(lambda: bool(plane.get(f"/apis/{METRICS_API}/v1beta2")), seconds=60, every=0.5)


def _metrics_service(port: int) -> str:
    meta = {"name": "prometheus-adapter", "namespace": ADAPTER_NAMESPACE}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": {
            "type": "ExternalName",
            "externalName": "localhost",
            "ports": [{"port": port}],
        },
    }
    registration = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"v1beta2.{METRICS_API}"},
        "spec": {
            "group": METRICS_API,
            "version": "v1beta2",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {**meta, "port": port},
        },
    }
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": ADAPTER_NAMESPACE},
    }
    items = [namespace, service, registration]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def _etcd(paths: dict[str, Path], port: int, peer: int) -> list[str]:
    client, other = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    command = [str(paths["etcd"]), "--data-dir=etcd", "--unsafe-no-fsync", "--name=fleet"]
    command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={other}", f"--initial-advertise-peer-urls={other}"]
    return [*command, f"--initial-cluster=fleet={other}"]


def _apiserver(paths: dict[str, Path], etcd: int, port: int) -> list[str]:
    options = {
        "etcd-servers": f"http://127.0.0.1:{etcd}",
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "cert-dir": "apiserver",
        "token-auth-file": "tokens.csv",
        "authorization-mode": "AlwaysAllow",
        "service-cluster-ip-range": "198.19.128.0/17",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": "sa.key",
        "service-account-signing-key-file": "sa.key",
        "requestheader-client-ca-file": "ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": "client.crt",
        "proxy-client-key-file": "client.key",
        "endpoint-reconciler-type": "none",  # it would refuse to publish a loopback address
    }
    return [str(paths["kube-apiserver"]), *(f"--{name}={value}" for name, value in options.items())]


def _controllers(paths: dict[str, Path], config: Path, port: int, sync: int) -> list[str]:
    options = {
        "kubeconfig": config,
        "authentication-kubeconfig": config,
        "authorization-kubeconfig": config,
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "leader-elect": "false",
        "service-account-private-key-file": "sa.key",
        "horizontal-pod-autoscaler-sync-period": f"{sync}s",
    }
    name = "kube-controller-manager"
    return [str(paths[name]), *(f"--{key}={value}" for key, value in options.items())]


def _scheduler(paths: dict[str, Path], config: Path, port: int) -> list[str]:
    command = [str(paths["kube-scheduler"]), f"--kubeconfig={config}", "--leader-elect=false"]
    command += [f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}"]
    return [*command, "--bind-address=127.0.0.1", f"--secure-port={port}"]


def _kwok(paths: dict[str, Path], config: Path, folder: Path) -> list[str]:
    stages = folder / "stages.yaml"
    texts = [paths[name].read_text("utf-8") for name in ("kwok-ready.yaml", "kwok-heartbeat.yaml")]
    stages.write_text("\n---\n".join(texts), encoding="utf-8")
    command = [str(paths["kwok"]), f"--kubeconfig={config}", f"--config={stages}"]
    return [*command, "--manage-all-nodes=true", "--node-lease-duration-seconds=40"]


def _ready(here: Place) -> str:
    return helm.run(here, "kubectl", "get", "--raw=/readyz")
