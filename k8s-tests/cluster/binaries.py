"""Build the programs of the embedded cluster from pinned Go modules, once.

`ensure(["kubelet", "helm"])` returns the paths of programs, and builds what the cache lacks:
each component is a folder in components/ with its go.mod and go.sum, and its result a folder
in the cache whose name holds a hash of all that decides the result. Modules and compiled
packages live in a Go cache of their own that is removed when a build has ended well, so what
stays is the programs; after a kill it is still there, and the next build goes on from it.

Usage: python3 -m cluster.binaries [--list] [--nice N] [component or program or group ...]
Exit codes: 0 all there, 1 a build failed, 2 something is missing on this machine.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tools.place import cache

COMPONENTS_DIR = Path(__file__).parent / "components"
PROGRESS_SECONDS = 8.0  # longest silence of a build
GIGABYTE = 1e9

# Debugging tables would be dropped by the linker (-s -w), so the compiler writes none.
COMPILER_FLAGS = "-gcflags=all=-dwarf=false"
LINKER_FLAGS = "-s -w"


class BinariesError(Exception):
    """A program cannot be built; the text says why and what to do."""

    exit_code = 1


class MissingError(BinariesError):
    """This machine lacks something that the build needs; nothing was changed."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Component:
    """What one folder of components/ builds.

    Attributes:
        name: the folder.
        programs: name of each program and the Go package that it is made from.
        links: further names of a program that is several in one.
        files: files kept from the modules, as name in the result -> (module, glob below it).
        variables: string variables set by the linker.
        tags: Go build tags.
        stand_ins: packages of modules that a folder in stand-ins/ takes the place of.
        disk_gigabytes: room that modules, compiled packages and result take, measured.
    """

    name: str
    programs: Mapping[str, str]
    links: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    stand_ins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    disk_gigabytes: float = 2.0

    @property
    def folder(self) -> Path:
        """Return the folder with go.mod and go.sum."""
        return COMPONENTS_DIR / self.name

    @property
    def names(self) -> list[str]:
        """Return the names under which its programs and kept files can be asked for."""
        return [*self.programs, *self.links, *self.files]


KUBERNETES = "v1.35.4"
_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
_VERSION = "k8s.io/component-base/version."

