"""The Triton inside the PyPI wheel `nvidia-pytriton`, fetched once and laid out in the cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from triton_hf.errors import TritonHFError
from triton_hf.runtime import cache_root

TRITON_VERSION = "2.51.0"
_REQUIREMENT = "nvidia-pytriton==0.7.0"
_WHEEL = "nvidia_pytriton-0.7.0-py3-none-manylinux_2_35_x86_64.whl"
_WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
TREE = Path("pytriton/tritonserver")
_LIBRARIES = Path("nvidia_pytriton.libs")


class EmbeddedError(TritonHFError):
    """The embedded Triton could not be fetched or started."""


def progress(text: str) -> None:
    """One line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


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
    root = cache_root() / f"triton-{TRITON_VERSION}-{_WHEEL_SHA256[:8]}-py{own_minor()}"
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
            unpack(wheel, partial, python_minor=own_minor())
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
    stub = TREE / "python_backend_stubs" / python_minor / "triton_python_backend_stub"
    with zipfile.ZipFile(wheel) as archive:
        if str(stub) not in archive.namelist():
            raise EmbeddedError(
                f"Triton {TRITON_VERSION} has no part for Python {python_minor}; use Python 3.11"
            )
        for name in archive.namelist():
            inside = name.startswith((f"{TREE}/", f"{_LIBRARIES}/"))
            if inside and "/python_backend_stubs/" not in name:
                archive.extract(name, into)
        target = into / TREE / "backends/python/triton_python_backend_stub"
        target.write_bytes(archive.read(str(stub)))
    for binary in (target, into / TREE / "bin/tritonserver"):
        binary.chmod(0o755)


def libpython_folder() -> Path | None:
    """Folder of the shared libpython of this Python; None where the system's loader knows it.

    Debian's Python is linked statically and its library is a package of its own, which is
    fetched into the cache when it is not installed.

    Raises:
        EmbeddedError: There is none, and it cannot be fetched.
    """
    name = f"libpython{own_minor()}.so.1.0"
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
    package = f"libpython{own_minor()}"
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


def own_minor() -> str:
    """Return the version of the Python that runs this, such as 3.11."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
