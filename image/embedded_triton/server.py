"""A real tritonserver without Docker: the one inside the PyPI wheel `nvidia-pytriton`.

For one machine and for tests. The wheel is fetched once into the project's cache and laid out
there; the server runs with the Python that runs this module, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triton_hf.errors import TritonHFError
from triton_hf.runtime import cache_root

TRITON_VERSION = "2.51.0"
_REQUIREMENT = "nvidia-pytriton==0.7.0"
_WHEEL = "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl"
_WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
_TREE = Path("pytriton/tritonserver")
_LIBRARIES = Path("nvidia_pytriton.libs")


class EmbeddedError(TritonHFError):
    """The embedded Triton could not be fetched or started."""


def progress(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


# Fetching and layout.


def ensure_wheel() -> Path:
    """Return the wheel in the cache; download it (55 MB) the first time.

    Raises:
        EmbeddedError: pip cannot fetch it, or its content is not the expected one.
    """
    folder = cache_root() / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / _WHEEL
    if wheel.exists():
        return wheel
    progress(f"triton: downloading {_REQUIREMENT} (55 MB)")
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-cache-dir", "--disable-pip-version-check"]
        command += ["--only-binary=:all:", "--dest", partial, _REQUIREMENT]
        if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
            raise EmbeddedError(
                f"pip could not download {_REQUIREMENT}; see its message above, and check the "
                "network and pip's index settings"
            )
        fetched = Path(partial) / _WHEEL
        if not fetched.exists() or _sha256(fetched) != _WHEEL_SHA256:
            raise EmbeddedError(f"pip downloaded something else than {_WHEEL}; check its index")
        fetched.replace(wheel)
    return wheel


def ensure_tree() -> Path:
    """Return the folder with Triton for this Python's version, unpacked from the wheel once.

    Raises:
        EmbeddedError: The wheel has no part for this Python.
    """
    root = cache_root() / f"triton-{TRITON_VERSION}-{_WHEEL_SHA256[:8]}-py{_minor()}"
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.with_name(f".{root.name}.lock")):
        if root.exists():
            return root
        wheel = ensure_wheel()
        progress(f"triton: unpacking Triton {TRITON_VERSION} into {root}")
        partial = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            unpack(wheel, partial, python_minor=_minor())
            partial.chmod(0o755)
            partial.rename(root)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return root


def unpack(wheel: Path, into: Path, *, python_minor: str) -> None:
    """Unpack Triton in the layout of the wheel, with the stub of one Python version in place.

    Raises:
        EmbeddedError: The wheel has no stub for this Python version.
    """
    stub = _TREE / "python_backend_stubs" / python_minor / "triton_python_backend_stub"
    with zipfile.ZipFile(wheel) as archive:
        if str(stub) not in archive.namelist():
            raise EmbeddedError(
                f"Triton {TRITON_VERSION} has no part for Python {python_minor}; use Python 3.11"
            )
        for name in archive.namelist():
            inside = name.startswith((f"{_TREE}/", f"{_LIBRARIES}/"))
            if inside and "/python_backend_stubs/" not in name:
                archive.extract(name, into)
        target = into / _TREE / "backends/python/triton_python_backend_stub"
        target.write_bytes(archive.read(str(stub)))
    for binary in (target, into / _TREE / "bin/tritonserver"):
        binary.chmod(0o755)


def libpython_folder() -> Path | None:
    """Folder of the shared libpython of this Python; None where the system's loader knows it.

    Debian's Python is linked statically and its library is a package of its own, which is
    fetched into the cache when it is not installed.

    Raises:
        EmbeddedError: There is none, and it cannot be fetched.
    """
    name = f"libpython{_minor()}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    system = [Path("/usr/lib") / multiarch, Path("/usr/lib"), Path("/usr/lib64")]
    if sys.base_prefix == "/usr":
        if any((folder / name).exists() for folder in system):
            return None
        return _fetch_libpython(name)
    own = [Path(sys.base_prefix) / "lib", Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")]
    for folder in own:
        if (folder / name).exists():
            return folder
    raise EmbeddedError(
        f"{name} is missing: Python at {sys.base_prefix} was built without --enable-shared; "
        "use Debian's python3 or a shared build"
    )


def _fetch_libpython(name: str) -> Path:
    package = f"libpython{_minor()}"
    folder = cache_root() / package
    found = list(folder.glob(f"usr/lib/*/{name}"))
    if found:
        return found[0].parent
    progress(f"triton: downloading Debian's {package} (2 MB)")
    with tempfile.TemporaryDirectory() as partial:
        steps = (["apt-get", "download", package], ["dpkg-deb", "-x", "{deb}", str(folder)])
        for step in steps:
            debs = [str(path) for path in Path(partial).glob("*.deb")]
            command = [debs[0] if word == "{deb}" and debs else word for word in step]
            try:
                subprocess.run(command, check=True, cwd=partial, stdout=sys.stderr)
            except (OSError, subprocess.CalledProcessError):
                raise EmbeddedError(
                    f"{name} is missing: install it with 'apt-get install {package}'"
                ) from None
    return next(folder.glob(f"usr/lib/*/{name}")).parent


def _minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Running.


def stub_python(folder: Path, *, packages: Path | None = None) -> Path:
    """Write a Python environment for the stubs into `folder`; return its `bin`.

    Args:
        folder: Where it goes.
        packages: The site-packages of its packages; those of the Python that runs us when None.

    The stub looks for `python3` on PATH, reads the pyvenv.cfg beside it and ignores PYTHONPATH.
    So this environment is a link to the base Python and one .pth file, which adds this package
    and the packages of the Python that runs us.
    """
    into = folder / "lib" / f"python{_minor()}" / "site-packages"
    into.mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    base = Path(sys.base_prefix) / "bin" / f"python{_minor()}"
    for name in ("python3", "python"):
        link = folder / "bin" / name
        link.unlink(missing_ok=True)
        link.symlink_to(base)
    (folder / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    own = Path(__file__).resolve().parent.parent
    site = str(packages or sysconfig.get_path("purelib"))
    lines = [f"import site; site.addsitedir({site!r})", str(own)]
    (into / "triton_hf.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "bin"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ports:
    """Where a server listens."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


