"""What the documents name exists: fixtures, markers, folders and modules."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

from tools import place

README = (place.ROOT / "k8s-tests" / "README.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    section = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def documents() -> list[Path]:
    """Return the Markdown files of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=place.ROOT, capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.split()) > 10
    return [place.ROOT / name for name in listed.stdout.split()]


def test_the_readme_names_every_marker_and_no_other() -> None:
    settings = tomllib.loads((place.ROOT / "pyproject.toml").read_text("utf-8"))
    markers = {line.split(":")[0] for line in settings["tool"]["pytest"]["ini_options"]["markers"]}
    assert {row[0].strip("`") for row in rows("Markers")} == markers


def test_every_fixture_of_the_readme_is_in_its_file() -> None:
    found = rows("Fixtures")
    assert len(found) > 5
    for names, file, _ in found:
        path = place.ROOT / "k8s-tests" / re.search(r"\((.*)\)", file).group(1)  # type: ignore[union-attr]
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in path.read_text("utf-8"), (name, file)


def test_every_link_between_documents_leads_to_a_file() -> None:
    broken = []
    for document in documents():
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text("utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(place.ROOT)}: {target}")
    assert broken == []
