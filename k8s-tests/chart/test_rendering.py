"""Every variant that the chart ships renders to objects that Kubernetes accepts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from chart.rendering import (
    CASE_IDS,
    CASES,
    CHART,
    CI_FILES,
    KUBERNETES,
    helm,
    mappings,
    program,
    render,
)
from cluster import binaries, schemas

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize("file", CASES, ids=CASE_IDS)
moment = pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])


def test_the_promised_variants_are_there() -> None:
    wanted = {"cpu", "gpu", "existing-secret-and-claim", "several-models", "everything"}
    assert wanted <= {file.stem.removesuffix("-values") for file in CI_FILES}


@variant
def test_variant_passes_strict_lint(file: Path | None) -> None:
    helm("lint", "--strict", str(CHART), *(["--values", str(file)] if file else []))


@pytest.fixture(scope="session")
def schema_location() -> str:
    try:
        return schemas.location()
    except binaries.MissingError as error:
        pytest.skip(str(error))


@variant
@moment
@pytest.mark.parametrize("version", KUBERNETES)
def test_variant_is_valid_for_kubernetes(
    file: Path | None, upgrade: bool, version: str, schema_location: str
) -> None:
    words = ["-strict", "-summary", "-kubernetes-version", version]
    done = subprocess.run(
        [program("kubeconform"), *words, "-schema-location", schema_location],
        input=render(file=file, upgrade=upgrade).text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(render(file=file, upgrade=upgrade).objects)} resources found" in done.stdout


@variant
@moment
def test_variant_is_tidy(file: Path | None, upgrade: bool) -> None:
    manifest = render(file=file, upgrade=upgrade)
    empty = [
        f"{found['kind']}: {'.'.join((*path, key))}"
        for found in manifest.objects
        for path, mapping in mappings(found)
        for key, value in mapping.items()
        if value is None
    ]
    assert empty == []
    script = manifest.text.find("/templates/tests/")
    assert not re.search(r"\n\s*\n\s*\n", manifest.text[:script]), "two blank lines in a row"


@variant
def test_every_object_is_in_the_namespace_of_the_release(file: Path | None) -> None:
    own = [o for o in render(file=file).objects if not o["metadata"]["name"].startswith("extra")]
    outside = [o["kind"] for o in own if o["metadata"].get("namespace") != "models"]
    assert [kind for kind in outside if kind != "ConfigMap"] == []


@variant
def test_lists_that_merge_by_key_hold_no_key_twice(file: Path | None) -> None:
    for _, pod in render(file=file).pods():
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        lists = [container.get("env", []) for container in containers]
        lists += [container.get("ports", []) for container in containers]
        lists += [containers, pod["spec"].get("volumes", [])]
        for entries in lists:
            names = [entry["name"] for entry in entries]
            assert len(names) == len(set(names)), names


def test_extra_objects_are_rendered_as_map_and_as_template() -> None:
    manifest = render(file=CHART / "ci" / "everything-values.yaml")
    labels = manifest.one("ConfigMap", "extra")["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/instance": "rel"}
    assert manifest.one("ConfigMap", "everything-extra")
