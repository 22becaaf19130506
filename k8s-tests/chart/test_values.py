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

from chart.rendering import CHART, RenderError, default_values, helm, mappings, render
from tools import chart_generator

pytestmark = pytest.mark.chart
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
PARAMS = chart_generator.read_params(CHART / "values.yaml")
# Maps whose keys the user chooses; every other map has fixed keys.
OPEN = tuple(p.path for p in PARAMS if re.match(r"map\(|list\(any\)", p.kind))


def is_open(path: tuple[str, ...]) -> bool:
    typed = path[-1:] in (("matchLabels",), ("requests",), ("limits",), ("parameters",))
    return ".".join(path).startswith(OPEN) or path == ("models",) or typed


def closed_levels() -> list[tuple[str, ...]]:
    return [path for path, _ in mappings(default_values()) if not is_open(path)]


def refusals(values: Any) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(values)]


def test_defaults_follow_the_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert refusals(default_values()) == []


@pytest.mark.parametrize("path", closed_levels(), ids=".".join)
def test_a_misspelt_key_is_refused(path: tuple[str, ...]) -> None:
    values = copy.deepcopy(default_values())
    level: Any = values
    for key in path:
        level = level[int(key)] if isinstance(level, list) else level[key]
    level["misspelt"] = {}
    assert any("misspelt" in message for message in refusals(values))


@pytest.mark.parametrize(
    "values",
    [
        {"replica": 2},
        {"replicas": "2"},
        {"models": ["llama3-8b"]},
        {"models": {"llama3-8b": {"repo": "a/b"}}},
        {"models": {"Upper": {"engine": "simulated"}}},
        {"models": {"text_stream": {"engine": "simulated"}}},
        {"models": {"x": {"engine": "vllm"}}},
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
    ids=json.dumps,
)
def test_helm_refuses_a_wrong_value(values: dict[str, Any]) -> None:
    with pytest.raises(RenderError, match="don't meet the specifications of the schema"):
        render(values)


def test_what_is_generated_is_up_to_date() -> None:
    stale = [p.name for p, text in chart_generator.outputs(CHART).items() if p.read_text() != text]
    assert stale == [], "run: python3 -m tools.chart_generator"


def test_every_value_is_documented_and_every_documented_value_exists() -> None:
    documented = {p.path for p in PARAMS}
    leaves = set()
    for path, mapping in mappings(default_values()):
        for key, value in mapping.items():
            name = ".".join((*path, key))
            if not name.startswith((*documented, "models.")) and not isinstance(value, dict):
                leaves.add(name)
    assert leaves == set()
    for param in PARAMS:
        assert chart_generator.default_of(default_values(), param.keys) != "missing"


def references() -> set[str]:
    """Return the paths below .Values that templates read; $x := .Values.x is followed."""
    found: set[str] = set()
    for file in (CHART / "templates").rglob("*.*"):
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


def test_every_value_is_used_in_a_template() -> None:
    used = references()
    text = "".join(p.read_text() for p in (CHART / "templates").rglob("*.*"))
    unused = []
    for param in PARAMS:
        if "<name>" in param.keys:
            seen = re.search(rf"\$\w+\.{param.keys[-1]}\b", text) is not None
        else:
            prefixes = {".".join(param.keys[:n]) for n in range(1, len(param.keys) + 1)}
            seen = bool(prefixes & used)
        if not seen:
            unused.append(param.path)
    assert unused == []


def test_every_value_that_templates_read_is_declared() -> None:
    declared = {p.path for p in PARAMS}
    parents = {".".join(p.keys[:n]) for p in PARAMS for n in range(1, len(p.keys))}
    methods = {name for name in references() if name in declared | parents}
    unknown = {
        name
        for name in references() - methods
        if not name.startswith(("models.", *(f"{known}." for known in declared)))
    }
    assert unknown == set()


def test_the_package_holds_the_schema_and_no_test_values(tmp_path: Path) -> None:
    helm("package", str(CHART), "--destination", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as archive:
        names = set(archive.getnames())
    assert {"triton/values.schema.json", "triton/README.md", "triton/files/ask.py"} <= names
    assert not [name for name in names if name.startswith("triton/ci/")]
