"""Make the container images of the cluster out of built programs, without a container engine.

An image here is files of this machine put at paths of the image, so the archive is written
directly (OCI image layout in a tar, uncompressed, importable with `ctr images import`): about
a second each, no root, no build tool, and the same bytes from the same input. Programs that
are linked to libraries (iptables, curl) bring the libraries of this machine with them.

`archives(["etcd"])` returns where the archives are, making what the cache lacks.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path

from cluster import binaries
from tools.place import cache

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL_COMMANDS = (
    "sh cat chmod chown cp date df dd du echo env find grep head hostname id kill ls mkdir mktemp "
    "mount mv ps rm rmdir sed seq sleep sort stat sync tail tar test touch tr true umount wc"
)

# A file of an image: its content is a file of this machine, bytes, or a link's target.
Source = Path | bytes | str
Files = dict[str, Source]


class ImagesError(binaries.BinariesError):
    """An image cannot be made; the text says why and what to do."""


class PackageMissingError(ImagesError):
    """A Debian package that an image takes files from is not installed."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of an archive.

    Attributes:
        reference: its full name, as in a pod's `image`.
        layers: names of the archive's layers that it is made of, lowest first.
        entrypoint: its default command.
        user: who runs it, as "uid:gid".
    """

    reference: str
    layers: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    user: str = "0:0"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file that one import brings to a node: images that share layers.

    Attributes:
        name: what `archives` is asked for.
        images: the images in it.
        layers: name of each layer and what makes its files.
    """

    name: str
    images: tuple[Image, ...]
    layers: Mapping[str, Callable[[], Files]]


def archives(names: Iterable[str] | None = None) -> dict[str, Path]:
    """Return the tar of each named archive (all of them by default), making what is missing.

    Raises:
        ImagesError: when a name is unknown or a Debian package is not installed.
        binaries.BinariesError: when a program is missing and cannot be built.
    """
    wanted = list(ARCHIVES) if names is None else list(names)
    if unknown := sorted(set(wanted) - set(ARCHIVES)):
        raise ImagesError(f"there is no image archive {unknown[0]!r}; known: {sorted(ARCHIVES)}")
    return {name: _archive(ARCHIVES[name]) for name in wanted}


def references(names: Iterable[str] | None = None) -> list[str]:
    """Return the full names of all images of the named archives (all of them by default)."""
    wanted = ARCHIVES if names is None else names
    return [image.reference for name in wanted for image in ARCHIVES[name].images]


def _archive(archive: Archive) -> Path:
    layers = {name: make() for name, make in archive.layers.items()}
    recipe = [[vars(image) for image in archive.images], {n: _print(f) for n, f in layers.items()}]
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    final = cache() / "images" / f"{archive.name}-{key}.tar"
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{archive.name}-", dir=final.parent) as draft:
            _write_archive(archive, layers, Path(draft))
            (Path(draft) / "archive.tar").rename(final)
        for older in final.parent.glob(f"{archive.name}-{'?' * 12}.tar"):
            if older != final:
                older.unlink()
    return final


def _print(files: Files) -> list[tuple[str, str]]:
    """Return what tells one content from another, without reading large files."""
    prints = []
    for place, source in sorted(files.items()):
        if isinstance(source, Path):
            status = source.stat()
            prints.append((place, f"{source.resolve()} {status.st_size} {status.st_mtime_ns}"))
        elif isinstance(source, bytes):
            prints.append((place, hashlib.sha256(source).hexdigest()))
        else:
            prints.append((place, f"-> {source}"))
    return prints


