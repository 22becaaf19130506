"""A Kubernetes without nodes on loopback: etcd, API server, scheduler, controllers, adapter.

kwok plays the kubelets, so hundreds of nodes cost nothing but their objects. It is apart from the
cluster of `make up` and holds nothing that another test could disturb.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster import binaries
from support import wait
from support.place import Place
from support.prometheus import free_port

PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok"),
    *("helm", "prometheus", "prometheus-adapter"),
)
GROUPS = "custom.metrics.k8s.io"


@dataclass(frozen=True, kw_only=True)
class ControlPlane:
    """What runs, and how to reach it.

    Attributes:
        place: for kubectl and helm.
        programs: paths of the programs by name.
        folder: where logs and certificates are.
        controllers_port: HTTPS port of the controller manager, with its metrics.
        token: lets in everywhere.
    """

    place: Place
    programs: dict[str, Path]
    folder: Path
    url: str
    controllers_port: int
    token: str


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


def kubeconfig(url: str, token: str) -> str:
    """Return a kubeconfig that trusts whatever certificate the API server has made itself."""
    cluster = {"server": url, "insecure-skip-tls-verify": True}
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
    config.write_text(kubeconfig(url, token))
    here = Place(kubeconfig=config, push="", pull="", embedded=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(program(folder, "etcd", _etcd(paths, etcd, peer)))
        stack.enter_context(program(folder, "apiserver", _apiserver(paths, etcd, port)))
        wait.until(lambda: _ready(here, paths), seconds=90, every=0.5)
        for name, command in (
            ("controllers", _controllers(paths, config, controllers, sync_seconds)),
            ("scheduler", _scheduler(paths, config, scheduler)),
            ("kwok", [str(paths["kwok"]), f"--kubeconfig={config}", "--manage-all-nodes=true"]),
        ):
            stack.enter_context(program(folder, name, command))
        yield ControlPlane(
            place=here,
            programs=paths,
            folder=folder,
            url=url,
            controllers_port=controllers,
            token=token,
        )


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
        # 400 pods at the default 20 requests a second would measure the limit of the client.
        "kube-api-qps": 200,
        "kube-api-burst": 400,
    }
    name = "kube-controller-manager"
    return [str(paths[name]), *(f"--{key}={value}" for key, value in options.items())]


def _scheduler(paths: dict[str, Path], config: Path, port: int) -> list[str]:
    command = [str(paths["kube-scheduler"]), f"--kubeconfig={config}", "--leader-elect=false"]
    command += [f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}"]
    return [*command, "--bind-address=127.0.0.1", f"--secure-port={port}"]


def _ready(here: Place, paths: dict[str, Path]) -> bool:
    command = [str(paths["kubectl"]), "get", "--raw=/readyz"]
    return (
        subprocess.run(command, env=here.environment(), capture_output=True, check=False).returncode
        == 0
    )


def answers(url: str) -> bool:
    """Whether something answers a plain GET with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False
