"""A real tritonserver without Docker: the one inside the PyPI wheel `nvidia-pytriton`.

For one machine and for tests. The wheel is fetched once into the project's cache and laid out
there; the server runs with the Python that runs this module, in an environment of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from embedded_triton.fetch import TREE, EmbeddedError, ensure_tree, libpython_folder, own_minor


def stub_python(folder: Path, *, packages: Path | None = None) -> Path:
    """Write a Python environment for the stubs into `folder`; return its `bin`.

    Args:
        folder: Where it goes.
        packages: The site-packages of its packages; those of the Python that runs us when None.

    The stub looks for `python3` on PATH, reads the pyvenv.cfg beside it and ignores PYTHONPATH.
    So this environment is a link to the base Python and one .pth file, which adds this package
    and the packages of the Python that runs us.
    """
    into = folder / "lib" / f"python{own_minor()}" / "site-packages"
    into.mkdir(parents=True, exist_ok=True)
    (folder / "bin").mkdir(exist_ok=True)
    base = Path(sys.base_prefix) / "bin" / f"python{own_minor()}"
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

    tree = ensure_tree() / TREE
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
