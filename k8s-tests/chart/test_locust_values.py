"""charts/locust: values are documented, declared and used; wrong ones are one sentence."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from chart.rendering import RenderError, default_values, mappings, render
from tools import chart_generator
from tools.place import ROOT

pytestmark = pytest.mark.chart
CHART = ROOT / "charts" / "locust"
PARAMS = chart_generator.read_params(CHART / "values.yaml")
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
OPEN = tuple(p.path for p in PARAMS if re.match(r"map\(|list\(", p.kind))
TEMPLATES = sorted(file for file in (CHART / "templates").rglob("*") if file.is_file())
TEXT = "".join(file.read_text() for file in TEMPLATES)


def closed_levels() -> list[tuple[str, ...]]:
    return [
        path
        for path, _ in mappings(default_values(CHART))
        if not ".".join(path).startswith(OPEN) and path[-1:] not in (("requests",), ("limits",))
    ]


def refusals(values: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(values)]


def test_what_is_generated_is_up_to_date() -> None:
    stale = [p.name for p, text in chart_generator.outputs(CHART).items() if p.read_text() != text]
    assert stale == [], "run: python3 -m tools.chart_generator charts/locust"


def test_defaults_follow_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert refusals(default_values(CHART)) == []


@pytest.mark.parametrize("path", closed_levels(), ids=".".join)
def test_a_misspelt_key_is_refused(path: tuple[str, ...]) -> None:
    values = copy.deepcopy(default_values(CHART))
    level: Any = values
    for key in path:
        level = level[key]
    level["misspelt"] = {}
    assert any("misspelt" in message for message in refusals(values))


def test_every_value_is_documented_and_every_documented_value_exists() -> None:
    documented = {p.path for p in PARAMS}
    for path, mapping in mappings(default_values(CHART)):
        for key, value in mapping.items():
            name = ".".join((*path, key))
            if not isinstance(value, dict):
                assert name in documented or name.startswith(tuple(documented)), name
    for param in PARAMS:
        chart_generator.default_of(default_values(CHART), param.keys)


@pytest.mark.parametrize("param", PARAMS, ids=lambda param: param.path)
def test_every_value_is_used_in_a_template(param: chart_generator.Param) -> None:
    """By its path, or by its last key where a template reads a part of the values by name."""
    if param.path in ("data.file", "schema.file", "data.inline", "schema.inline"):
        pattern = rf"\.Values\.{re.escape(param.path)}\b"
    else:
        pattern = rf"\.{re.escape(param.keys[-1])}\b"
    assert re.search(pattern, TEXT)


def test_every_value_that_templates_read_is_declared() -> None:
    declared = {p.path for p in PARAMS}
    parents = {".".join(p.keys[:n]) for p in PARAMS for n in range(1, len(p.keys))}
    read = {name.rstrip(".") for name in re.findall(r"\.Values\.([\w.]+)", TEXT)}
    assert len(read) > 40
    assert read - declared - parents == set()


@pytest.mark.parametrize(
    "values",
    [
        {"runs": {}},
        {"run": {"users": "10"}},
        {"run": {"users": 0}},
        {"run": {"spawnRate": 0}},
        {"run": {"client": "grcp"}},
        {"run": {"name": "Upper"}},
        {"run": {"name": "seventeen-letters"}},
        {"target": {"url": "triton:8000"}},
        {"target": {"url": "http://triton:8000/v2"}},
        {"target": {"grpc": "http://triton:8001"}},
        {"workers": {"count": 0}},
        {"objectives": {"p95 ttft": [1]}},
        {"image": {"digest": "sha256:short"}},
        {"jobs": {"deadlineSeconds": 1}},
        {"networkPolicy": {"targetPorts": []}},
        {"metrics": {"port": 80}},
        {"capacity": {"by": "tokens"}},
        {"capacity": {"start": 0}},
        {"capacity": {"headroom": 1}},
    ],
    ids=json.dumps,
)
def test_helm_refuses_a_wrong_value(values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
        render(values, chart=CHART)


SEARCH: dict[str, Any] = {"capacity": {"enabled": True}, "objectives": {"error ratio": 0}}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "two data files": (
        {"data": {"file": "/a", "inline": "[]"}},
        "data.file and data.inline are set together: keep one",
    ),
    "three schemas": (
        {"schema": {"file": "/a", "inline": "b", "existingConfigMap": "c"}},
        "schema.file and schema.inline and schema.existingConfigMap",
    ),
    "no json": ({"data": {"inline": '{"data": [}'}}, "data.inline is no JSON"),
    "doubled option": (
        {"run": {"options": {"users": 5}}},
        "run.options.users is set by the chart: set run.users instead",
    ),
    "killed too early": (
        {"run": {"durationSeconds": 7200}},
        "jobs.deadlineSeconds (7200) ends the Jobs before the run can end (7680 s",
    ),
    "a page that would be killed": (
        {"webUI": {"enabled": True, "lingerSeconds": 7200}},
        "with waiting, stopping and lingering): raise it",
    ),
    "search without an aim": (
        {"capacity": {"enabled": True}},
        "capacity.enabled searches within the objectives: set objectives",
    ),
    "search with a load": (
        {**SEARCH, "run": {"rate": 2, "shape": "ramp", "options": {"think-time": 1}}},
        "capacity.enabled chooses the load itself: unset run.rate and run.shape and "
        "run.options.think-time",
    ),
    "search for two": (
        {**SEARCH, "capacity": {"enabled": True, "forUsers": 2, "forRate": 2}},
        "capacity.forUsers and capacity.forRate are set together: keep one",
    ),
    "search for nothing": (
        {**SEARCH, "capacity": {"enabled": True, "start": 5, "highest": 4}},
        "capacity.start is above capacity.highest",
    ),
    "half a user": (
        {**SEARCH, "capacity": {"enabled": True, "by": "users", "start": 1.5}},
        "capacity.start must be a whole number of users",
    ),
    "search with a page": (
        {**SEARCH, "webUI": {"enabled": True}},
        "capacity.enabled makes many runs, which have no page: unset webUI.enabled",
    ),
    "no page": ({"webUI": {"ingress": {"enabled": True}}}, "set webUI.enabled"),
    "nothing to scrape": (
        {"metrics": {"enabled": False, "scrape": "podMonitor"}},
        "set metrics.enabled",
    ),
}


@pytest.mark.parametrize(("values", "message"), FAULTS.values(), ids=FAULTS)
def test_a_contradiction_is_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RenderError) as caught:
        render(values, chart=CHART)
    (line,) = [line for line in str(caught.value).splitlines() if line.startswith("- ")]
    assert message in line
    assert line.endswith(".")


def test_all_contradictions_are_told_at_once() -> None:
    values = {"data": {"file": "/a", "inline": "{}"}, "webUI": {"ingress": {"enabled": True}}}
    with pytest.raises(RenderError) as caught:
        render(values, chart=CHART)
    assert len([line for line in str(caught.value).splitlines() if line.startswith("- ")]) == 2


@pytest.mark.parametrize("text", ["[]", '{"data": []}', ' [{"a": 1}]\n'])
def test_good_inline_data_renders(text: str) -> None:
    assert render({"data": {"inline": text}}, chart=CHART).one("ConfigMap")


# The style of the files.


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.name)
def test_lines_and_files_are_short(file: Path) -> None:
    lines = file.read_text().splitlines()
    if file.name != "NOTES.txt":
        assert max(len(line) for line in lines) <= 120
    assert len(lines) <= 130
    assert not [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize(
    "file", [f for f in TEMPLATES if f.suffix == ".tpl"], ids=lambda file: file.name
)
def test_every_helper_says_what_it_is_for_and_is_used(file: Path) -> None:
    text = file.read_text()
    for match in re.finditer(r'\{\{-? define "([^"]+)"', text):
        assert text[: match.start()].rstrip().endswith("*/}}"), f"{match[1]} has no comment"
        assert f'include "{match[1]}"' in TEXT, f"nothing uses {match[1]}"


@pytest.mark.parametrize("file", sorted(CHART.glob("ci/*.yaml")), ids=lambda file: file.name)
def test_a_variant_says_in_its_first_line_what_it_is(file: Path) -> None:
    assert re.match(r"# [A-Z].*\.$", file.read_text().splitlines()[0])
