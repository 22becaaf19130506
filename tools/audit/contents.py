"""What the images and the programs of the embedded cluster are made of."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.audit.tools import MissingError
from tools.place import ROOT, VERSION

COMPONENTS = ROOT / "k8s-tests" / "cluster" / "components"
# Image (name in the store of this machine) and the file that pins what pip puts into it.
IMAGES = {
    "triton-hf": ROOT / "image" / "requirements.txt",
    "triton-hf-light": ROOT / "image" / "requirements-light.txt",
    "triton-load": ROOT / "load_testing" / "requirements.txt",
}
# Runs inside an image with its own Python: packages of pip and of the system, and Triton.
LOOK = r"""
import json, pathlib, sys, importlib.metadata as metadata
parts, system = [], {}
for line in pathlib.Path("/etc/os-release").read_text().splitlines():
    key, _, value = line.partition("=")
    system[key] = value.strip('"')
for found in metadata.distributions():
    parts.append({"kind": "pypi", "name": found.metadata["Name"], "version": found.version,
                  "license": found.metadata.get("License-Expression") or ""})
status = pathlib.Path("/var/lib/dpkg/status")
for block in status.read_text(errors="replace").split("\n\n") if status.exists() else ():
    lines = [line.partition(": ") for line in block.splitlines() if line[:1] not in ("", " ")]
    field = {key: value for key, _, value in lines}
    if field.get("Status", "").endswith(" installed"):
        parts.append({"kind": "deb", "name": field["Package"], "version": field["Version"],
                      "architecture": field["Architecture"], "system": system["ID"],
                      "release": system.get("VERSION_ID", "")})
triton = pathlib.Path("/opt/tritonserver/TRITON_VERSION")  # NVIDIA's image has it
if triton.exists():
    parts.append({"kind": "generic", "name": "tritonserver",
                  "version": triton.read_text().strip()})
elif triton.parent.exists():
    sys.path.insert(0, "/opt/triton_hf")
    from embedded_triton.fetch import TRITON_VERSION
    parts.append({"kind": "generic", "name": "tritonserver", "version": TRITON_VERSION})
print(json.dumps(parts))
"""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything in one image, or in the programs of the cluster.

    Attributes:
        name: of the image.
        parts: each with `kind` (pypi, deb, golang, generic), `name`, `version` and more.
        gap: a sentence that says what is not in `parts`, empty when nothing is left out.
    """

    name: str
    parts: tuple[dict[str, str], ...]
    gap: str = ""


def pinned(requirements: Path) -> Iterator[dict[str, str]]:
    """Yield the packages that a requirements file pins, those of files that it names too."""
    for line in requirements.read_text().splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("-r "):
            yield from pinned(requirements.parent / words[3:].strip())
        elif words:
            name, exact, version = words.partition("==")
            if not exact:  # a range, which the base that is made here pins
                name = re.split("[<>]", words)[0]
                version = _constraints()[name]
            yield {"kind": "pypi", "name": name.partition("[")[0], "version": version.strip()}


def _constraints() -> dict[str, str]:
    lines = (ROOT / "image" / "constraints-cpu-base.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def image(name: str) -> Contents:
    """Return what is in an image; where it was not built here, what is pinned for it."""
    try:
        return Contents(name=name, parts=tuple(_inside(f"{name}:{VERSION}")))
    except MissingError as reason:
        gap = f"only what {IMAGES[name].relative_to(ROOT)} pins, no system packages: {reason}"
        return Contents(name=name, parts=tuple(pinned(IMAGES[name])), gap=gap)


def _inside(reference: str) -> list[dict[str, str]]:
    if _output(["docker", "image", "inspect", reference]) is not None:
        words = ["docker", "run", "--rm", "--interactive", "--network=none"]
        return _look([*words, "--entrypoint=python3", reference, "-"])
    container = _output(["buildah", "from", "--pull=never", f"localhost/{reference}"])
    if container is None:
        raise MissingError(f"the image {reference} is not on this machine; make up builds it")
    try:
        isolated = ["buildah", "run", "--isolation=chroot", "--user=10001"]
        return _look([*isolated, container, "--", "python3", "-"])
    finally:
        _output(["buildah", "rm", container])


def _look(command: list[str]) -> list[dict[str, str]]:
    found = _output(command, stdin=LOOK)
    if found is None:
        raise MissingError(f"'{' '.join(command[:3])}' could not look into the image")
    parts: list[dict[str, str]] = json.loads(found)
    return parts


def _output(command: list[str], stdin: str = "") -> str | None:
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def modules(file: Path) -> dict[str, str]:
    """Return module -> version of a go.mod, after its replacements.

    Since Go 1.17 a go.mod names every module that a build of its packages can need.
    """
    required: dict[str, str] = {}
    replaced: dict[str, tuple[str, str]] = {}
    block = ""
    for line in file.read_text().splitlines():
        words = re.sub(r"//.*", "", line).split()
        if not words:
            continue
        if words[-1] == "(":
            block = words[0]
            continue
        if words == [")"]:
            block = ""
            continue
        verb, rest = (block, words) if block else (words[0], words[1:])
        if verb == "require":
            required[rest[0]] = rest[1]
        elif verb == "replace":
            after = rest[rest.index("=>") + 1 :]
            replaced[rest[0]] = (after[0], after[1] if len(after) > 1 else "")
    found = [replaced.get(module, (module, version)) for module, version in required.items()]
    return {module: version for module, version in found if version}


def cluster() -> Contents:
    """Return the Go modules of the embedded cluster's programs."""
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for file in sorted(COMPONENTS.glob("*/go.mod")):
        for module, version in modules(file).items():
            part = {"kind": "golang", "name": module, "version": version, "used_by": ""}
            part = parts.setdefault((module, version), part)
            part["used_by"] = " ".join([*part["used_by"].split(), file.parent.name])
    return Contents(name="embedded-cluster", parts=tuple(parts.values()))