def _write_archive(archive: Archive, layers: Mapping[str, Files], folder: Path) -> None:
    """Write folder/archive.tar: blobs named by their hash, and an index of the images."""
    blobs: dict[str, Path | bytes] = {}
    digests: dict[str, str] = {}
    for name, files in layers.items():
        path = folder / f"layer-{name}"
        _write_layer(files, path)
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        blobs[digests[name]] = path
    manifests = []
    for image in archive.images:
        config = _blob(blobs, _config(image, [digests[name] for name in image.layers]))
        stack = [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": f"sha256:{digests[name]}",
                "size": (folder / f"layer-{name}").stat().st_size,
            }
            for name in image.layers
        ]
        kind = "application/vnd.oci.image.manifest.v1+json"
        config["mediaType"] = "application/vnd.oci.image.config.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": stack}
        entry = {**_blob(blobs, manifest), "mediaType": kind}
        entry["platform"] = {"architecture": ARCHITECTURE, "os": "linux"}
        entry["annotations"] = {
            "io.containerd.image.name": image.reference,
            "org.opencontainers.image.ref.name": image.reference,
        }
        manifests.append(entry)
    with tarfile.open(folder / "archive.tar", "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())
        for digest, content in blobs.items():
            _add(tar, f"blobs/sha256/{digest}", content)


def _config(image: Image, digests: Sequence[str]) -> dict[str, object]:
    settings: dict[str, object] = {"Env": [f"PATH={SEARCH_PATH}"], "User": image.user}
    if image.entrypoint:
        settings["Entrypoint"] = list(image.entrypoint)
    return {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }


def _blob(blobs: dict[str, Path | bytes], value: object) -> dict[str, object]:
    content = json.dumps(value, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"digest": f"sha256:{digest}", "size": len(content)}


def _write_layer(files: Files, path: Path) -> None:
    """Write the files as a tar with their folders, all owned by root and without times."""
    folders = {
        str(folder)
        for place in files
        for folder in Path(place.lstrip("/")).parents
        if str(folder) != "."
    }
    with tarfile.open(path, "w") as tar:
        for folder in sorted(folders | {"tmp"}):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        for place, source in sorted(files.items()):
            _add(tar, place.lstrip("/"), source)


def _add(tar: tarfile.TarFile, name: str, source: Source) -> None:
    entry = tarfile.TarInfo(name)
    if isinstance(source, str):
        entry.type = tarfile.SYMTYPE
        entry.linkname = source
        entry.mode = 0o777
        tar.addfile(entry)
    elif isinstance(source, bytes):
        entry.size = len(source)
        tar.addfile(entry, io.BytesIO(source))
    else:
        entry.size = source.stat().st_size
        entry.mode = 0o755 if os.access(source, os.X_OK) else 0o644
        with source.open("rb") as file:
            tar.addfile(entry, file)


def _built(name: str) -> Path:
    return binaries.ensure([name])[name]


def _program(name: str, *, folder: str = "/usr/local/bin") -> Callable[[], Files]:
    return lambda: {f"{folder}/{name}": _built(name)}


def _kubernetes() -> Files:
    files: Files = {"/usr/local/bin/kube": _built("kube")}
    component = binaries.select(["kube"])[0]
    return {**files, **{f"/usr/local/bin/{link}": "kube" for link in component.links}}


def _packet_filter() -> Files:
    """Return iptables, ipset and conntrack of this machine with every module of iptables.

    iptables is linked to where this machine's alternatives point, so all programs of a node
    (the CNI plugins of the machine, too) use one back end of the kernel.
    """
    files: Files = {}
    for family in ("iptables", "ip6tables"):
        for suffix in ("", "-save", "-restore"):
            command = _command(f"{family}{suffix}", package="iptables")
            files[f"/usr/sbin/{family}{suffix}"] = command.name
            files[f"/usr/sbin/{command.name}"] = command
    for name in ("ipset", "conntrack"):
        files[f"/usr/sbin/{name}"] = _command(name, package=name)
    for module in sorted(Path("/usr/lib").glob("*/xtables/*.so")):
        files[str(module)] = module
    if (protocols := Path("/etc/protocols")).exists():
        files[str(protocols)] = protocols
    return {**files, **_libraries(source for source in files.values() if isinstance(source, Path))}


def _shell() -> Files:
    files: Files = {"/bin/busybox": _command("busybox", package="busybox-static")}
    return {**files, **{f"/bin/{name}": "busybox" for name in SHELL_COMMANDS.split()}}


def _curl() -> Files:
    """Return curl with its libraries and what it needs to look up names and check servers."""
    curl = _command("curl", package="curl")
    files: Files = {"/usr/bin/curl": curl, **_libraries([curl])}
    # glibc loads these by name, so they show in no list of libraries.
    for library in ("libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2"):
        for found in Path("/lib").glob(f"*-linux-gnu/{library}"):
            files[str(found)] = found.resolve()
    files["/etc/nsswitch.conf"] = b"hosts: files dns\n"
    return files


def _command(name: str, *, package: str) -> Path:
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH_PATH}")
    if found is None:
        raise PackageMissingError(
            f"{name} is not installed, and an image needs it: apt-get install {package}"
        )
    return Path(found).resolve()


def _libraries(programs: Iterable[Path]) -> Files:
    """Return the libraries and the loader that programs are linked to, at their own paths."""
    files: Files = {}
    for program in programs:
        for library in _linked(program):
            files[library] = Path(library).resolve()
    return files


