"""Programs of others that the audit runs, each in an environment of its own in the cache."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.place import cache
from triton_hf.progress import Progress


class AuditError(Exception):
    """The audit cannot go on; the text says why and what to do."""


class MissingError(AuditError):
    """This machine lacks something that a part of the audit needs."""


PROGRESS = Progress("audit")
say = PROGRESS.say


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A program from PyPI whose requirements are not ours.

    Attributes:
        name: names its environment and its program.
        requirements: exact versions of what decides the result.
        megabytes: what it takes on the disk, measured.
    """

    name: str
    requirements: tuple[str, ...]
    megabytes: int

    @property
    def place(self) -> Path:
        """Folder of its environment."""
        version = self.requirements[0].partition("==")[2]
        major, minor, _ = platform.python_version_tuple()
        return cache() / f"{self.name}-{version}-python{major}.{minor}"

    def program(self, name: str) -> str:
        """Return the path of a program of its environment.

        Raises:
            MissingError: it is not installed.
        """
        if not (self.place / ".complete").exists():
            raise MissingError(
                f"{self.name} is not installed; --install does it ({self.megabytes} MB)"
            )
        return str(self.place / "bin" / name)

    def install(self) -> None:
        """Install it where it is missing.

        Raises:
            MissingError: it cannot be installed.
        """
        if (self.place / ".complete").exists():
            return
        say(f"installing {self.name} into {self.place} (1 to 3 min)")
        words = ["install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(self.place)],
            [str(self.place / "bin" / "pip"), *words, *self.requirements],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
                raise MissingError(f"{self.name} cannot be installed: {last}")
        (self.place / ".complete").touch()


CHECKOV = Tool(name="checkov", requirements=("checkov==3.3.30",), megabytes=290)
BILLS = Tool(
    name="pip-audit",
    requirements=("pip-audit==2.10.1", "cyclonedx-python-lib[json-validation]==11.12.0"),
    megabytes=100,
)
