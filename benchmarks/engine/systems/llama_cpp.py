"""llama.cpp's own server, built from the sources inside the PyPI package `llama-cpp-python`.

The package's Python server answers one request at a time; llama.cpp's has slots and continuous
batching. Its converter makes the GGUF files from the same safetensors that the others read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.engine.systems.base import Prompt, UnavailableError
from benchmarks.engine.systems.environments import cached, run
from benchmarks.engine.systems.http_server import RunningServer, server_process
from embedded_triton.server import free_ports
from tools.demo_model import LocalModel
from triton_hf.cpu import amx_works, cpu_flags

VERSION = "0.3.36"
_PACKAGE = f"llama_cpp_python-{VERSION}"
# Named one by one: with GGML_NATIVE a machine that hides how its AMX works gets a broken server.
_BY_FLAG = {
    "avx512f": "GGML_AVX512",
    "avx512vbmi": "GGML_AVX512_VBMI",
    "avx512_vnni": "GGML_AVX512_VNNI",
    "avx512_bf16": "GGML_AVX512_BF16",
    "avx_vnni": "GGML_AVX_VNNI",
}
_AMX = ("GGML_AMX_TILE", "GGML_AMX_INT8", "GGML_AMX_BF16")
_OFF = (
    "GGML_NATIVE",
    "BUILD_SHARED_LIBS",
    "LLAMA_OPENSSL",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_APP",
    "LLAMA_USE_PREBUILT_UI",
)
_PIP = ("--quiet", "--no-deps", "--no-cache-dir", "--disable-pip-version-check")


def build_options() -> list[str]:
    """Options of cmake for this processor."""
    flags = cpu_flags(Path("/proc/cpuinfo"))
    on = [option for flag, option in _BY_FLAG.items() if flag in flags]
    if "amx_tile" in flags and amx_works():
        on += _AMX
    return [*(f"-D{name}=OFF" for name in _OFF), *(f"-D{name}=ON" for name in on)]


def ensure_source(*, install: bool) -> Path:
    """Return llama.cpp's sources; fetched (77 MB) when they are missing.

    Raises:
        UnavailableError: They are not there and may not or cannot be fetched.
    """
    place = cached(_PACKAGE)
    source = place / "vendor" / "llama.cpp"
    if source.exists():
        return source
    if not install:
        raise UnavailableError(f"llama-cpp-python {VERSION} is not there; --install builds it")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as name:
        words = ["-m", "pip", "download", *_PIP, "--no-binary=:all:", "--dest", name]
        run([sys.executable, *words, f"llama-cpp-python=={VERSION}"], "pip download")
        with tarfile.open(Path(name) / f"{_PACKAGE}.tar.gz") as archive:
            archive.extractall(name, filter="data")
        (Path(name) / _PACKAGE).rename(place)
    return source


def ensure_server(*, install: bool) -> Path:
    """Return `llama-server`; built (some 10 minutes on two cores) when it is missing.

    Raises:
        UnavailableError: It is not there and may not or cannot be built.
    """
    program = cached(f"llama-server-{VERSION}")
    if program.exists():
        return program
    source = ensure_source(install=install)
    if not install:
        raise UnavailableError("llama-server is not built; --install does it")
    if not (shutil.which("cmake") and shutil.which("g++")):
        raise UnavailableError("llama-server cannot be built: install cmake, make and g++")
    with tempfile.TemporaryDirectory(dir=program.parent) as name:
        options = ["-DCMAKE_BUILD_TYPE=Release", *build_options()]
        run(["cmake", "-S", str(source), "-B", name, *options], "cmake")
        cores = str(os.cpu_count() or 1)
        run(["cmake", "--build", name, "--target", "llama-server", "-j", cores], "the build")
        (Path(name) / "bin" / "llama-server").rename(program)
    return program


def ensure_gguf(model: LocalModel, kind: str, *, install: bool) -> Path:
    """Return the model as a GGUF file of a kind (`bf16`, `f16`, `q8_0`); made when it is missing.

    Raises:
        UnavailableError: It is not there and may not or cannot be made.
    """
    path = cached(f"smollm2-{model.revision[:12]}-{kind}.gguf")
    if path.exists():
        return path
    script = ensure_source(install=install) / "convert_hf_to_gguf.py"
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        # It imports sentencepiece even where the model has no such vocabulary.
        words = ["-m", "pip", "install", *_PIP, "--target", f"{name}/packages", "sentencepiece"]
        run([sys.executable, *words], "pip install sentencepiece")
        made = f"{name}/model.gguf"
        convert = [str(script), str(model.folder), "--outtype", kind, "--outfile", made]
        packages = f"PYTHONPATH={name}/packages"
        run(["env", packages, sys.executable, *convert], "convert_hf_to_gguf.py")
        Path(made).rename(path)
    return path


class LlamaCpp:
    """`llama-server` with a slot for each client."""

    serial = False

    def __init__(self, *, model: LocalModel, kind: str, clients: int, longest: int) -> None:
        """Serve weights of this kind; room for `clients` of `longest` tokens each."""
        self.precision = kind
        self.name = f"llama.cpp {kind}"
        self._model, self._kind = model, kind
        threads = str(len(os.sched_getaffinity(0)))
        self._words = ["--threads", threads, "--threads-batch", threads, "--flash-attn", "on"]
        self._words += ["--parallel", str(clients), "--ctx-size", str(clients * longest)]
        # No two prompts begin alike, so nothing is kept for the next one.
        self._words += ["--no-kv-unified", "--cache-ram", "0", "--no-cache-prompt"]
        self._words += ["--no-slots", "--no-ui"]
        self.settings = f"llama-cpp-python {VERSION}'s llama-server {' '.join(self._words)}"

    def prepare(self, *, install: bool) -> None:
        """Build the server and make its weights."""
        self._program = ensure_server(install=install)
        self._weights = ensure_gguf(self._model, self._kind, install=install)

    @contextlib.contextmanager
    def running(self, folder: Path) -> Iterator[RunningServer]:
        """Run it until the block ends."""
        port = free_ports().http
        place = ["--host", "127.0.0.1", "--port", str(port)]
        command = [str(self._program), "--model", str(self._weights), *place, *self._words]
        with server_process(command, folder=folder, port=port, request=completion) as server:
            yield server


def completion(prompt: Prompt, tokens: int) -> tuple[str, dict[str, Any]]:
    """A request whose answer is streamed."""
    body = {"prompt": prompt.ids, "n_predict": tokens, "stream": True, "cache_prompt": False}
    return "/completion", {**body, "ignore_eos": True, "temperature": 0.0}