@remember
def _linked(program: Path) -> tuple[str, ...]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True)
    return tuple(re.findall(r"(?:=> )?(/\S+) \(0x", listed.stdout))


def _own(name: str, version: str) -> str:
    """Return the full name of an image that exists nowhere but on our nodes."""
    return f"localhost/{name}:{version}"


def _single(name: str, reference: str) -> Archive:
    image = Image(reference=reference, layers=("program",), entrypoint=(f"/usr/local/bin/{name}",))
    return Archive(name=name, images=(image,), layers={"program": _program(name)})


KUBE_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")

ARCHIVES: Mapping[str, Archive] = {
    archive.name: archive
    for archive in (
        Archive(
            name="kubernetes",
            layers={"kube": _kubernetes, "packet-filter": _packet_filter},
            images=(
                *(
                    Image(
                        reference=f"registry.k8s.io/{name}:{binaries.KUBERNETES}",
                        layers=("kube",),
                        entrypoint=(f"/usr/local/bin/{name}",),
                    )
                    for name in KUBE_PROGRAMS
                ),
                Image(
                    reference=f"registry.k8s.io/kube-proxy:{binaries.KUBERNETES}",
                    layers=("kube", "packet-filter"),
                    entrypoint=("/usr/local/bin/kube-proxy",),
                ),
            ),
        ),
        _single("etcd", "registry.k8s.io/etcd:3.6.6-0"),
        _single("coredns", "registry.k8s.io/coredns/coredns:v1.13.1"),
        _single("pause", "registry.k8s.io/pause:3.10.1"),
        Archive(
            name="kube-router",
            layers={"program": _program("kube-router"), "packet-filter": _packet_filter},
            images=(
                Image(
                    reference=_own("kube-router", "v2.2.1"),
                    layers=("packet-filter", "program"),
                    entrypoint=("/usr/local/bin/kube-router",),
                ),
            ),
        ),
        _single("local-path-provisioner", _own("local-path-provisioner", "v0.0.30")),
        _single("traefik", _own("traefik", "v3.6.12")),
        # The operator starts the reloader as /bin/prometheus-config-reloader.
        Archive(
            name="prometheus-operator",
            layers={
                "operator": _program("prometheus-operator"),
                "reloader": _program("prometheus-config-reloader", folder="/bin"),
            },
            images=(
                Image(
                    reference=_own("prometheus-operator", "v0.85.0"),
                    layers=("operator",),
                    entrypoint=("/usr/local/bin/prometheus-operator",),
                    user="65532:65532",
                ),
                Image(
                    reference=_own("prometheus-config-reloader", "v0.85.0"),
                    layers=("reloader",),
                    entrypoint=("/bin/prometheus-config-reloader",),
                    user="65532:65532",
                ),
            ),
        ),
        _single("prometheus-adapter", _own("prometheus-adapter", "v0.12.0")),
        _single("prometheus", _own("prometheus", "v3.16.0")),
        _single("kube-state-metrics", _own("kube-state-metrics", "v2.18.0")),
        Archive(
            name="keda",
            layers={"operator": _program("keda-operator"), "adapter": _program("keda-adapter")},
            images=tuple(
                Image(
                    reference=_own(f"keda-{name}", "v2.21.0"),
                    layers=(name,),
                    entrypoint=(f"/usr/local/bin/keda-{name}",),
                    user="65532:65532",
                )
                for name in ("operator", "adapter")
            ),
        ),
        Archive(
            name="curl",
            layers={"shell": _shell, "curl": _curl},
            images=(
                Image(reference=_own("busybox", "1"), layers=("shell",), entrypoint=("/bin/sh",)),
                Image(reference=_own("curl", "1"), layers=("shell", "curl")),
            ),
        ),
    )
}

# What the nodes of each kind need before kubeadm runs on them.
EVERY_NODE = ("pause", "kubernetes", "kube-router")
CONTROL_PLANE = (*EVERY_NODE, "etcd", "coredns")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the archives that the command line names and print name and path of each."""
    parser = argparse.ArgumentParser(
        prog="python3 -m cluster.images", description="Make the images of the cluster."
    )
    parser.add_argument("names", nargs="*", help="archives; all of them by default")
    options = parser.parse_args(arguments)
    try:
        made = archives(options.names or None)
    except binaries.BinariesError as error:
        print(f"images: {error}", file=sys.stderr)
        return error.exit_code
    for name, path in made.items():
        print(f"{name}\t{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
