"""A value that is set to null is refused by name, or leaves something out; it is never 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chart.rendering import CHART, CHARTS, LOCUST, RenderError, render
from tools.chart_generator import read_params

pytestmark = pytest.mark.chart


def keys(chart: Path, *, nullable: bool) -> list[str]:
    return [
        param.path
        for param in read_params(chart / "values.yaml")
        if "<name>" not in param.keys and param.kind.split(" ")[0].endswith("?") == nullable
    ]


def nulled(path: str) -> dict[str, Any]:
    values: Any = None
    for key in reversed(path.split(".")):
        values = {key: values}
    return dict(values)


@pytest.mark.parametrize(
    ("chart", "path"),
    [(chart, path) for chart in CHARTS for path in keys(chart, nullable=False)],
    ids=lambda part: part.name if isinstance(part, Path) else part,
)
def test_a_chart_says_which_value_is_missing(chart: Path, path: str) -> None:
    with pytest.raises(RenderError, match=f"missing property '{path.rpartition('.')[2]}'"):
        render(nulled(path), chart=chart)


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=lambda chart: chart.name)
def test_null_keeps_finished_jobs(chart: Path) -> None:
    """Argo CD runs a Job again that its TTL has removed."""
    values = {
        CHART: {"modelSync": {"ttlSecondsAfterFinished": None}},
        LOCUST: {"jobs": {"ttlSecondsAfterFinished": None}},
    }
    jobs = render(values[chart], chart=chart).all("Job")
    assert jobs
    assert all("ttlSecondsAfterFinished" not in job["spec"] for job in jobs)


def test_values_of_an_older_chart_get_plain_sentences_and_no_nil_pointer() -> None:
    """`helm upgrade --reuse-values` keeps the defaults of the older chart, which lack new keys."""
    with pytest.raises(RenderError) as caught:
        render({"server": {"apiKey": None}, "publicCalls": None, "httpRoute": {"filters": None}})
    said = str(caught.value)
    assert "nil pointer" not in said
    assert "missing property 'publicCalls'" in said
    assert "at '/server': missing property 'apiKey'" in said
    assert "at '/httpRoute': missing property 'filters'" in said


@pytest.mark.parametrize("chart", [CHART, LOCUST], ids=["triton", "locust"])
def test_a_parent_chart_can_switch_the_chart_on_by_a_condition(chart: Path) -> None:
    assert render({"enabled": True}, chart=chart).objects


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
