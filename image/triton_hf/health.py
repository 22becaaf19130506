"""The heartbeat of a model's process: a small file that the probes read.

Triton 2.51 stays ready for ever when a model's process has died or hangs, so engines and streaming
companions say themselves that they are alive. The reader is `probe.py`, which uses the standard
library only.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from triton_hf.runtime import runtime_dir

BEAT_SECONDS = 1.0


class Heartbeat:
    """Writes `{pid, state, running, waiting, monotonic}` at most once a second.

    A change between idle and busy, or of the state, is written at once: the file must say that
    work was queued before a step that hangs begins.
    """

    def __init__(self, path: Path) -> None:
        """Write to this path; its folder is made when missing."""
        self._path = path
        self._last = 0.0
        self._shape: tuple[str, bool] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, *, state: str, running: int, waiting: int) -> None:
        """Say that the writer's loop is alive. `state` is `loading` or `serving`."""
        now = time.monotonic()
        shape = (state, running + waiting > 0)
        if shape == self._shape and now - self._last < BEAT_SECONDS:
            return
        self._last, self._shape = now, shape
        text = json.dumps(
            {
                "pid": os.getpid(),
                "state": state,
                "running": running,
                "waiting": waiting,
                "monotonic": now,
            }
        )
        partial = self._path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._path)

    def remove(self) -> None:
        """Forget the model: it was unloaded in good order."""
        self._path.unlink(missing_ok=True)


def heartbeat_path(model: str) -> Path:
    """Where the heartbeat of a model lies."""
    return runtime_dir() / "health" / f"{model}.json"
