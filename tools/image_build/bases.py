"""The bases that are made here: Debian 12, and for the server Triton in NVIDIA's layout."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from embedded_triton.fetch import TRITON_VERSION, EmbeddedError, ensure_wheel, unpack
from tools.image_build.engine import Tool
from tools.image_build.shell import EXIT_MISSING, PROGRESS, BuildError, run
from tools.place import ROOT
from triton_hf.runtime import cache_root

BASE_PACKAGES = "python3,python3-pip,libpython3.11,ca-certificates"
BASE_RECIPE = "4"  # raise it when what `make_cpu_base` writes changes
# What the Triton of this base needs of Python's packages; `install-packages` reads it in the base.
CONSTRAINTS = ROOT / "image" / "constraints-cpu-base.txt"


def ensure_cpu_base(tool: Tool) -> str:
    """Return the name of the server's CPU base; make it the first time.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    key = hashlib.sha256(
        f"{BASE_RECIPE} {BASE_PACKAGES} {TRITON_VERSION} {CONSTRAINTS.read_text()}".encode()
    ).hexdigest()
    return ensure_base(tool, f"triton-hf-base:{key[:12]}", make_cpu_base)


def ensure_debian_base(tool: Tool) -> str:
    """Return the name of a base with Debian 12 and its Python; make it the first time.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    key = hashlib.sha256(f"{BASE_RECIPE} {BASE_PACKAGES}".encode()).hexdigest()
    return ensure_base(tool, f"triton-load-base:{key[:12]}", make_debian_base)


def ensure_base(tool: Tool, name: str, make: Callable[[Path], None]) -> str:
    """Return the full name of a base image; where it is missing `make` fills its root folder.

    Raises:
        BuildError: A tool is missing or a download fails.
    """
    image, key = f"localhost/{name}", name.rsplit(":", 1)[-1]
    if tool.label(image) == key:
        PROGRESS.say(f"base {image} is there")
        return image
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        raise BuildError(
            "the default base image cannot be pulled, and making one needs root and debootstrap: "
            "run 'apt-get install debootstrap' and start again as root",
            exit_code=EXIT_MISSING,
        )
    cache = cache_root()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="base-", dir=cache) as folder:
        root = Path(folder) / "root"
        make(root)
        with PROGRESS.step("making it the base image"):
            tool.import_root(root, image, key)
    return image


def make_cpu_base(root: Path) -> None:
    """Write Debian 12, Python 3.11 and Triton in NVIDIA's layout into a folder."""
    make_debian_base(root)
    with PROGRESS.step(f"CPU base: Triton {TRITON_VERSION}"):
        unpacked = root / "opt/unpacked"
        try:
            unpack(ensure_wheel(), unpacked, python_minor="3.11")
        except EmbeddedError as error:
            raise BuildError(str(error)) from None
        server = root / "opt/tritonserver"
        (unpacked / "pytriton/tritonserver").rename(server)
        (unpacked / "nvidia_pytriton.libs").rename(server / "lib")
        shutil.copy(CONSTRAINTS, server / "python-constraints.txt")
        shutil.rmtree(unpacked)
        loader = root / "etc/ld.so.conf.d/tritonserver.conf"
        loader.write_text("/opt/tritonserver/lib\n", encoding="utf-8")
        run(["chroot", str(root), "ldconfig"], what="ldconfig")


def make_debian_base(root: Path) -> None:
    """Write Debian 12 and Python 3.11 with the user 10001 into a folder."""
    with PROGRESS.step("base: Debian 12 (debootstrap)"):
        command = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", "bookworm"]
        run([*command, str(root), debian_mirror()], what="debootstrap")
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(root / waste, ignore_errors=True)
        (root / waste).mkdir(parents=True, exist_ok=True)
    for device in (root / "dev").iterdir():
        if device.is_dir() and not device.is_symlink():
            shutil.rmtree(device)
        else:
            device.unlink()
    passwd = root / "etc/passwd"
    passwd.write_text(
        passwd.read_text("utf-8") + "triton:x:10001:10001::/tmp:/usr/sbin/nologin\n", "utf-8"
    )


def debian_mirror() -> str:
    """The mirror that this machine uses itself, else Debian's."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for file in files:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text("utf-8").splitlines():
                words = line.split()
                if words[:1] in (["deb"], ["URIs:"]):
                    found = [word for word in words if word.startswith(("http://", "https://"))]
                    if found and "/debian" in found[0] and "security" not in found[0]:
                        return found[0]
    return "http://deb.debian.org/debian"
