"""Every variant that the chart ships renders to objects that Kubernetes accepts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from chart.rendering import (
    CHART,
    CI_FILES,
    KUBERNETES,
    LOCUST,
    VARIANT_IDS,
    VARIANTS,
    helm,
    mappings,
    program,
    render,
)
from cluster import binaries, schemas

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize(("chart", "file"), VARIANTS, ids=VARIANT_IDS)
moment = pytest.mark.parametrize("upgrade", [False, True], ids=["install", "upgrade"])


def test_the_promised_variants_are_there() -> None:
    wanted = {"cpu", "gpu", "existing-secret-and-claim", "several-models", "everything"}
    assert wanted <= {file.stem.removesuffix("-values") for file in CI_FILES}


@variant
def test_variant_passes_strict_lint(chart: Path, file: Path | None) -> None:
    helm("lint", "--strict", str(chart), *(["--values", str(file)] if file else []))


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
    chart: Path, file: Path | None, upgrade: bool, version: str, schema_location: str
) -> None:
    words = ["-strict", "-summary", "-kubernetes-version", version]
    manifest = render(chart=chart, file=file, upgrade=upgrade)
    done = subprocess.run(
        [program("kubeconform"), *words, "-schema-location", schema_location],
        input=manifest.text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(manifest.objects)} resources found" in done.stdout


@variant
@moment
def test_variant_is_tidy(chart: Path, file: Path | None, upgrade: bool) -> None:
    manifest = render(chart=chart, file=file, upgrade=upgrade)
    empty = [
        f"{found['kind']}: {'.'.join((*path, key))}"
        for found in manifest.objects
        for path, mapping in mappings(found)
        for key, value in mapping.items()
        if value is None
    ]
    assert empty == []
    text = manifest.text.partition("/templates/tests/")[0]
    assert not re.search(r"\n\s*\n\s*\n", text), "two blank lines in a row"


@variant
def test_every_object_is_in_the_namespace_of_the_release(chart: Path, file: Path | None) -> None:
    objects = render(chart=chart, file=file).objects
    own = [o for o in objects if not o["metadata"]["name"].startswith("extra")]
    outside = [o["kind"] for o in own if o["metadata"].get("namespace") != "models"]
    assert [kind for kind in outside if kind != "ConfigMap"] == []


@variant
def test_lists_that_merge_by_key_hold_no_key_twice(chart: Path, file: Path | None) -> None:
    for _, pod in render(chart=chart, file=file).pods():
        containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
        lists = [container.get("env", []) for container in containers]
        lists += [container.get("ports", []) for container in containers]
        lists += [containers, pod["spec"].get("volumes", [])]
        for entries in lists:
            names = [entry["name"] for entry in entries]
            assert len(names) == len(set(names)), names


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=lambda chart: chart.name)
def test_extra_objects_are_rendered_as_map_and_as_template(chart: Path) -> None:
    manifest = render(file=chart / "ci" / "everything-values.yaml", chart=chart)
    assert manifest.one("ConfigMap", "extra")
    (templated,) = [o for o in manifest.objects if o["metadata"]["name"].endswith("-extra")]
    assert "{{" not in str(templated)
