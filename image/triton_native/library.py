"""Finds or compiles the shared library, and declares its functions.

An image brings the library beside this file; `python -m triton_native.library FOLDER` makes it.
Elsewhere it is compiled once into a cache folder, where there is a compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = 6  # of the interface; the same number as in interface.cpp
NAME = "libtriton_native.so"
SOURCE = Path(__file__).with_name("source")
_FLAGS: tuple[str, ...] = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-pthread")
# Two libraries in one process share nothing, not even what C++ wants to be unique.
_FLAGS += ("-fno-gnu-unique",)
# What the library needs of C++ is inside it, so it runs beside any other libstdc++.
_FLAGS += ("-static-libstdc++", "-static-libgcc", "-Wl,--exclude-libs,ALL")
_COMPILE_SECONDS = 300
# Levels of instructions, as in step.h.
AVX512, AVX512_VNNI, AVX512_BF16, AMX = 1, 2, 3, 4
LEVELS = {
    AVX512: "AVX512",
    AVX512_VNNI: "AVX512-VNNI, int16",
    AVX512_BF16: "AVX512-BF16",
    AMX: "AMX",
}
# Levels whose instructions are replaced by others, for tests on CPUs without them.
EMULATED = "-DNATIVE_EMULATE"
_MACHINES = ("x86_64", "AMD64")
_ELSEWHERE = "the native step is for x86-64"


class UnavailableError(Exception):
    """The native step cannot be used; the text says why, as the rest of a sentence."""


class CompileError(UnavailableError):
    """There is a compiler, and it does not take the sources."""


class Config(ctypes.Structure):
    """Sizes of a model; the same as in step.h."""

    _fields_ = (
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("intermediate", ctypes.c_int32),
        ("vocabulary", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("separate_embedding", ctypes.c_int32),
        ("precision", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("scale", ctypes.c_float),
    )


class Segment(ctypes.Structure):
    """New tokens of one sequence; the same as in step.h."""

    _fields_ = (
        ("pages", ctypes.c_uint64),
        ("start", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


def load_library(*, cache: Path | None, emulated: bool = False) -> ctypes.CDLL:
    """Return the library of this installation, or one that is compiled into `cache` once.

    Args:
        cache: Folder for what is compiled here; None where nothing is.
        emulated: Compile one whose levels all run on any CPU with AVX512, slowly.

    Raises:
        UnavailableError: There is none, it does not load, or this CPU cannot run it.
    """
    if platform.machine() not in _MACHINES:
        raise UnavailableError(f"it is for x86-64, and this is {platform.machine()}")
    own = Path(__file__).with_name(NAME)
    path = own if own.exists() and not emulated else _cached(cache, emulated=emulated)
    try:
        return _declared(path)
    except (OSError, AttributeError) as error:
        raise UnavailableError(f"{path} does not load ({error})") from None


@functools.cache
def best_level(library: ctypes.CDLL) -> int:
    """Return the best level of instructions that works on this CPU.

    Flags can promise tiles that a virtual machine does not have, and an instruction that is missing
    ends the process; so a child process computes with them first.
    """
    level: int = library.native_level()
    while level > AVX512 and fault_of(library, level) is not None:
        level -= 1
    return level


def fallback(library: ctypes.CDLL) -> str | None:
    """Say why a lower level is used than this CPU shows, as a sentence; None if it is not."""
    shown, used = library.native_level(), best_level(library)
    if used == shown:
        return None
    return (
        f"this CPU shows {LEVELS[shown]}, but a check of it {fault_of(library, shown)}; "
        f"{LEVELS[used]} is used, which is slower"
    )


@functools.cache
def fault_of(library: ctypes.CDLL, level: int) -> str | None:
    """Compute with a level in a child process; return how that failed, None if it did not."""
    script = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); library.native_level(); "
    script += "sys.exit(not library.native_check(int(sys.argv[2])))"
    command = [sys.executable or "python3", "-c", script, library._name, str(level)]
    code = subprocess.run(command, capture_output=True, check=False).returncode
    if code == 0:
        return None
    if code < 0:
        return f"ended with {signal.Signals(-code).name}"
    return "gave other results than AVX512"


def _cached(cache: Path | None, *, emulated: bool) -> Path:
    if cache is None:
        raise UnavailableError("it was not compiled for this installation")
    flags = (EMULATED,) if emulated else ()
    path = cache / "native" / f"{source_key(flags)}.so"
    if not path.exists():
        try:
            compile_library(path, flags=flags)
        except OSError as error:
            raise UnavailableError(f"it cannot be compiled into {path} ({error})") from None
    return path


def source_key(flags: tuple[str, ...] = ()) -> str:
    """Hash of all that decides what the library holds, apart from the compiler."""
    digest = hashlib.sha256(" ".join((*_FLAGS, *flags)).encode())
    for file in sorted(SOURCE.iterdir()):
        digest.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(path: Path, *, flags: tuple[str, ...] = ()) -> None:
    """Compile the library to `path`; a second one that compiles meanwhile does no harm.

    Raises:
        UnavailableError: There is no compiler.
        CompileError: It fails.
        OSError: The folder cannot be written.
    """
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise UnavailableError("it was not compiled, and there is no g++ to do it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as partial:
        result = Path(partial) / NAME
        sources = [str(file) for file in sorted(SOURCE.glob("*.cpp"))]
        command = [compiler, *_FLAGS, *flags, "-o", str(result), *sources]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_COMPILE_SECONDS
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            why = (lines or done.stderr.splitlines() or ["no message"])[0]
            raise CompileError(f"{Path(compiler).name} failed ({why.strip()})")
        result.replace(path)


@functools.cache
def _declared(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.native_version.restype = ctypes.c_int32
    if library.native_version() != VERSION:
        raise UnavailableError(f"{path} is of another version")
    if not library.native_level():
        raise UnavailableError("this CPU has no AVX512")
    model, number, address = ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p
    signatures = {
        "native_page_tokens": (number, ()),
        "native_level": (number, ()),
        "native_int8": (number, ()),
        "native_check": (number, (number,)),
        "native_create": (model, (ctypes.POINTER(Config), number)),
        "native_destroy": (None, (model,)),
        "native_set_weight": (None, (model, *[number] * 5, address)),
        "native_set_vector": (None, (model, *[number] * 3, address)),
        "native_set_rotation": (None, (model, number, address, address)),
        "native_page_bytes": (ctypes.c_uint64, (model,)),
        "native_new_page": (ctypes.c_void_p, (model,)),
        "native_prepare_page": (number, (model, ctypes.c_uint64)),
        "native_free_page": (None, (model, address)),
        "native_copy_page": (None, (model, address, address, number)),
        "native_forward": (number, (model, address, address, number, address, address)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def main(folder: Path) -> int:
    """Compile the library into a folder; return the exit status."""
    if platform.machine() not in _MACHINES:
        print(f"{_ELSEWHERE}; nothing to compile", file=sys.stderr)
        return 0
    try:
        compile_library(folder / NAME)
    except (UnavailableError, OSError) as error:
        print(f"the native step cannot be compiled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
