"""JSON schemas for kubeconform, made from what the Go modules publish.

The usual schema collections live on hosts that a closed network does not reach, are made by a
tool of their own, and follow a release late. The modules hold the same facts: Kubernetes its
OpenAPI description, the others their CRDs; turning those into JSON schemas is the short file
that you read. Only the schemas stay, in the cache, in kubeconform's file layout.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster import binaries
from tools.place import cache

# Module, version and checksum (as in a go.sum; a go.mod cannot hold one module three times).
KUBERNETES = {
    "v1.33.0": ("v1.33.13", "h1:bmH31xUdSzeA5vk0wZAK9MZp11mdLuzUSeKk0qN3hPQ="),
    "v1.34.0": ("v1.34.4", "h1:Yy6R4QB8C9kJPp25GFqEvX5XQwY5qzKeqD0Xx6oAcmk="),
    "v1.35.0": ("v1.35.4", "h1:o/8dBC/pHVpYoGV4OAIytAlNPZbdYVTXJHoYvXC4qzM="),
}
DEFINITIONS = (
    (
        "sigs.k8s.io/gateway-api",
        "v1.4.0",
        "h1:ZwlNM6zOHq0h3WUX2gfByPs2yAEsy/EenYJB78jpQfQ=",
        "config/crd/standard/gateway.networking.k8s.io_*.yaml",
    ),
    (
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        "example/prometheus-operator-crd/*.yaml",
    ),
    (
        "github.com/kedacore/keda/v2",
        "v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
        "config/crd/bases/keda.sh_*.yaml",
    ),
)
# kubeconform's own names for its files, below the folder that this module makes.
LAYOUT = (
    "{{ .NormalizedKubernetesVersion }}-standalone{{ .StrictSuffix }}"
    "/{{ .ResourceKind }}{{ .KindSuffix }}.json"
)

Schema = dict[str, Any]


def location() -> str:
    """Return the value of kubeconform's -schema-location, making the schemas if needed."""
    return f"{schemas()}/{LAYOUT}"


def schemas() -> Path:
    """Return the folder of the schemas for 1.33.0, 1.34.0 and 1.35.0, making it if needed.

    Raises:
        binaries.MissingError: when Go is missing.
        binaries.BinariesError: when a module cannot be had or is not the one that was pinned.
    """
    final = folder()
    if final.is_dir():
        return final
    binaries.check_go("the schemas of kubeconform", "1.25")
    final.parent.mkdir(parents=True, exist_ok=True)
    had_caches = binaries.cache_folder().exists()
    with tempfile.TemporaryDirectory(prefix=".schemas-", dir=final.parent) as draft:
        made = Path(draft) / "made"
        _make(made)
        if not final.is_dir():
            made.rename(final)
    if not had_caches:
        binaries.remove_caches()
    return final


def folder() -> Path:
    """Return where the schemas are once they are made."""
    recipe = json.dumps([KUBERNETES, DEFINITIONS]).encode() + Path(__file__).read_bytes()
    return cache() / f"schemas-{hashlib.sha256(recipe).hexdigest()[:12]}"


def _make(into: Path) -> None:
    start = time.monotonic()
    crds = [
        document
        for module, version, checksum, pattern in DEFINITIONS
        for file in sorted(binaries.download(module, version, checksum).glob(pattern))
        for document in _yaml(file)
    ]
    for named, (version, checksum) in KUBERNETES.items():
        source = binaries.download("k8s.io/kubernetes", version, checksum)
        api = json.loads((source / "api/openapi-spec/swagger.json").read_text())["definitions"]
        for strict in (False, True):
            target = into / f"{named}-standalone{'-strict' if strict else ''}"
            target.mkdir(parents=True)
            for kind, schema in (*_built_in(api, strict=strict), *_custom(crds, strict=strict)):
                (target / f"{kind}.json").write_text(json.dumps(schema, separators=(",", ":")))
        binaries.say(f"schemas: Kubernetes {version} done", start)


def _yaml(file: Path) -> list[Any]:
    import yaml  # Only here: the rest runs with nothing but the standard library.

    class Loader(yaml.CSafeLoader):
        """Reads a bare "=" as text, as every reader but PyYAML does."""

    Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: node.value)
    with file.open() as stream:
        return [document for document in yaml.load_all(stream, Loader) if document]


