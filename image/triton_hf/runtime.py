"""Where the parts of one server meet, and where a container leaves its last words."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

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


def write_termination_log(text: str) -> None:
    """Add a sentence to what Kubernetes shows as the reason of a container's end.

    Nothing happens outside a container, and none of its faults is anybody's.
    """
    path = Path(os.environ.get("TERMINATION_LOG") or "/dev/termination-log")
    if "TERMINATION_LOG" in os.environ or path.exists():
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
