"""Commands of the build, their errors and their progress."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from triton_hf.progress import Progress

EXIT_FAILED = 1
EXIT_MISSING = 2
PROGRESS = Progress("image")
LABEL = "io.triton-hf.inputs"


class BuildError(Exception):
    """The image could not be built; the text says why and what to do."""

    def __init__(self, message: str, *, exit_code: int = EXIT_FAILED) -> None:
        """Keep the sentence and the exit status."""
        super().__init__(message)
        self.exit_code = exit_code


def run(command: Sequence[str], *, what: str, cwd: Path | None = None) -> None:
    """Run a command; on failure raise with the end of its output."""
    result = subprocess.run(
        command, cwd=cwd, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        tail = "\n".join(result.stdout.strip().splitlines()[-25:])
        raise BuildError(f"{what} failed ({' '.join(command[:3])} ...):\n{tail}")


def output(command: Sequence[str]) -> str | None:
    """Output of a command that succeeded, else None."""
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