def free_ports() -> Ports:
    """Three loopback ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        http, grpc, metrics = (listener.getsockname()[1] for listener in sockets)
    return Ports(http=http, grpc=grpc, metrics=metrics)


def prepare(
    *,
    arguments: Sequence[str],
    ports: Ports,
    runtime: Path,
    address: str = "0.0.0.0",  # noqa: S104
    packages: Path | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a server.

    Args:
        arguments: More arguments of tritonserver, among them `--model-repository=...`.
        ports: Where it listens.
        runtime: Folder for its runtime files; made when missing.
        address: Address that it binds.
        packages: The site-packages of the models' Python; ours when None.
    """
    from triton_hf.cpu import apply_cpu_limits

    tree = ensure_tree() / _TREE
    runtime.mkdir(parents=True, exist_ok=True)
    python = stub_python(runtime / "python", packages=packages)
    environment = {**os.environ, "TRITON_HF_RUNTIME_DIR": str(runtime)}
    environment["PATH"] = f"{tree / 'bin'}:{python}:{os.environ.get('PATH', os.defpath)}"
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    if folder := libpython_folder():
        known = os.environ.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = f"{folder}:{known}" if known else str(folder)
    environment.update(apply_cpu_limits())
    command = [sys.executable, "-m", "triton_hf", "tritonserver", *arguments]
    command += [f"--backend-directory={tree / 'backends'}"]
    command += [f"--http-port={ports.http}", f"--grpc-port={ports.grpc}"]
    command += [f"--metrics-port={ports.metrics}"]
    command += [f"--http-address={address}", f"--grpc-address={address}"]
    command += [f"--metrics-address={address}"]
    return command, environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A running tritonserver."""

    process: subprocess.Popen[bytes]
    ports: Ports
    runtime: Path
    log: Path

    @property
    def url(self) -> str:
        """Base address of its HTTP port."""
        return f"http://127.0.0.1:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Address of its metrics."""
        return f"http://127.0.0.1:{self.ports.metrics}/metrics"

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8", errors="replace")

    def ready(self) -> bool:
        """Whether Triton says that all its models are ready."""
        return is_ready(self.ports.http)


def is_ready(port: int) -> bool:
    """Whether the Triton on this loopback port says that all its models are ready."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/v2/health/ready", timeout=2
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        return True
    return False


@contextlib.contextmanager
def running_server(
    *,
    arguments: Sequence[str],
    workdir: Path,
    environment: Mapping[str, str] | None = None,
    ports: Ports | None = None,
    packages: Path | None = None,
    wait_seconds: float = 120,
) -> Iterator[Server]:
    """Run a tritonserver on loopback until the block ends.

    Args:
        arguments: More arguments of tritonserver, among them `--model-repository=...`.
        workdir: Folder for the log (`server.log`) and the runtime files.
        environment: More environment variables.
        ports: Where it listens; free ports when not given.
        packages: The site-packages of the models' Python; ours when None.
        wait_seconds: How long it may take to be ready.

    Raises:
        EmbeddedError: It ended or was not ready in time; the message holds the end of its log.
    """
    ports = ports or free_ports()
    # The runtime folder holds Unix sockets, whose paths must be short.
    runtime = Path(tempfile.mkdtemp(prefix="triton-hf-"))
    log = workdir / "server.log"
    quick = ["--exit-timeout-secs=5", "--log-info=true"]
    command, base = prepare(
        arguments=[*arguments, *quick],
        ports=ports,
        runtime=runtime,
        address="127.0.0.1",
        packages=packages,
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**base, **(environment or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    server = Server(process=process, ports=ports, runtime=runtime, log=log)
    try:
        _wait_ready(server, wait_seconds)
        yield server
    finally:
        stop_group(process)
        shutil.rmtree(runtime, ignore_errors=True)


def _wait_ready(server: Server, seconds: float) -> None:
    end = time.monotonic() + seconds
    # Triton starts its metrics last, a moment after it is ready.
    while not (server.ready() and _listens(server.ports.metrics)):
        if server.process.poll() is not None:
            raise EmbeddedError(f"tritonserver ended at its start:\n{server.output()[-3000:]}")
        if time.monotonic() > end:
            raise EmbeddedError(
                f"tritonserver was not ready after {seconds:g} s:\n{server.output()[-3000:]}"
            )
        time.sleep(0.1)


def stop_group(process: subprocess.Popen[bytes], *, seconds: float = 15) -> int:
    """Stop a process that leads its own group: SIGTERM, then SIGKILL; return its exit status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
