"""A real Docker engine in a network namespace of its own: nothing of the machine's network changes.

The namespace reaches package indexes through slirp4netns. Debian's docker.io brings the engine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import place
from tools.image_build.bases import ensure_cpu_base
from tools.image_build.engine import Tool
from tools.image_build.network import network_options
from tools.wait import until

# The client that belongs to this engine; another one on PATH may want plugins for BuildKit.
CLIENT = "/usr/bin/docker"
PROGRAMS = (CLIENT, "dockerd", "slirp4netns", "nsenter", "unshare", "skopeo", "buildah")


def missing() -> str:
    """Return why no engine can be started here, or the empty string."""
    if os.uname().sysname != "Linux" or os.geteuid() != 0:
        return "needs root on Linux"
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"needs {', '.join(lacking)}: make up installs them" if lacking else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip with the reason where no engine can be started."""
    reason = missing()
    for item in items:
        if reason and item.get_closest_marker("docker"):
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A running engine.

    Attributes:
        folder: holds its socket, data and log.
        inside: words in front of a command that make it run in the engine's network.
    """

    folder: Path
    inside: tuple[str, ...]

    @property
    def host(self) -> str:
        """What DOCKER_HOST has to be."""
        return f"unix://{self.folder / 'socket'}"

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment in which `docker` speaks to this engine."""
        programs = f"{self.folder / 'bin'}:/usr/bin:{os.environ['PATH']}"
        builder = {"DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "1", "PATH": programs}
        return {**os.environ, **builder, **more}

    def run(self, *words: str, check: bool = True, seconds: float = 600) -> str:
        """Run a command in the engine's network; return what it printed."""
        done = subprocess.run(
            [*self.inside, *words],
            cwd=place.ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def copy(self, image: str, name: str) -> None:
        """Bring an image from buildah's storage into the engine."""
        target = ("--dest-daemon-host", self.host, f"containers-storage:{image}")
        self.run("skopeo", "copy", "--quiet", *target, f"docker-daemon:{name}")

    def takes_memlock(self) -> bool:
        """Return whether this machine lets a container lock memory without limit."""
        words = f"{CLIENT} run --rm --ulimit memlock=-1 --entrypoint true triton 2>&1 || true"
        return "error setting rlimit" not in self.run("sh", "-c", words)


@contextlib.contextmanager
def network() -> Iterator[tuple[str, ...]]:
    """Make a network namespace with a way out until the block ends; give the words to enter it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    inside = ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
    own = os.readlink("/proc/self/ns/net")
    until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != own, seconds=10)
    subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
    words = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback"]
    way_out = subprocess.Popen(
        [*words, str(holder.pid), "tap0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def up() -> bool:
        shown = subprocess.run([*inside, "ip", "-br", "addr"], capture_output=True, text=True)
        return "10.0.2.100" in shown.stdout

    try:
        until(up, seconds=10)
        yield inside
    finally:
        for process in (way_out, holder):
            process.terminate()
            process.wait(10)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with the CPU base as image `base`."""
    cache = place.cache()
    cache.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="docker-", dir=cache))
    (folder / "bin").mkdir()
    (folder / "bin" / "docker").symlink_to(CLIENT)
    with network() as inside, (folder / "log").open("w") as log:
        made = Engine(folder=folder, inside=inside)
        words = [
            "dockerd",
            "--data-root",
            str(folder / "data"),
            "--exec-root",
            str(folder / "exec"),
        ]
        words += ["--pidfile", str(folder / "pid"), "--host", made.host, "--dns", "10.0.2.3"]
        daemon = subprocess.Popen([*inside, *words], stdout=log, stderr=log)
        try:
            until(lambda: made.run("docker", "version"), seconds=60)
            made.copy(ensure_cpu_base(Tool()), "base:latest")
            yield made
        finally:
            daemon.terminate()
            daemon.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The light image, built as the README says, from the CPU base."""
    secrets = network_options(tmp_path_factory.mktemp("secrets"))
    words = ("--target", "light", "--build-arg", "BASE_IMAGE=base:latest", *secrets)
    engine.run("docker", "build", "-t", "triton", *words, ".", seconds=900)
    return "triton"