# In the order of the cold start: what the cluster's first node waits for comes first.
COMPONENTS: tuple[Component, ...] = (
    Component(
        name="kubernetes",
        programs={"kube": "."},
        links={
            name: "kube"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "kubelet",
                "kubeadm",
                "kubectl",
            )
        },
        variables={
            f"{_VERSION}gitVersion": KUBERNETES,
            f"{_VERSION}gitMajor": "1",
            f"{_VERSION}gitMinor": "35",
        },
        disk_gigabytes=5.0,
    ),
    Component(name="etcd", programs={"etcd": "go.etcd.io/etcd/server/v3"}),
    Component(name="coredns", programs={"coredns": "."}),
    Component(
        name="kube-router",
        programs={"kube-router": "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
    ),
    Component(
        name="local-path-provisioner",
        programs={"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
    ),
    Component(name="pause", programs={"pause": "."}, disk_gigabytes=0.2),
    Component(name="device-plugin", programs={"device-plugin": "."}, disk_gigabytes=0.5),
    Component(name="helm", programs={"helm": "helm.sh/helm/v4/cmd/helm"}, disk_gigabytes=3.0),
    Component(
        name="traefik",
        programs={"traefik": "github.com/traefik/traefik/v3/cmd/traefik"},
        files={
            "gateway-api-crds.yaml": (
                "sigs.k8s.io/gateway-api",
                "config/crd/standard/gateway.networking.k8s.io_*.yaml",
            )
        },
        stand_ins={
            "github.com/go-acme/lego/v4": ("providers/dns",),
            "github.com/traefik/traefik/v3": ("pkg/provider/ecs",),
        },
        disk_gigabytes=7.0,
    ),
    Component(
        name="kubeconform",
        programs={"kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform"},
        disk_gigabytes=0.5,
    ),
    # From here on: parts that `up` brings only when it is asked for them.
    Component(
        name="prometheus-operator",
        programs={
            "prometheus-operator": f"{_OPERATOR}/cmd/operator",
            "prometheus-config-reloader": f"{_OPERATOR}/cmd/prometheus-config-reloader",
        },
        # All that its Prometheus controller reads; no Alertmanager and no Thanos here.
        files={
            "prometheus-operator-crds.yaml": (
                _OPERATOR,
                "example/prometheus-operator-crd/monitoring.coreos.com_[ps]*.yaml",
            )
        },
        variables={"github.com/prometheus/common/version.Version": "0.85.0"},
    ),
    Component(name="prometheus-adapter", programs={"prometheus-adapter": "."}),
    Component(
        name="prometheus",
        programs={
            name: f"github.com/prometheus/prometheus/cmd/{name}"
            for name in ("prometheus", "promtool")
        },
        variables={"github.com/prometheus/common/version.Version": "3.16.0"},
        tags=("remove_all_sd", "enable_kubernetes_sd"),
        disk_gigabytes=4.0,
    ),
    Component(
        name="kube-state-metrics",
        programs={"kube-state-metrics": "k8s.io/kube-state-metrics/v2"},
        variables={"github.com/prometheus/common/version.Version": "2.18.0"},
    ),
    Component(
        name="keda",
        programs={
            f"keda-{name}": f"github.com/kedacore/keda/v2/cmd/{name}"
            for name in ("operator", "adapter")
        },
        files={"keda-crds.yaml": ("github.com/kedacore/keda/v2", "config/crd/bases/*.yaml")},
        variables={"github.com/kedacore/keda/v2/version.Version": "2.21.0"},
        disk_gigabytes=7.0,
    ),
    # Nodes that exist in the API only, for simulations of many.
    Component(
        name="kwok",
        programs={"kwok": "sigs.k8s.io/kwok/cmd/kwok"},
        # It does what its stages say; these make nodes and pods ready at once.
        files={
            "kwok-ready.yaml": ("sigs.k8s.io/kwok", "kustomize/stage/[np]od*/fast/*-*.yaml"),
            "kwok-heartbeat.yaml": (
                "sigs.k8s.io/kwok",
                "kustomize/stage/node/heartbeat-with-lease/node-*.yaml",
            ),
        },
    ),
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "core": (
        "kubernetes",
        "etcd",
        "coredns",
        "kube-router",
        "local-path-provisioner",
        "pause",
        "device-plugin",
        "helm",
        "traefik",
        "kubeconform",
    ),
    "monitoring": (
        "prometheus-operator",
        "prometheus-adapter",
        "prometheus",
        "kube-state-metrics",
    ),
    "keda": ("keda",),
}


def ensure(names: Iterable[str], *, nice: int = 0, keep_caches: bool = False) -> dict[str, Path]:
    """Return the paths of everything that the named components hold, building what is missing.

    While another process builds, this waits for what it was asked for and returns as soon as
    that is there, even if the other has more to do.

    Args:
        names: components, programs or groups (see `python3 -m cluster.binaries --list`).
        nice: lowers the priority of the build; 0 to 19.
        keep_caches: leave modules and compiled packages for a build that follows.

    Raises:
        MissingError: when Go or disk space is missing; nothing was changed.
        BinariesError: when a name is unknown or a build fails.
    """
    wanted = select(names)
    missing = [component for component in wanted if not is_built(component)]
    if missing:
        check_machine(missing)
        with _turn(missing) as mine:
            if mine:
                _build_all(missing, nice=nice)
                if not keep_caches:
                    remove_caches()
    return {name: path for component in wanted for name, path in paths(component).items()}


def select(names: Iterable[str]) -> list[Component]:
    """Return the components that hold these names, in the order in which they are built.

    Raises:
        BinariesError: for a name that is no component, program or group.
    """
    chosen: set[str] = set()
    for name in names:
        found = set(GROUPS.get(name, ())) or {
            c.name for c in COMPONENTS if name == c.name or name in c.names
        }
        if not found:
            known = sorted({*GROUPS, *(c.name for c in COMPONENTS)})
            raise BinariesError(f"there is no component or program {name!r}; known: {known}")
        chosen |= found
    return [component for component in COMPONENTS if component.name in chosen]


def path(name: str) -> Path:
    """Return where a program is, or will be once it is built."""
    return paths(select([name])[0])[name]


def paths(component: Component) -> dict[str, Path]:
    """Return where the programs and files of a component are once it is built."""
    folder = result_folder(component)
    return {name: folder / name for name in component.names}


def is_built(component: Component) -> bool:
    """Return whether the cache holds this component as its files describe it now."""
    return result_folder(component).is_dir()


def result_folder(component: Component) -> Path:
    """Return the folder of the result; its name changes with everything that decides it.

    On a machine without Go the result of any Go counts, so a cache filled elsewhere is usable.
    """
    sources = source_key(component)
    series = cache() / "bin"
    if (go := go_version()) is None:
        found = sorted(series.glob(f"{component.name}-*/build.json"))
        for record in reversed(found):
            if json.loads(record.read_text())["sources"] == sources:
                return record.parent
    key = hashlib.sha256(f"{sources} {go}".encode()).hexdigest()[:12]
    return series / f"{component.name}-{key}"


def source_key(component: Component) -> str:
    """Return a hash of the sources and the flags of a component."""
    recipe = [
        sorted(component.programs.items()),
        sorted(component.links.items()),
        sorted(component.files.items()),
        _build_flags(component),
    ]
    digest = hashlib.sha256(json.dumps(recipe).encode())
    for file in sorted(component.folder.rglob("*")):
        if file.name in ("go.mod", "go.sum") or file.suffix == ".go":
            name = file.relative_to(component.folder)
            digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def go_program() -> str | None:
    """Return the path of the go command, None where there is none."""
    return shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")


@functools.cache
def go_version() -> str | None:
    """Return the version of Go as it names itself ("go1.26.8"), None without Go."""
    if (go := go_program()) is None:
        return None
    return subprocess.run(
        [go, "env", "GOVERSION"], check=True, capture_output=True, text=True, env=_environment()
    ).stdout.strip()


def check_machine(components: Sequence[Component]) -> None:
    """Check that Go and disk space for a build are there, and change nothing.

    Raises:
        MissingError: naming what is missing, how much of it, and where to get it.
    """
    check_toolchain(components)
    room = room_gigabytes(components)
    free = shutil.disk_usage(_existing(cache())).free / GIGABYTE
    if free < room:
        raise MissingError(
            f"{room:.0f} GB of free disk are needed below {cache()} to build {_listed(components)},"
            f" and {free:.1f} GB are there: free some, or set TRITON_CACHE to a folder on another "
            "disk."
        )


def check_toolchain(components: Sequence[Component]) -> None:
    """Check that a Go is there that builds all of these.

    Raises:
        MissingError: naming the version that is needed and where to get it.
    """
    check_go(_listed(components), max((_go_needed(c) for c in components), key=_version_tuple))


def room_gigabytes(components: Sequence[Component]) -> float:
    """Return the free disk that a build of these takes, less what an earlier one left."""
    whole = sum(component.disk_gigabytes for component in components)
    return max(0.0, whole - _gigabytes_in(cache_folder()))


def _listed(components: Sequence[Component]) -> str:
    return ", ".join(component.name for component in components)


def check_go(what: str, needed: str) -> None:
    """Check that Go is there and new enough to make something.

    Raises:
        MissingError: naming the version that is needed and where to get it.
    """
    version = go_version()
    get_it = "install it from https://go.dev/dl/ and put it on PATH (Debian's own is too old)"
    if version is None:
        raise MissingError(f"Go {needed} or newer is needed to build {what}: {get_it}.")
    if _version_tuple(version) < _version_tuple(needed):
        raise MissingError(
            f"Go {needed} or newer is needed to build {what}, this is {version}: {get_it}."
        )


def remove_caches() -> None:
    """Remove the downloaded modules and the compiled packages; programs stay."""
    shutil.rmtree(cache_folder(), ignore_errors=True)


def cache_folder() -> Path:
    """Return the folder of downloaded modules and compiled packages; it comes and goes."""
    return cache() / "go"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _gigabytes_in(folder: Path) -> float:
    """Return what a folder takes on disk, 0 when it is not there."""
    if not folder.is_dir():
        return 0.0
    listing = subprocess.run(
        ["du", "-sk", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
    return int(listing.split()[0]) * 1024 / GIGABYTE if listing else 0.0


def _go_needed(component: Component) -> str:
    text = (component.folder / "go.mod").read_text()
    found = re.search(r"^go (\S+)$", text, re.MULTILINE)
    if found is None:
        raise BinariesError(f"{component.folder}/go.mod names no Go version")
    return found[1]


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _build_flags(component: Component) -> list[str]:
    variables = "".join(f" -X {name}={value}" for name, value in component.variables.items())
    flags = [COMPILER_FLAGS, f"-ldflags={LINKER_FLAGS}{variables}"]
    return [*flags, f"-tags={','.join(component.tags)}"] if component.tags else flags


def _environment() -> dict[str, str]:
    """Return the environment of a build: the caller's proxy settings, our own caches."""
    return {
        **os.environ,
        "GOMODCACHE": str(cache_folder() / "mod"),
        "GOCACHE": str(cache_folder() / "build"),
        # -modcacherw: the module cache can be removed by whoever filled it.
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false -trimpath",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        # The compiler's own memory is small beside the machine's: collect less often.
        "GOGC": "400",
    }


@contextmanager
def _turn(components: Sequence[Component]) -> Iterator[bool]:
    """Give True when it is our turn to build, False once another process has built all."""
    cache().mkdir(parents=True, exist_ok=True)
    start = spoken = time.monotonic()
    with (cache() / "go.lock").open("w") as lock:
        while not all(is_built(component) for component in components):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() - spoken > PROGRESS_SECONDS:
                    spoken = time.monotonic()
                    names = ", ".join(c.name for c in components if not is_built(c))
                    say(f"waiting for {names}, which another process builds", start)
                time.sleep(0.5)
            else:
                yield True
                return
        yield False


def _build_all(components: Sequence[Component], *, nice: int) -> None:
    for component in components:
        if not is_built(component):
            _build(component, nice=nice)


def _build(component: Component, *, nice: int) -> None:
    """Build one component and publish its folder in one rename."""
    start = time.monotonic()
    final = result_folder(component)
    final.parent.mkdir(parents=True, exist_ok=True)
    run = functools.partial(_run, component, start=start, nice=nice)
    with tempfile.TemporaryDirectory(prefix=f".{component.name}-", dir=final.parent) as draft:
        folder = Path(draft) / "result"
        folder.mkdir()
        flags = [*_build_flags(component), *_stand_in_flags(component, Path(draft))]
        listed = run(["list", "-deps", *flags, *component.programs.values()], "fetching modules")
        for program, package in component.programs.items():
            words = ["build", "-v", *flags, "-o", str(folder / program), package]
            run(words, "compiling", total=len(listed.splitlines()))
        _keep_files(component, folder)
        for link, program in component.links.items():
            (folder / link).symlink_to(program)
        seconds = time.monotonic() - start
        record = {"sources": source_key(component), "go": go_version(), "seconds": round(seconds)}
        (folder / "build.json").write_text(json.dumps(record) + "\n")
        folder.rename(final)
    _prune(component)
    say(f"{component.name}: built", start)


def _prune(component: Component) -> None:
    """Keep the two newest results: the one of this checkout and the one before it."""
    found = (cache() / "bin").glob(f"{component.name}-{'?' * 12}")
    for older in sorted(found, key=lambda folder: folder.stat().st_mtime)[:-2]:
        shutil.rmtree(older, ignore_errors=True)


def _stand_in_flags(component: Component, draft: Path) -> list[str]:
    """Copy the modules that have a package exchanged, and return the flag that builds with them.

    Go lets no file of its module cache be replaced, but a whole module by a folder.
    """
    if not component.stand_ins:
        return []
    lines = [(component.folder / "go.mod").read_text()]
    for module, packages in component.stand_ins.items():
        copy = draft / "modules" / module
        shutil.copytree(module_folder(module, component.folder), copy)
        for package in packages:
            shutil.rmtree(copy / package)
            shutil.copytree(component.folder / "stand-ins" / module / package, copy / package)
        lines.append(f"replace {module} => {copy}\n")
    (draft / "build.mod").write_text("".join(lines))
    shutil.copyfile(component.folder / "go.sum", draft / "build.sum")
    return [f"-modfile={draft / 'build.mod'}"]


def _keep_files(component: Component, folder: Path) -> None:
    """Copy what the component keeps of its modules; several files become one YAML stream."""
    for name, (module, pattern) in component.files.items():
        found = sorted(glob.glob(str(module_folder(module, component.folder) / pattern)))
        if not found:
            raise BinariesError(f"{component.name}: module {module} holds no {pattern}")
        parts = [Path(file).read_text().removeprefix("---\n") for file in found]
        (folder / name).write_text("---\n".join(parts))


def module_folder(module: str, folder: Path) -> Path:
    """Return where the module cache holds a module at the version that a go.mod pins.

    Raises:
        BinariesError: when it cannot be had.
    """
    return Path(_download(module, folder)["Dir"])


def download(module: str, version: str, checksum: str) -> Path:
    """Return where the module cache holds a module, downloading it if needed.

    Args:
        module: its path.
        version: exactly that version.
        checksum: its hash as a go.sum has it ("h1:...").

    Raises:
        BinariesError: when it cannot be had, or is not what the hash says.
    """
    found = _download(f"{module}@{version}", _existing(cache()))
    if found["Sum"] != checksum:
        raise BinariesError(f"{module} {version} is not the pinned one: its hash is {found['Sum']}")
    return Path(found["Dir"])


def _download(module: str, folder: Path) -> dict[str, str]:
    words = [str(go_program()), "mod", "download", "-json", module]
    done = subprocess.run(words, cwd=folder, env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise BinariesError(f"module {module} cannot be had: {done.stdout}{done.stderr}".strip())
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _run(
    component: Component,
    words: Sequence[str],
    doing: str,
    *,
    start: float,
    nice: int,
    total: int = 0,
) -> str:
    """Run one go command with progress lines; return its output.

    Raises:
        BinariesError: with the last lines of its log, when it fails.
    """
    log = cache() / "logs" / f"build-{component.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [*(["nice", "-n", str(nice)] if nice else []), str(go_program()), *words],
        cwd=component.folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the compilers it starts can be ended with it
    )
    output: list[str] = []
    lines: list[str] = []
    readers = [
        threading.Thread(target=output.extend, args=(child.stdout,)),
        threading.Thread(target=lines.extend, args=(child.stderr,)),
    ]
    try:
        for reader in readers:
            reader.start()
        _watch(child, lambda: _progress(component, doing, lines, total), start)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
        for reader in readers:
            if reader.is_alive():  # a signal may come before the second one was started
                reader.join()
        log.write_text("".join(lines))
    if child.wait():
        last = "".join(line for line in lines[-8:])
        raise BinariesError(f"{component.name}: {doing} failed; whole log: {log}\n{last}".rstrip())
    return "".join(output)


def _watch(child: subprocess.Popen[str], progress: Callable[[], str], start: float) -> None:
    while True:
        try:
            child.wait(PROGRESS_SECONDS)
        except subprocess.TimeoutExpired:
            say(progress(), start)
        else:
            return


def _progress(component: Component, doing: str, lines: Sequence[str], total: int) -> str:
    if not total:
        return f"{component.name}: {doing}, {len(lines)} downloads"
    last = lines[-1].strip() if lines else "using what the cache has"
    if last in {f"cluster/{component.name}", *component.programs.values()}:
        return f"{component.name}: linking"
    return f"{component.name}: {doing}, {len(lines)} of at most {total} packages, {last}"


def say(line: str, start: float) -> None:
    """Print a progress line with the seconds since a start (time.monotonic()) to stderr."""
    print(f"{line} ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line names and print the paths, one name and path a line."""
    parser = argparse.ArgumentParser(
        prog="python3 -m cluster.binaries", description="Build the programs of the cluster."
    )
    parser.add_argument("names", nargs="*", default=["core"], help="component, program or group")
    parser.add_argument("--list", action="store_true", help="show what there is, build nothing")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority, 0 to 19")
    parser.add_argument("--keep-caches", action="store_true", help="leave the Go caches")
    options = parser.parse_args(arguments)
    if options.list:
        for component in COMPONENTS:
            state = "built" if is_built(component) else "missing"
            print(f"{component.name:24} {state:8} {result_folder(component)}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = ensure(options.names, nice=options.nice, keep_caches=options.keep_caches)
    except BinariesError as error:
        print(f"binaries: {error}", file=sys.stderr)
        return error.exit_code
    for name, where in found.items():
        print(f"{name}\t{where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
