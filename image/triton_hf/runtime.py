"""Where the parts of one server meet, and where a container leaves its last words."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import traceback
from pathlib import Path

from triton_hf.errors import EXIT_ENGINE

_SOCKET_PATH_LIMIT = 100  # the kernel allows 107 bytes


def runtime_dir() -> Path:
    """The folder of this server's runtime files (`TRITON_HF_RUNTIME_DIR`)."""
    return Path(os.environ.get("TRITON_HF_RUNTIME_DIR") or "/tmp/triton_hf")  # noqa: S108


def socket_path(model: str) -> Path:
    """Where the engine of a model listens for its streaming companion."""
    path = runtime_dir() / "sockets" / f"{model}.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        short = hashlib.sha256(model.encode()).hexdigest()[:12]
        path = runtime_dir() / "sockets" / short
    return path


def cache_root() -> Path:
    """The project's cache folder (`TRITON_CACHE`, else under the user's cache)."""
    if named := os.environ.get("TRITON_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "triton-on-kubernetes"


def write_termination_log(text: str) -> None:
    """Add a sentence to what Kubernetes shows as the reason of a container's end.

    Does nothing outside a container. Errors are ignored: they must not hide the sentence itself.
    """
    path = Path(os.environ.get("TERMINATION_LOG") or "/dev/termination-log")
    if "TERMINATION_LOG" in os.environ or path.exists():
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")


def log(text: str) -> None:
    """Write a line to the server's log; one that cannot be written stops nobody."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def log_fault(error: BaseException) -> None:
    """Write an error and where it came from to the server's log."""
    log("".join(traceback.format_exception(error)).rstrip())


def end_server(reason: str) -> None:
    """End the server that this process works for, because the process is of no use any more.

    The reason goes to the log and to the termination message. tritonserver gets SIGTERM: its other
    models finish what they have begun, and Kubernetes starts the container again. A process
    without a tritonserver ends itself with `EXIT_ENGINE`.
    """
    log(reason)
    write_termination_log(reason)
    parent = os.getppid()
    if _name_of(parent) == "tritonserver":
        os.kill(parent, signal.SIGTERM)
    else:
        os._exit(EXIT_ENGINE)


def _name_of(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/comm").read_text("utf-8", errors="replace").strip()
    return ""
