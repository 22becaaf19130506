"""The types that a `@param` comment may name, as JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_hf.models.registry import ENGINE, TASK, kinds, model_parameters

Schema = dict[str, Any]

QUANTITY = r"^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
LABEL_SELECTOR: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["key", "operator"],
                "properties": {
                    "key": {"type": "string"},
                    "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}},
                },
            },
        },
    },
}


def closed(properties: Schema, *required: str) -> Schema:
    """Return the schema of an object that has these keys and no others."""
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return {**schema, "required": list(required)} if required else schema


TEXT: Schema = {"type": "string", "minLength": 1}
# Helm reads numbers as floats, so a larger whole number changes its digits: it must be quoted.
EXACT = 2**53 - 1
SCALAR: Schema = {"type": ["string", "number", "boolean"], "minimum": -EXACT, "maximum": EXACT}
NUMBERS = {"integer": "^-?[0-9]+$", "number": r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?$"}


def written(schema: Mapping[str, Any]) -> Schema:
    """Return the schema of a parameter as a values file writes it: numbers also as text."""
    kind = schema.get("type")
    if kind == "boolean":
        return {"enum": [True, False, "true", "false"]}
    if not isinstance(kind, str) or kind not in NUMBERS:
        return dict(schema)
    exact = {key: min(schema[key], EXACT) for key in ("maximum",) if key in schema}
    return {**schema, **exact, "type": [kind, "string"], "pattern": NUMBERS[kind]}


def parameters() -> Schema:
    """Return the schema of `models.<name>.parameters`: what any engine takes."""
    own = ("engine", "task", "repo_id", "revision")
    return closed(
        {
            name: {"description": f"{one.meaning}.", **written(one.kind.schema())}
            for kind in kinds()
            for name, one in model_parameters(kind).items()
            if name not in own
        }
    )


AMOUNTS: Schema = {"type": "object", "additionalProperties": {"$ref": "#/definitions/amount"}}
TYPES: dict[str, Schema] = {
    "string": TEXT,
    "text": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "any": {},
    "engine": dict(ENGINE.kind.schema()),
    "task": dict(TASK.kind.schema()),
    "scalar": SCALAR,
    "intOrPercent": {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": "^[0-9]+%$"},
        ]
    },
}
DEFINITIONS: dict[str, Schema] = {
    "parameters": parameters(),
    "amount": {
        "anyOf": [
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"},
            {"type": "number", "minimum": 0},
        ]
    },
    "quantity": {
        "anyOf": [{"type": "string", "pattern": QUANTITY}, {"type": "integer", "minimum": 1}]
    },
    "name": closed({"name": TEXT}, "name"),
    "resources": closed(
        {
            "requests": AMOUNTS,
            "limits": AMOUNTS,
            "claims": {"type": "array", "items": closed({"name": TEXT, "request": TEXT}, "name")},
        }
    ),
    "env-list": {
        "anyOf": [
            {"type": "object", "additionalProperties": {"$ref": "#/definitions/env"}},
            {
                "type": "array",
                "items": closed(
                    {"name": TEXT, "value": SCALAR, "valueFrom": {"type": "object"}}, "name"
                ),
            },
        ]
    },
    "env": {
        "anyOf": [
            SCALAR,
            closed({"valueFrom": {"type": "object"}}, "valueFrom"),
        ]
    },
    "toleration": closed(
        {
            "key": TEXT,
            "operator": {"enum": ["Exists", "Equal", "Lt", "Gt"]},
            "value": {"type": "string"},
            "effect": {"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            "tolerationSeconds": {"type": "integer"},
        }
    ),
    "selector": LABEL_SELECTOR,
    "peer": closed(
        {
            "namespaceSelector": {"$ref": "#/definitions/selector"},
            "podSelector": {"$ref": "#/definitions/selector"},
            "ipBlock": closed({"cidr": TEXT, "except": {"type": "array", "items": TEXT}}, "cidr"),
        }
    ),
    "spread": closed(
        {
            "topologyKey": TEXT,
            "maxSkew": {"type": "integer", "minimum": 1},
            "whenUnsatisfiable": {"enum": ["DoNotSchedule", "ScheduleAnyway"]},
            "minDomains": {"type": "integer", "minimum": 1},
            "matchLabelKeys": {"type": "array", "items": TEXT},
            "nodeAffinityPolicy": {"enum": ["Honor", "Ignore"]},
            "nodeTaintsPolicy": {"enum": ["Honor", "Ignore"]},
        },
        "topologyKey",
        "maxSkew",
        "whenUnsatisfiable",
    ),
}
# Objects of Kubernetes with few fields, which are named here so that a misspelt one is refused.
# Larger ones (affinity, volumes) stay open: the API server types them.
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
PROFILE = closed({"type": TEXT, "localhostProfile": TEXT}, "type")
IDENTITY: dict[str, Schema] = {
    "runAsUser": COUNT,
    "runAsGroup": COUNT,
    "runAsNonRoot": FLAG,
    "seLinuxOptions": closed(dict.fromkeys(("level", "role", "type", "user"), TEXT)),
    "seccompProfile": PROFILE,
    "appArmorProfile": PROFILE,
}
DEFINITIONS |= {
    "podSecurity": closed(
        {
            **IDENTITY,
            "fsGroup": COUNT,
            "fsGroupChangePolicy": {"enum": ["OnRootMismatch", "Always"]},
            "supplementalGroups": {"type": "array", "items": COUNT},
            "supplementalGroupsPolicy": {"enum": ["Merge", "Strict"]},
            "seLinuxChangePolicy": {"enum": ["MountOption", "Recursive"]},
            "sysctls": {
                "type": "array",
                "items": closed({"name": TEXT, "value": TEXT}, "name", "value"),
            },
        }
    ),
    "containerSecurity": closed(
        {
            **IDENTITY,
            "allowPrivilegeEscalation": FLAG,
            "privileged": FLAG,
            "procMount": {"enum": ["Default", "Unmasked"]},
            "readOnlyRootFilesystem": FLAG,
            "capabilities": closed(
                {name: {"type": "array", "items": TEXT} for name in ("add", "drop")}
            ),
        }
    ),
    "mount": closed(
        {
            "name": TEXT,
            "mountPath": TEXT,
            "subPath": TEXT,
            "subPathExpr": TEXT,
            "readOnly": FLAG,
            "recursiveReadOnly": {"enum": ["Disabled", "Enabled", "IfPossible"]},
            "mountPropagation": {"enum": ["None", "HostToContainer", "Bidirectional"]},
        },
        "name",
        "mountPath",
    ),
    "tls": closed({"secretName": TEXT, "hosts": {"type": "array", "items": TEXT}}, "secretName"),
    "parent": closed(
        {
            "group": {"type": "string"},
            "kind": TEXT,
            "namespace": TEXT,
            "name": TEXT,
            "sectionName": TEXT,
            "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        },
        "name",
    ),
    "scaling": closed(
        {
            "stabilizationWindowSeconds": {**COUNT, "maximum": 3600},
            "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
            "tolerance": {"$ref": "#/definitions/amount"},
            "policies": {
                "type": "array",
                "items": closed(
                    {
                        "type": {"enum": ["Pods", "Percent"]},
                        "value": {"type": "integer", "minimum": 1},
                        "periodSeconds": {"type": "integer", "minimum": 1, "maximum": 1800},
                    },
                    "type",
                    "value",
                    "periodSeconds",
                ),
            },
        }
    ),
}
LIMITS = {
    "above": ("exclusiveMinimum", int),
    "below": ("exclusiveMaximum", int),
    "min": ("minimum", int),
    "max": ("maximum", int),
    "pattern": ("pattern", str),
    "minItems": ("minItems", int),
}
