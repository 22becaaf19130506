"""Render charts with helm, and find one's way in what comes out."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import binaries, schemas
from tools.place import ROOT

CHART = ROOT / "charts" / "triton"
LOCUST = ROOT / "charts" / "locust"
CHARTS = (CHART, LOCUST)


def variants_of(chart: Path) -> list[Path]:
    """Return the values files that a chart ships for its tests."""
    return sorted(chart.glob("ci/*-values.yaml"))


def case_id(file: Path | None) -> str:
    """Return the name of a variant."""
    return file.stem.removesuffix("-values") if file else "defaults"


CI_FILES = variants_of(CHART)
CASES = [None, *CI_FILES]
CASE_IDS = [case_id(file) for file in CASES]
LOCUST_CASES = [None, *variants_of(LOCUST)]
LOCUST_CASE_IDS = [case_id(file) for file in LOCUST_CASES]
# Every chart with its defaults and with each of its values files.
VARIANTS = [(chart, file) for chart in CHARTS for file in (None, *variants_of(chart))]
VARIANT_IDS = [f"{chart.name}-{case_id(file)}" for chart, file in VARIANTS]
KUBERNETES = tuple(version.removeprefix("v") for version in schemas.KUBERNETES)

Object = dict[str, Any]


class RenderError(Exception):
    """helm refused to render; the text is what it printed."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The objects of one render."""

    text: str
    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        """Return all objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Object:
        """Return the only object of a kind (and name)."""
        found = [o for o in self.all(kind) if name in (None, o["metadata"]["name"])]
        assert len(found) == 1, f"{len(found)} objects {kind} {name or ''}"
        return found[0]

    def pods(self) -> Iterator[tuple[Object, Object]]:
        """Yield every object that makes pods, with its pod template (or itself, for a Pod)."""
        for found in self.objects:
            if found["kind"] == "Pod":
                yield found, found
            elif found["kind"] in ("Deployment", "Job"):
                yield found, found["spec"]["template"]

    @property
    def server(self) -> Object:
        """Return the container that runs tritonserver."""
        found = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        (server,) = [container for container in found if container["name"] == "triton"]
        return dict(server)


@functools.cache
def program(name: str) -> str:
    """Return the path of helm or kubeconform: built here, else on PATH; else skip the test."""
    try:
        return str(binaries.ensure([name])[name])
    except binaries.MissingError as error:
        if found := shutil.which(name):
            return found
        pytest.skip(str(error))


def helm(*words: str) -> str:
    """Run helm; return its stdout.

    Raises:
        RenderError: when its exit code is not 0.
    """
    done = subprocess.run([program("helm"), *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RenderError(done.stderr + done.stdout)
    return done.stdout


def render(
    values: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    release: str = "rel",
    namespace: str = "models",
    upgrade: bool = False,
    chart: Path = CHART,
) -> Manifest:
    """Render a chart with the values of a file and these on top.

    Raises:
        RenderError: when helm refuses them.
    """
    return _render(json.dumps(values or {}), file, release, namespace, upgrade, chart)


@functools.cache
def _render(
    values: str, file: Path | None, release: str, namespace: str, upgrade: bool, chart: Path
) -> Manifest:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as on_top:
        on_top.write(values)
        on_top.flush()
        words = ["template", release, str(chart), "--namespace", namespace]
        words += ["--values", str(file)] if file else []
        words += ["--is-upgrade"] if upgrade else []
        text = helm(*words, "--values", on_top.name)
    objects = tuple(document for document in yaml.safe_load_all(text) if document)
    return Manifest(text=text, objects=objects)


def default_values(chart: Path = CHART) -> dict[str, Any]:
    """Return the chart's values.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    return loaded


def mappings(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every mapping in a tree of values with the path that leads to it."""
    if isinstance(values, dict):
        yield path, values
        for key, value in values.items():
            yield from mappings(value, (*path, key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            yield from mappings(value, (*path, str(index)))
