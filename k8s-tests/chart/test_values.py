"""Values: each is documented, declared, used, and a misspelt one is refused."""

from __future__ import annotations

import copy
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from chart.rendering import (
    CHART,
    CHARTS,
    LOCUST,
    RenderError,
    default_values,
    helm,
    mappings,
    render,
)
from tools import chart_generator
from triton_hf.errors import SettingsError
from triton_hf.models.parameters import Parameter
from triton_hf.models.registry import ENGINES, TASKS, kinds, model_parameters

pytestmark = pytest.mark.chart
SCHEMAS = {chart: json.loads((chart / "values.schema.json").read_text()) for chart in CHARTS}
PARAMS = {chart: chart_generator.read_params(chart / "values.yaml") for chart in CHARTS}
# Maps whose keys the user chooses; every other map has fixed keys.
OPEN = {
    chart: tuple(p.path for p in params if re.match(r"map\(|list\(any\)", p.kind))
    for chart, params in PARAMS.items()
}
each = pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)


def is_open(chart: Path, path: tuple[str, ...]) -> bool:
    typed = path[-1:] in (("matchLabels",), ("requests",), ("limits",))
    return ".".join(path).startswith(OPEN[chart]) or path == ("models",) or typed


def closed_levels() -> list[tuple[Path, tuple[str, ...]]]:
    return [
        (chart, path)
        for chart in CHARTS
        for path, _ in mappings(default_values(chart))
        if not is_open(chart, path)
    ]


def refusals(chart: Path, values: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMAS[chart])
    return [error.message for error in validator.iter_errors(values)]


@each
def test_defaults_follow_the_schema(chart: Path) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMAS[chart])
    assert refusals(chart, default_values(chart)) == []


@pytest.mark.parametrize(
    ("chart", "path"),
    closed_levels(),
    ids=lambda part: part.name if isinstance(part, Path) else ".".join(part),
)
def test_a_misspelt_key_is_refused(chart: Path, path: tuple[str, ...]) -> None:
    values = copy.deepcopy(default_values(chart))
    level: Any = values
    for key in path:
        level = level[int(key)] if isinstance(level, list) else level[key]
    level["misspelt"] = {}
    assert any("misspelt" in message for message in refusals(chart, values))


