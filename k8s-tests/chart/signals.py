"""The autoscaler's questions as the chart renders them."""

from __future__ import annotations

from typing import Any

import yaml

from chart.rendering import Manifest, Object, render

WIDE = {"modelStore": {"accessModes": ["ReadWriteMany"]}}
CUSTOM = {
    "series": "my_queue",
    "query": "sum by (<<.GroupBy>>) (my_queue{<<.LabelMatchers>>})",
}
BY_NAMESPACE = 'namespace="<<index .LabelValuesByName "namespace">>"'


def scaled(scaler: str, **autoscaling: Any) -> Manifest:
    """Return the chart with a scaler on."""
    values = {"enabled": True, "scaler": scaler, "custom": CUSTOM, **autoscaling}
    return render({**WIDE, "autoscaling": values})


def adapter_rule(manifest: Manifest) -> Object:
    """Return the rule for prometheus-adapter."""
    text = manifest.one("ConfigMap", "rel-triton-adapter-rule")["data"]["rule.yaml"]
    (rule,) = yaml.safe_load(text)["rules"]
    return dict(rule)


def keda_query(manifest: Manifest) -> str:
    """Return what KEDA asks."""
    (trigger,) = manifest.one("ScaledObject")["spec"]["triggers"]
    return str(trigger["metadata"]["query"])
