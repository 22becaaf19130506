"""Turns parts (JSON on stdin) into a checked CycloneDX file; runs in the environment of BILLS.

Usage: cyclonedx_file.py FILE < {"name": ..., "version": ..., "parts": [...]}
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL


def package_url(part: dict[str, str]) -> PackageURL:
    """Return the address by which scanners know a part."""
    name, version, kind = part["name"], part["version"], part["kind"]
    if kind == "pypi":
        return PackageURL("pypi", None, name.lower().replace("_", "-"), version)
    if kind == "golang":
        folder, _, last = name.rpartition("/")
        return PackageURL("golang", folder or None, last, version)
    if kind == "deb":
        qualifiers = {
            "arch": part["architecture"],
            "distro": f"{part['system']}-{part['release']}",
        }
        return PackageURL("deb", part["system"], name, version, qualifiers)
    return PackageURL(kind, None, name, version)


def component(part: dict[str, str]) -> Component:
    """Return one part as a component."""
    address = package_url(part)
    licenses = [DisjunctiveLicense(name=part["license"])] if part.get("license") else []
    used = [Property(name="used_by", value=name) for name in part.get("used_by", "").split()]
    return Component(
        type=ComponentType.LIBRARY,
        name=part["name"],
        version=part["version"],
        purl=address,
        bom_ref=address.to_string(),
        licenses=licenses,
        properties=used,
    )


def write(told: dict[str, Any], file: Path) -> None:
    """Write the bill of materials; fail when it is not valid CycloneDX 1.6."""
    bom = Bom()
    whole = Component(
        type=ComponentType.CONTAINER,
        name=told["name"],
        version=told["version"],
        bom_ref=told["name"],
    )
    bom.metadata.component = whole
    for part in told["parts"]:
        bom.components.add(component(part))
    bom.register_dependency(whole, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if errors := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"{file} is no valid CycloneDX: {errors}")
    file.write_text(text + "\n")


if __name__ == "__main__":
    write(json.load(sys.stdin), Path(sys.argv[1]))
