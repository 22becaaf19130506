"""Whether a vulnerability is known for a Python package of the images (by pip-audit)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.audit.contents import Contents
from tools.audit.tools import BILLS, AuditError

SERVICES = ("osv", "pypi")  # tried in turn
UNANSWERED = (
    "ConnectionError",
    "Timeout",
    "ServiceError",
    "HTTPError",
)  # in pip-audit's last words


class UnreachableError(AuditError):
    """No database of vulnerabilities could be asked."""


@dataclass(frozen=True, kw_only=True)
class Vulnerability:
    """One known vulnerability of one package."""

    package: str
    version: str
    name: str
    fixed_in: str


def service() -> str:
    """Return the first database that knows a package, asked about one that every image has.

    Raises:
        UnreachableError: none does.
    """
    said = []
    for name in SERVICES:
        try:
            ask(["packaging==26.3"], name)
        except UnreachableError as reason:
            said.append(f"{name}: {reason}")
        else:
            return name
    raise UnreachableError(
        f"no vulnerability database can be reached, so nothing is known ({'; '.join(said)})"
    )


def known(images: Iterable[Contents]) -> set[Vulnerability]:
    """Return the known vulnerabilities of the Python packages of all images.

    Raises:
        UnreachableError: no database answers, or it does not know each package.
        AuditError: pip-audit fails.
    """
    database = service()
    found: set[Vulnerability] = set()
    for pins in rounds(images):
        found.update(ask(pins, database))
    return found


def rounds(images: Iterable[Contents]) -> list[list[str]]:
    """Return all pins as `name==version`; pip-audit wants a name once, so some in a further list.

    An image can hold two versions of a package: the system's and one of pip.
    """
    versions: dict[str, set[str]] = {}
    for part in (part for image in images for part in image.parts if part["kind"] == "pypi"):
        name = part["name"].lower().replace("_", "-")
        versions.setdefault(name, set()).add(part["version"])
    lists: list[list[str]] = []
    for name, each in sorted(versions.items()):
        for number, version in enumerate(sorted(each)):
            if number == len(lists):
                lists.append([])
            lists[number].append(f"{name}=={version}")
    return lists


def ask(pins: list[str], database: str) -> set[Vulnerability]:
    """Return what a database knows about exact versions.

    Raises:
        UnreachableError: it does not answer, or does not know a package.
        AuditError: pip-audit fails for another reason.
    """
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "pins.txt"
        file.write_text("\n".join(pins) + "\n")
        words = [BILLS.program("pip-audit"), "--requirement", str(file), "--no-deps"]
        words += ["--disable-pip", f"--vulnerability-service={database}", "--format=json"]
        words += ["--progress-spinner=off", "--timeout=15"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.stdout.strip().startswith("{"):
        return read(done.stdout)
    last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    if any(word in last for word in UNANSWERED):
        raise UnreachableError(f"it does not answer ({last.partition(':')[0]})")
    raise AuditError(f"pip-audit ended with {done.returncode} and said: {last}")


def read(text: str) -> set[Vulnerability]:
    """Return what pip-audit wrote as JSON.

    Raises:
        UnreachableError: packages were left out, which pip-audit counts as good.
    """
    packages = json.loads(text)["dependencies"]
    if left_out := [package["name"] for package in packages if "skip_reason" in package]:
        raise UnreachableError(f"it does not know {', '.join(left_out)}")
    return {
        Vulnerability(
            package=package["name"],
            version=package["version"],
            name=one["id"],
            fixed_in=", ".join(one["fix_versions"]) or "no version",
        )
        for package in packages
        for one in package["vulns"]
    }
