"""Whether a vulnerability is known for a Python package of the images (by pip-audit)."""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from support.audit.contents import Contents
from support.audit.tools import BILLS, AuditError

SERVICES = ("osv", "pypi")  # tried in turn


class UnreachableError(AuditError):
    """No database of vulnerabilities could be asked."""


@dataclass(frozen=True, kw_only=True)
class Vulnerability:
    """One known vulnerability of one package."""

    package: str
    version: str
    name: str
    fixed_in: str


def known(contents: Contents) -> list[Vulnerability]:
    """Return the known vulnerabilities of the Python packages.

    Raises:
        UnreachableError: no database answers.
    """
    pins = sorted({f"{p['name']}=={p['version']}" for p in contents.parts if p["kind"] == "pypi"})
    said = ""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "pins.txt"
        file.write_text("\n".join(pins) + "\n")
        for service in SERVICES:
            words = [BILLS.program("pip-audit"), "--requirement", str(file), "--no-deps"]
            words += ["--disable-pip", f"--vulnerability-service={service}", "--format=json"]
            words += ["--progress-spinner=off", "--timeout=15"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.stdout.strip().startswith("{"):
                return _read(done.stdout)
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
    raise UnreachableError(
        f"no vulnerability database can be reached ({', '.join(SERVICES)}), so nobody was asked "
        f"about {len(pins)} Python packages of {contents.name}; pip-audit said: {said[:200]}"
    )


def _read(text: str) -> list[Vulnerability]:
    found = []
    for package in json.loads(text)["dependencies"]:
        for one in package.get("vulns", []):
            found.append(
                Vulnerability(
                    package=package["name"],
                    version=package["version"],
                    name=one["id"],
                    fixed_in=", ".join(one["fix_versions"]) or "no version",
                )
            )
    return found