def _built_in(api: Mapping[str, Schema], *, strict: bool) -> Iterator[tuple[str, Schema]]:
    """Give each kind of an OpenAPI description with all that it refers to in one schema."""
    for name, definition in api.items():
        for kind in definition.get("x-kubernetes-group-version-kind", []):
            if {"apiVersion", "kind"} <= definition.get("properties", {}).keys():
                schema = _convert(definition, strict=strict)
                used = _references(api, name) - {name}
                if name in _references(api, *used):
                    used.add(name)
                schema["definitions"] = {
                    use: _convert(api[use], strict=strict) if use != _QUANTITY else _NUMBER_OR_TEXT
                    for use in used
                }
                yield _file_name(kind["group"], kind["version"], kind["kind"]), _named(schema, kind)


def _custom(crds: Sequence[Schema], *, strict: bool) -> Iterator[tuple[str, Schema]]:
    for crd in crds:
        spec = crd["spec"]
        for version in spec["versions"]:
            kind = {
                "group": spec["group"],
                "kind": spec["names"]["kind"],
                "version": version["name"],
            }
            schema = _convert(version["schema"]["openAPIV3Schema"], strict=strict)
            yield _file_name(kind["group"], kind["version"], kind["kind"]), _named(schema, kind)


def _file_name(group: str, version: str, kind: str) -> str:
    """Return kubeconform's ResourceKind and KindSuffix: "deployment-apps-v1", "pod-v1"."""
    return "-".join(filter(None, (kind.lower(), group.split(".")[0], version)))


def _named(schema: Schema, kind: Mapping[str, str]) -> Schema:
    """Demand the apiVersion and the kind that the file stands for."""
    versions = "/".join(filter(None, (kind["group"], kind["version"])))
    properties = {
        **schema.get("properties", {}),
        "apiVersion": {"type": "string", "enum": [versions]},
        "kind": {"type": "string", "enum": [kind["kind"]]},
    }
    required = sorted({*schema.get("required", ()), "apiVersion", "kind"})
    draft = "http://json-schema.org/draft-07/schema#"
    return {**schema, "$schema": draft, "properties": properties, "required": required}


def _references(api: Mapping[str, Schema], *names: str) -> set[str]:
    """Return every definition that these refer to, directly or through others."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        text = json.dumps(api[waiting.pop()])
        for part in text.split('"#/definitions/')[1:]:
            if (name := part.split('"')[0]) not in found:
                found.add(name)
                waiting.append(name)
    return found


# What OpenAPI says beyond JSON schema, or too loosely for a check.
_NUMBER_OR_TEXT = {"type": ["string", "number"]}
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_DROPPED = ("description", "default", "example", "nullable", "title")


def _convert(schema: Any, *, strict: bool) -> Any:
    """Return one OpenAPI schema as a JSON schema.

    Optional fields may be null, as the API server takes that for "not set". Strict refuses
    fields that are not declared, where the API server does not keep them.
    """
    if schema.get("x-kubernetes-int-or-string") or schema.get("format") == "int-or-string":
        return {"type": ["string", "integer"]}
    made = {
        key: value
        for key, value in schema.items()
        if key not in _DROPPED and not key.startswith("x-") and key != "format"
    }
    if "items" in made:
        made["items"] = _convert(made["items"], strict=strict)
    for key in ("oneOf", "anyOf", "allOf"):
        if key in made:  # They repeat parts of the schema: only its fields are all declared.
            made[key] = [_convert(part, strict=False) for part in made[key]]
    if isinstance(more := made.get("additionalProperties"), dict):
        made["additionalProperties"] = _convert(more, strict=strict)
    if "properties" in made:
        required = made.get("required", ())
        made["properties"] = {
            name: _optional(_convert(value, strict=strict), name in required)
            for name, value in made["properties"].items()
        }
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if strict and made.get("type") == "object" and not open_ended:
            made.setdefault("additionalProperties", False)
    return made


def _optional(schema: Schema, required: bool) -> Schema:
    if required:
        return schema
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if "$ref" in schema else schema
