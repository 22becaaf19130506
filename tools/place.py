"""Where things are: the repository, the cache, the cluster in use and its registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The folders in which Python finds this project; the Makefile exports the same.
SOURCES = (".", "image", "load_testing", "k8s-tests", "charts")
VERSION = "0.1.0"
NAMESPACE = "triton"
RELEASE = "triton"
LOAD_RELEASE = "load"
TOKEN_SECRET = "huggingface-token"  # noqa: S105
EMBEDDED_HUB = "http://hub.local:8080"


def python_path(root: Path = ROOT) -> str:
    """Return the PYTHONPATH with which a checkout's own modules are found."""
    return os.pathsep.join(str((root / name).resolve()) for name in SOURCES)


def cache() -> Path:
    """Return the folder that outlives a checkout: TRITON_CACHE, else below XDG_CACHE_HOME."""
    if named := os.environ.get("TRITON_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "triton-on-kubernetes"


def embedded_kubeconfig() -> Path:
    """Return where the embedded cluster writes its kubeconfig."""
    return cache() / "cluster" / "kubeconfig"


def foreign_kubeconfig() -> str | None:
    """Return KUBECONFIG (a file, or several with colons between) when it names another cluster."""
    named = os.environ.get("KUBECONFIG")
    if not named or Path(named) == embedded_kubeconfig():
        return None
    return named


@dataclass(frozen=True, kw_only=True)
class Place:
    """The cluster in use.

    Attributes:
        kubeconfig: file for kubectl and helm, or several with colons between.
        push: registry that this machine pushes to (host:port, or host/path).
        pull: the same registry as the cluster's nodes name it.
        embedded: whether the cluster is the one that this project builds.
    """

    kubeconfig: Path | str
    push: str
    pull: str
    embedded: bool

    def environment(self) -> dict[str, str]:
        """Return the environment in which kubectl and helm speak to this cluster."""
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": tool_path()}


def tool_path() -> str:
    """Return PATH with the folders of the kubectl and helm that were built here in front."""
    folders = sorted({str(p.parent) for p in cache().glob("bin/*/helm")})
    folders += sorted({str(p.parent) for p in cache().glob("bin/*/kubectl")})
    return os.pathsep.join([*folders, os.environ.get("PATH", "")])


def foreign(kubeconfig: str, *, registry: str = "") -> Place:
    """Return a cluster that is not ours."""
    return Place(kubeconfig=kubeconfig, push=registry, pull=registry, embedded=False)


def current() -> Place:
    """Return the cluster that KUBECONFIG names, else the embedded one.

    Raises:
        SystemExit: with one sentence, when a foreign cluster has no registry to pull from.
    """
    if named := foreign_kubeconfig():
        registry = os.environ.get("IMAGE_REGISTRY", "")
        if not registry:
            raise SystemExit(
                f"KUBECONFIG names another cluster ({named}); set IMAGE_REGISTRY to a registry "
                "that it can pull from (and add PUSH=1 to have the images pushed there)."
            )
        return foreign(named, registry=registry)
    status = json.loads(
        subprocess.run(
            [sys.executable, "-m", "cluster", "status", "--json"],
            check=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path()},
        ).stdout
    )
    return Place(
        kubeconfig=embedded_kubeconfig(),
        push=status["registry"]["push"],
        pull=status["registry"]["pull"],
        embedded=True,
    )
