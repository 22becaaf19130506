"""Prepares and starts tritonserver: CPU features, streaming companions, then exec."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton_hf.errors import SettingsError
from triton_hf.models.pbtxt import STREAM_SUFFIX, read_config, stream_config, string_parameters
from triton_hf.models.registry import Task, kind_of
from triton_hf.models.repository import model_file
from triton_hf.runtime import runtime_dir

REGION = "triton_python_backend_shm_region_"
# Port of OpenAI's API beside a server on one machine; in a cluster it is a container of its own.
OPENAI_PORT = "OPENAI_PORT"
STACK_BYTES = 256 * 1024 * 1024


def derive_arguments(arguments: Sequence[str]) -> list[str]:
    """Write the streaming companions; return the arguments that tritonserver needs for them.

    For each model M with a `triton_hf` engine in the repositories on the command line, M_stream
    is written to the runtime folder. Heartbeats and sockets of an earlier server are removed.

    Raises:
        SettingsError: A config.pbtxt cannot be read, or a folder M_stream is there already.
    """
    repositories = [Path(value) for value in _values(arguments, "--model-repository")]
    repositories += [Path(value) for value in _values(arguments, "--model-store")]
    named = [name for name in _values(arguments, "--load-model") if name != "*"]
    root = runtime_dir()
    for part in ("streams", "health", "sockets"):
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).mkdir(parents=True, exist_ok=True)
    companions = [
        _write_companion(root / "streams", name, task)
        for name, task in _streaming_models(repositories).items()
    ]
    if not companions:
        return []
    derived = [f"--model-repository={root / 'streams'}"]
    derived += [
        f"--load-model={name}" for name in companions if name.removesuffix(STREAM_SUFFIX) in named
    ]
    return derived


def run_tritonserver(arguments: Sequence[str]) -> None:
    """Become tritonserver.

    Raises:
        SettingsError: tritonserver is not on PATH, or the repository is not usable.
    """
    from triton_hf.cpu import apply_cpu_limits

    binary = shutil.which("tritonserver")
    if binary is None:
        raise SettingsError("tritonserver is not on PATH; run this inside the image")
    apply_cpu_limits()
    raise_stack_limit()
    removed = remove_stale_regions()
    if removed:
        print(
            f"triton-hf: removed {removed} shared-memory regions of dead servers", file=sys.stderr
        )
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # logs are lines
    command = [binary, *arguments, *derive_arguments(arguments)]
    print(f"triton-hf: exec {binary} with {len(command) - 1} arguments", file=sys.stderr)
    sys.stderr.flush()
    start_openai(arguments)
    os.execv(binary, command)  # noqa: S606


def start_openai(arguments: Sequence[str]) -> None:
    """Start OpenAI's API beside the server where the environment variable OPENAI_PORT asks for it.

    It becomes a child of tritonserver. It ends with the container, or with the server's group of
    processes.
    """
    port = os.environ.get(OPENAI_PORT, "")
    if port not in ("", "off"):
        grpc_port = ([*_values(arguments, "--grpc-port")] or ["8001"])[-1]
        command = [sys.executable, "-m", "triton_hf", "openai", "--port", port]
        subprocess.Popen([*command, "--triton", f"localhost:{grpc_port}"])


def remove_stale_regions(folder: Path = Path("/dev/shm"), *, seconds: float = 60.0) -> int:  # noqa: S108
    """Remove shared-memory regions that servers left which were killed; return how many.

    A container that starts again finds the /dev/shm of the one before, so each kill would cost
    memory for ever. A region that a process here maps stays, and so does one that is younger than
    so many seconds: its stub may be about to open it.
    """
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            lines = maps.read_text("utf-8", errors="replace").splitlines()
            mapped |= {line.rpartition("/")[2] for line in lines if REGION in line}
    removed = 0
    for file in folder.glob(f"{REGION}*"):
        with contextlib.suppress(OSError):
            if file.name not in mapped and time.time() - file.stat().st_mtime >= seconds:
                file.unlink()
                removed += 1
    return removed


def raise_stack_limit() -> None:
    """Let threads of the program that is started next have larger stacks, where that is allowed.

    A thread's stack takes as much of the limit as it has touched. Triton 2.51 reads JSON by
    recursion and puts 16 bytes for each chunk of a chunked body on the stack: with the usual 8 MiB,
    33,000 brackets (66 kB) or 500,000 chunks end it with signal 11.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def _values(arguments: Sequence[str], flag: str) -> Iterator[str]:
    """Values of a flag that may be repeated, written `--flag value` or `--flag=value`."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            yield arguments[index + 1]
        elif argument.startswith(f"{flag}="):
            yield argument.partition("=")[2]


def _streaming_models(repositories: Sequence[Path]) -> dict[str, Task]:
    """The models of ours whose task has a streaming companion."""
    found: dict[str, Task] = {}
    for repository in repositories:
        if not repository.is_dir():
            raise SettingsError(f"the model repository {repository} is not a folder")
        for config in sorted(repository.glob("*/config.pbtxt")):
            name = config.parent.name
            parameters = string_parameters(read_config(config))
            if "engine" not in parameters:
                continue
            task = kind_of(parameters).task
            if task.companion is None:
                continue
            if (config.parent.parent / f"{name}{STREAM_SUFFIX}").exists():
                raise SettingsError(
                    f"model '{name}{STREAM_SUFFIX}' in {repository} has the name of the streaming "
                    f"companion of '{name}'; rename it"
                )
            found[name] = task
    return found


def _write_companion(folder: Path, model: str, task: Task) -> str:
    name = f"{model}{STREAM_SUFFIX}"
    version = folder / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (folder / name / "config.pbtxt").write_text(stream_config(model, task), encoding="utf-8")
    text = model_file(task.companion or "", "Streams the tokens of the model in config.pbtxt.")
    (version / "model.py").write_text(text, encoding="utf-8")
    return name
