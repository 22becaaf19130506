"""The helm commands of the READMEs render as they are pasted, one after the other."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from chart.rendering import Manifest, helm
from tools.place import ROOT

pytestmark = pytest.mark.chart
READMES = [ROOT / "README.md", ROOT / "charts" / "triton" / "README.md"]


def test_no_document_recommends_reuse_values() -> None:
    """It keeps the defaults of the old chart, so values of the new one are missing."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("charts/**/*.md"), *ROOT.glob("charts/**/NOTES.txt")]
    assert len(files) >= 6
    commands_ = [
        f"{file.relative_to(ROOT)}: {line}"
        for file in files
        for line in file.read_text().splitlines()
        if "helm upgrade" in line and " --reuse-values" in line
    ]
    assert commands_ == []


def commands(readme: Path) -> list[list[str]]:
    """Return the words of each helm command that changes a release, in the order of the text."""
    lines = re.findall(r"^\$ (helm (?:install|upgrade) .+)$", readme.read_text(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def rendered(words: list[str], before: list[str]) -> tuple[Manifest, list[str]]:
    """Return what a command makes of a release that was given some options before."""
    _, verb, release, chart, *options = words
    kept = before if "--reset-then-reuse-values" in options else []
    options = [*kept, *(word for word in options if word != "--reset-then-reuse-values")]
    upgrade = ["--is-upgrade"] if verb == "upgrade" else []
    text = helm("template", release, str(ROOT / chart), *options, *upgrade)
    objects = tuple(found for found in yaml.safe_load_all(text) if found)
    return Manifest(text=text, objects=objects), options


@pytest.mark.parametrize("readme", READMES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_helm_command_renders(readme: Path) -> None:
    found = commands(readme)
    assert found
    options: list[str] = []
    for words in found:
        manifest, options = rendered(words, options)
        assert manifest.one("Deployment")["metadata"]["namespace"] == "triton"


def test_the_release_of_the_readme_scales_after_its_second_command() -> None:
    install, upgrade = commands(ROOT / "README.md")
    first, options = rendered(install, [])
    second, _ = rendered(upgrade, options)
    assert first.all("ScaledObject") == []
    assert second.one("ScaledObject")["spec"]["maxReplicaCount"] == 8
    assert second.one("PodMonitor")
    assert second.one("PrometheusRule")
    claim = second.one("PersistentVolumeClaim")
    assert claim == first.one("PersistentVolumeClaim"), "a claim cannot be changed"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
