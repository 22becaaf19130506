"""Make what is derived: the schema and tables from values.yaml, engines.json from the registry.

A line `## @param PATH [TYPE] TEXT` documents one value; lines that start with `##   ` continue it.
TYPE is a word of `TYPES`, `enum(a,b)`, `list(T)`, `map(T)`, with `?` behind it when null is allowed
and limits after it: `[integer min=1]`, `[string? pattern=^[a-z]+$]`. `<name>` in a path stands for
any key of a map. Helm deletes a key that is set to null, so every key without `?` is required.
`## @instead WORD KEY` names a word of other charts and ours.

Usage: make generate (writes), make verify (compares)
Exit codes: 0 done or up to date, 1 something is out of date (--check), 2 a comment is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tools.chart_types import DEFINITIONS, LIMITS, TYPES, Schema, closed
from triton_hf.models.registry import (
    DEFAULT_ENGINE,
    ENGINES,
    engine_kind,
    model_parameters,
    tasks_of,
)

CHART = Path(__file__).resolve().parents[1] / "charts" / "triton"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"
ENGINES_FILE = Path("files") / "engines.json"
WORDS_FILE = Path("files") / "words.json"

# Names of the entries of maps whose keys become parts of addresses and object names.
KEYS = {
    "models": {
        "pattern": "^[a-z0-9]([a-z0-9._-]{0,46}[a-z0-9])?$",
        "not": {"pattern": "_stream$"},
    }
}


class CommentError(Exception):
    """A `@param` line that cannot be used; the text says which and why."""


@dataclass(frozen=True, kw_only=True)
class Param:
    """One documented value."""

    path: str
    kind: str
    text: str
    section: str

    @property
    def keys(self) -> list[str]:
        """Return the keys that lead to it."""
        return self.path.split(".")


def read_params(values: Path) -> list[Param]:
    """Return all documented values in the order of the file.

    Raises:
        CommentError: for a `@param` line without path, type or text.
    """
    found: list[list[str]] = []
    section = ""
    for raw in values.read_text().splitlines():
        line = raw.strip()
        if line.startswith("## @section "):
            section = line.removeprefix("## @section ")
        elif line.startswith("## @param "):
            found.append([section, line.removeprefix("## @param ")])
        elif line.startswith("##   ") and found:
            found[-1][1] += " " + line.removeprefix("##").strip()
    params = []
    for named, line in found:
        match = re.match(r"(\S+) \[((?:[^\[\]]|\[[^\]]*\])+)\] (\S.*\.)$", line)
        if match is None:
            raise CommentError(f"not `PATH [TYPE] sentence.`: {line}")
        params.append(Param(path=match[1], kind=match[2], text=match[3], section=named))
    return params


def read_words(values: Path) -> dict[str, str]:
    """Return words of other charts and the names of the same things in this one."""
    lines = re.findall(r"^## @instead (\S+) (.+)$", values.read_text(), re.MULTILINE)
    return dict(lines)


def admit_words(root: Schema, words: dict[str, str]) -> None:
    """Let the words of other charts pass the schema: the chart refuses them with the right name."""
    for path, ours in words.items():
        node = root
        *parents, last = path.split(".")
        for key in parents:
            node = node["properties"][key]
        node["properties"][last] = {"description": f"Not a value of this chart: set {ours}."}


def type_schema(kind: str) -> Schema:
    """Return the JSON schema of a type as written in a comment.

    Raises:
        CommentError: for a type or limit that is not known.
    """
    word, *limits = kind.split(" ")
    nullable, word = is_nullable(kind), word.removesuffix("?")
    schema = dict(_plain(word))
    for limit in limits:
        name, _, text = limit.partition("=")
        if name not in LIMITS:
            raise CommentError(f"unknown limit {limit!r} in [{kind}]")
        key, convert = LIMITS[name]
        is_text = schema.get("type") == "string"
        schema["maxLength" if is_text and name == "max" else key] = convert(text)
    if not nullable:
        return schema
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def is_nullable(kind: str) -> bool:
    """Return whether a type as written in a comment allows null."""
    return kind.split(" ")[0].endswith("?")


def _plain(word: str) -> Schema:
    match = re.match(r"(enum|list|map|def)\((.+)\)$", word)
    if match is None:
        if word in DEFINITIONS:
            return {"$ref": f"#/definitions/{word}"}
        if word not in TYPES:
            raise CommentError(f"unknown type {word!r}")
        return TYPES[word]
    form, inner = match[1], match[2]
    if form == "enum":
        return {"enum": inner.split(",")}
    if form == "list":
        return {"type": "array", "items": type_schema(inner)}
    if form == "map":
        return {"type": "object", "additionalProperties": type_schema(inner)}
    return {"$ref": f"#/definitions/{inner}"}


def build_schema(params: list[Param], words: dict[str, str]) -> Schema:
    """Return the JSON schema (draft 7) of the whole values file; unknown keys are refused."""
    root = closed({})
    for param in params:
        node = root
        for depth, key in enumerate(param.keys):
            last = depth == len(param.keys) - 1
            leaf = {"description": param.text, **type_schema(param.kind)} if last else None
            # Helm deletes a key that is set to null, and a template would then read 0 or "".
            if "<name>" not in param.keys and not (last and is_nullable(param.kind)):
                node["required"] = sorted({*node.get("required", ()), key})
            if key == "<name>":
                node["additionalProperties"] = node["additionalProperties"] or closed({})
                if names := KEYS.get(".".join(param.keys[:depth])):
                    node["propertyNames"] = names
                node = node["additionalProperties"]
            else:
                node = node["properties"].setdefault(key, leaf or closed({}))
    used = json.dumps(root)
    needed = {n for n in DEFINITIONS if f"#/definitions/{n}" in used}
    needed |= {n for n in DEFINITIONS for m in needed if f"/{n}" in json.dumps(DEFINITIONS[m])}
    # Helm hands the values of a parent chart down under this key.
    root["properties"]["global"] = {"type": "object", "description": "Values of a parent chart."}
    root["properties"]["enabled"] = {
        "type": "boolean",
        "description": "For the `condition` of a parent chart; this chart does not read it.",
    }
    admit_words(root, words)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **root,
        "definitions": {name: DEFINITIONS[name] for name in sorted(needed)},
    }


def default_of(values: Any, keys: list[str]) -> Any:
    """Return the default of a value; nothing for an entry of a map."""
    for key in keys:
        if key == "<name>":
            return ...
        values = values[key]
    return values


def build_tables(params: list[Param], values: Any) -> str:
    """Return the tables of the chart's README: one for each section."""
    lines: list[str] = []
    section = None
    for param in params:
        if param.section != section:
            section = param.section
            lines += [
                "",
                f"### {section}",
                "",
                "| value | default | what it does |",
                "|---|---|---|",
            ]
        default = default_of(values, param.keys)
        shown = "" if default is ... else json.dumps(default)
        if len(shown) > 60:
            shown = "see values.yaml"
        shown = f"`{shown}`" if shown and shown != "see values.yaml" else shown
        lines.append(f"| `{param.path}` | {shown} | {param.text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines).strip()


def own_parameters(engine: str, task: str) -> list[str]:
    """Return what `models.<name>.parameters` may have for a task, in the order of the alphabet."""
    fields = {"engine", "task", "repo_id", "revision"}
    return sorted({*model_parameters(engine_kind(engine, task))} - fields)


def engines() -> dict[str, Any]:
    """Return what each engine needs and takes, for the chart's own checks."""
    return {
        "default": DEFAULT_ENGINE,
        "engines": {
            name: {
                "repository": kind.needs_repository,
                "tasks": {task: own_parameters(name, task) for task in tasks_of(name)},
            }
            for name, kind in ENGINES.items()
        },
    }


def outputs(chart: Path) -> dict[Path, str]:
    """Return the text of every generated file of a chart."""
    params = read_params(chart / "values.yaml")
    words = read_words(chart / "values.yaml")
    values = yaml.safe_load((chart / "values.yaml").read_text())
    readme = (chart / "README.md").read_text()
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise CommentError(f"{chart}/README.md lacks {BEGIN} and {END}")
    made = {
        chart / "values.schema.json": json.dumps(build_schema(params, words), indent=2) + "\n",
        chart / "README.md": f"{head}{BEGIN}\n\n{build_tables(params, values)}\n\n{END}{tail}",
    }
    made[chart / WORDS_FILE] = json.dumps(words, indent=1) + "\n"
    if any(param.kind == "engine" for param in params):
        made[chart / ENGINES_FILE] = json.dumps(engines(), indent=1) + "\n"
    return made


def main() -> int:
    """Write the generated files, or with --check compare them."""
    parser = argparse.ArgumentParser(prog="chart_generator", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail when out of date")
    parser.add_argument("chart", nargs="?", type=Path, default=CHART, help="folder of the chart")
    options = parser.parse_args()
    try:
        made = outputs(options.chart)
    except CommentError as error:
        print(f"chart_generator: {error}", file=sys.stderr)
        return 2
    stale = [p for p, text in made.items() if not p.is_file() or p.read_text() != text]
    for path in stale:
        print(f"{path.name} {'is out of date: run make generate' if options.check else 'written'}")
        if not options.check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path])
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
