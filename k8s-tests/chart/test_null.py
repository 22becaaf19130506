"""Helm deletes a key that is null, and an older chart lacks keys: no template may read 0 there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chart import generate
from chart.rendering import CHART, RenderError, helm, render
from support.place import ROOT

pytestmark = pytest.mark.chart
LOCUST = ROOT / "charts" / "locust"


def keys(chart: Path, *, nullable: bool) -> list[tuple[str, ...]]:
    """Return the paths of all documented values (not those of a map's entries) of one kind."""
    params = generate.read_params(chart / "values.yaml")
    return [
        tuple(param.keys)
        for param in params
        if "<name>" not in param.keys and generate.is_nullable(param.kind) == nullable
    ]


def nulls(paths: list[tuple[str, ...]]) -> dict[str, Any]:
    """Return values in which each of these paths is null."""
    values: dict[str, Any] = {}
    for path in paths:
        level = values
        for key in path[:-1]:
            level = level.setdefault(key, {})
        level[path[-1]] = None
    return values


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=["triton", "locust"])
def test_null_is_refused_by_name_where_a_value_is_needed(chart: Path) -> None:
    paths = keys(chart, nullable=False)
    assert len(paths) > 50
    with pytest.raises(RenderError) as caught:
        render(nulls(paths), chart=chart)
    said = str(caught.value)
    assert [".".join(p) for p in paths if f"'{p[-1]}'" not in said] == []


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=["triton", "locust"])
def test_null_is_taken_where_it_is_documented(chart: Path) -> None:
    assert render(nulls(keys(chart, nullable=True)), chart=chart).objects


@pytest.mark.parametrize(
    ("chart", "section", "key"),
    [(CHART, "shutdown", "drainSeconds"), (LOCUST, "jobs", "deadlineSeconds")],
    ids=["triton", "locust"],
)
def test_the_sentence_names_section_and_key(chart: Path, section: str, key: str) -> None:
    for values, missing in (({section: {key: None}}, key), ({section: None}, section)):
        with pytest.raises(RenderError, match=f"missing property '{missing}'"):
            render(values, chart=chart)


def test_a_job_without_a_ttl_stays() -> None:
    kept = render({"modelSync": {"ttlSecondsAfterFinished": None}}).all("Job")
    kept += render({"jobs": {"ttlSecondsAfterFinished": None}}, chart=LOCUST).all("Job")
    assert len(kept) == 3
    assert all("ttlSecondsAfterFinished" not in job["spec"] for job in kept)
    at_once = render({"modelSync": {"ttlSecondsAfterFinished": 0}}).one("Job")
    assert at_once["spec"]["ttlSecondsAfterFinished"] == 0


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=["triton", "locust"])
def test_a_parent_chart_can_switch_the_chart_on_by_a_condition(chart: Path) -> None:
    assert render({"enabled": True}, chart=chart).objects


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=["triton", "locust"])
def test_values_of_an_older_chart_get_a_sentence_for_each_missing_key(
    chart: Path, tmp_path: Path
) -> None:
    """`helm upgrade --reuse-values` gives new templates the old values and no others."""
    old = yaml.safe_load((chart / "values.yaml").read_text())
    gone = ("metrics", "networkPolicy")
    for section in gone:
        del old[section]
    del old["serviceAccount"]["create"]
    copy = tmp_path / "chart"
    copy.mkdir()
    for name in ("Chart.yaml", "values.schema.json", "templates", "files"):
        if (chart / name).exists():
            (copy / name).symlink_to(chart / name)
    (copy / "values.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(RenderError) as caught:
        helm("template", "rel", str(copy))
    said = str(caught.value)
    assert "nil pointer" not in said
    assert "missing properties 'metrics', 'networkPolicy'" in said
    assert "at '/serviceAccount': missing property 'create'" in said


@pytest.mark.parametrize(
    ("chart", "section"), [(CHART, "modelStore"), (LOCUST, "results")], ids=["triton", "locust"]
)
def test_an_empty_storage_class_is_not_the_default_one(chart: Path, section: str) -> None:
    for given in ("", "-"):
        manifest = render({section: {"storageClass": given}}, chart=chart)
        assert manifest.one("PersistentVolumeClaim")["spec"]["storageClassName"] == given
    spec = render({section: {"storageClass": None}}, chart=chart).one("PersistentVolumeClaim")
    assert "storageClassName" not in spec["spec"]


def test_a_number_that_helm_would_change_must_be_quoted() -> None:
    for seed in (2**63 - 1, 2**53 + 1, -(2**53) - 1):
        model = {"engine": "simulated", "parameters": {"seed": seed}}
        with pytest.raises(RenderError, match="/models/simulated/parameters/seed"):
            render({"models": {"simulated": model}})
        model["parameters"] = {"seed": str(seed)}
        assert str(seed) in render({"models": {"simulated": model}}).text