WRONG: dict[Path, list[dict[str, Any]]] = {
    CHART: [
        {"replica": 2},
        {"replicas": "2"},
        {"models": ["llama3-8b"]},
        {"models": {"llama3-8b": {"repo": "a/b"}}},
        {"models": {"Upper": {"engine": "simulated"}}},
        {"models": {"text_stream": {"engine": "simulated"}}},
        {"models": {"x": {"engine": "no-such-engine"}}},
        {"models": {"x": {"parameters": {"slotts": 8}}}},
        {"models": {"x": {"parameters": {"slots": 0}}}},
        {"models": {"x": {"parameters": {"slots": "many"}}}},
        {"models": {"x": {"parameters": {"dtype": "float8"}}}},
        {"models": {"x": {"parameters": {"temperature": 2.5}}}},
        {"image": {"digest": "sha256:short"}},
        {"image": {"tag": ""}},
        {"sharedMemory": "1 GB"},
        {"gpu": {"tolerations": [{"keys": "a"}]}},
        {"modelStore": {"accessModes": ["ReadWriteOncePod"]}},
        {"modelStore": {"accessModes": []}},
        {"podDisruptionBudget": {"maxUnavailable": -1}},
        {"networkPolicy": {"gateway": [{"namespaceSelektor": {}}]}},
        {"extraEnv": {"A": {"value": "b"}}},
        {"httpRoute": {"parentRefs": [{"name": "gateway", "sectionname": "https"}]}},
        {"httpRoute": {"parentRefs": [{"namespace": "gateways"}]}},
        {"autoscaling": {"behavior": {"scaleUp": {"policies": [{"type": "Pod", "value": 1}]}}}},
        {"podSecurityContext": {"fsgroup": 1}},
        {"podSecurityContext": {"runAsUser": "root"}},
        {"securityContext": {"capabilities": {"drops": ["ALL"]}}},
        {"extraVolumeMounts": [{"name": "a", "mountpath": "/a"}]},
    ],
    LOCUST: [
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
}


@pytest.mark.parametrize(
    ("chart", "values"),
    [(chart, values) for chart, found in WRONG.items() for values in found],
    ids=lambda part: part.name if isinstance(part, Path) else json.dumps(part),
)
def test_helm_refuses_a_wrong_value(chart: Path, values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
        render(values, chart=chart)


@each
def test_what_is_generated_is_up_to_date(chart: Path) -> None:
    stale = [p.name for p, text in chart_generator.outputs(chart).items() if p.read_text() != text]
    assert stale == [], "run: make generate"


def parameters() -> dict[str, Parameter]:
    return {name: one for kind in kinds() for name, one in model_parameters(kind).items()}


def test_the_schema_and_the_checks_know_what_each_engine_takes() -> None:
    names = {*parameters()} - {"engine", "task", "repo_id", "revision"}
    schema = SCHEMAS[CHART]
    assert set(schema["definitions"]["parameters"]["properties"]) == names
    entry = schema["properties"]["models"]["additionalProperties"]["properties"]
    assert entry["engine"]["enum"] == list(ENGINES)
    known = json.loads((CHART / "files" / "engines.json").read_text())
    assert known["engines"].keys() == ENGINES.keys()
    assert {*entry["task"]["anyOf"][0]["enum"]} == {*TASKS}
    tasks = [of_task for found in known["engines"].values() for of_task in found["tasks"].items()]
    assert {task for task, _ in tasks} == {*TASKS}
    assert set().union(*(taken for _, taken in tasks)) == names


def test_templates_name_no_engine() -> None:
    """What an engine needs stands in files/engines.json, which is generated."""
    for file in (CHART / "templates").rglob("*.*"):
        words = set(re.findall(r"\w+", file.read_text()))
        assert not words & set(ENGINES), file.name


@pytest.mark.parametrize("text", ["7", "1e-1", "0.1", "+7", "many", ""])
@pytest.mark.parametrize("name", ["slots", "temperature"])
def test_a_number_may_be_text_exactly_when_the_server_reads_it(name: str, text: str) -> None:
    try:
        parameters()[name].read_text(text)
    except SettingsError:
        readable = False
    else:
        readable = text != "+7"
    schema = SCHEMAS[CHART]["definitions"]["parameters"]["properties"][name]
    in_range = readable or (name == "temperature" and text == "7")
    assert jsonschema.Draft7Validator(schema).is_valid(text) == in_range


@each
def test_every_value_is_documented_and_every_documented_value_exists(chart: Path) -> None:
    documented = {p.path for p in PARAMS[chart]}
    inside = tuple(f"{path}." for path in documented)
    leaves = set()
    for path, mapping in mappings(default_values(chart)):
        for key, value in mapping.items():
            name = ".".join((*path, key))
            known = name in documented or name.startswith((*inside, "models."))
            if not known and not isinstance(value, dict):
                leaves.add(name)
    assert leaves == set()
    for param in PARAMS[chart]:
        chart_generator.default_of(default_values(chart), param.keys)


def references(chart: Path) -> set[str]:
    """Return the paths below .Values that templates read; $x := .Values.x is followed."""
    found: set[str] = set()
    for file in (chart / "templates").rglob("*.*"):
        # A define has variables of its own.
        for part in re.split(r"\{\{-? define ", file.read_text()):
            aliases: dict[str, str] = {}
            for name, source in re.findall(r"(\$\w+) :?= ([.$\w]+) -?\}\}", part):
                if target := resolve(source, aliases):
                    aliases[name] = target
            found |= {
                target
                for name, target in aliases.items()
                if len(re.findall(rf"{re.escape(name)}(?![\w.])", part)) > 1
            }
            for match in re.finditer(r"(:?= )?((?:\$\w*)?(?:\.\w+)+)( -?\}\})?", part):
                if match[1] and match[3]:
                    continue
                if target := resolve(match[2], aliases):
                    found.add(target)
    return found


def resolve(source: str, aliases: dict[str, str]) -> str:
    if match := re.match(r"(?:\$|\$root)?\.Values\.(.+)", source):
        return match[1]
    name, _, rest = source.partition(".")
    return f"{aliases[name]}.{rest}".rstrip(".") if name in aliases else ""


@each
def test_every_value_is_used_in_a_template(chart: Path) -> None:
    used = references(chart)
    text = "".join(p.read_text() for p in (chart / "templates").rglob("*.*"))
    unused = []
    for param in PARAMS[chart]:
        if "<name>" in param.keys:
            seen = re.search(rf"\$\w+\.{param.keys[-1]}\b", text) is not None
        else:
            prefixes = {".".join(param.keys[:n]) for n in range(1, len(param.keys) + 1)}
            seen = bool(prefixes & used)
        if not seen:
            unused.append(param.path)
    assert unused == []


@each
def test_every_value_that_templates_read_is_declared(chart: Path) -> None:
    declared = {p.path for p in PARAMS[chart]}
    parents = {".".join(p.keys[:n]) for p in PARAMS[chart] for n in range(1, len(p.keys))}
    found = references(chart)
    assert len(found) > 40
    unknown = {
        name
        for name in found - declared - parents
        if not name.startswith(("models.", *(f"{known}." for known in declared)))
    }
    assert unknown == set()


@each
def test_the_package_holds_the_schema_and_no_test_values(chart: Path, tmp_path: Path) -> None:
    helm("package", str(chart), "--destination", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        names = set(archive.getnames())
    files = {file.relative_to(chart).as_posix() for file in chart.rglob("*") if file.is_file()}
    shipped = {name for name in files if not name.startswith(("ci/", "examples/", "."))}
    assert {"values.schema.json", "README.md"} <= shipped
    assert names - {f"{chart.name}/.helmignore"} == {f"{chart.name}/{name}" for name in shipped}
