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
from typing import Any

from triton_hf.runtime import log, runtime_dir

BEAT_SECONDS = 1.0
RECORD_BYTES = 1024


class Heartbeat:
    """Writes `{pid, state, running, waiting, monotonic}` at most once a second.

    A change between idle and busy, or of the state, is written at once: the file must say that
    work was queued before a step that hangs begins. A disk that is full does not stop the heart:
    the last record is written over in place then.
    """

    def __init__(self, path: Path) -> None:
        """Write to this path; its folder is made when missing."""
        self._path = path
        self._last = 0.0
        self._shape: tuple[str, bool] | None = None
        self._said = ""
        path.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, *, state: str, running: int, waiting: int) -> None:
        """Say that the writer's loop is alive. `state` is `loading` or `serving`."""
        now = time.monotonic()
        shape = (state, running + waiting > 0)
        if shape == self._shape and now - self._last < BEAT_SECONDS:
            return
        self._last, self._shape = now, shape
        self._write({"state": state, "running": running, "waiting": waiting, "monotonic": now})

    def fail(self, reason: str) -> None:
        """Say that the writer has ended for good, and why; the probes repeat it."""
        self._write({"state": "failed", "reason": reason})

    def remove(self) -> None:
        """Forget the model: it was unloaded in good order."""
        self._path.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any]) -> None:
        # All records are as long as the first, so that one fits in the place of another.
        text = json.dumps({"pid": os.getpid(), **record}).ljust(RECORD_BYTES)
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path)
        except OSError as error:
            self._write_over(text, error)

    def _write_over(self, text: str, cause: OSError) -> None:
        try:
            with self._path.open("r+", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            cause = error
        if str(cause) != self._said:
            self._said = str(cause)
            log(f"the heartbeat {self._path} cannot be written as usual: {cause}")


def heartbeat_path(model: str) -> Path:
    """Where the heartbeat of a model lies."""
    return runtime_dir() / "health" / f"{model}.json"
