"""A release that scales: the light image, a simulated model, small pods, quick decisions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from lib import small
from tools import helm, install, place, wait
from tools.helm import Release

MONITORING = "monitoring"
MODEL = "simulated"
TARGET = 3
SLOTS = 4
# A request takes 1 s: long enough to be in flight at a scrape, short enough to count many.
PARAMETERS = {
    "ttft_ms": 200,
    "inter_token_ms": 25,
    "slots": SLOTS,
    "max_queue": 256,
    "max_queue_seconds": 0,
    "max_tokens": 33,
}
# The real one, with as many slots.
SMOLLM2 = "smollm2-135m"
REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
REAL: dict[str, Any] = {
    "device": "cpu",
    "slots": SLOTS,
    "max_queue": 256,
    "max_queue_seconds": 0,
    "max_prompt_tokens": 256,
    "max_total_tokens": 512,
}
METRIC = "triton_requests_inflight"


def values(
    here: place.Place,
    host: str,
    *,
    scaler: str = "hpa",
    least: int = 1,
    most: int = 4,
    settle: int | None = 15,
    target: int = TARGET,
    parameters: Mapping[str, int | str] = PARAMETERS,
    model: str = MODEL,
) -> dict[str, Any]:
    """Return values of a release that follows its load.

    Args:
        here: the cluster.
        host: name by which the ingress routes.
        scaler: `hpa` or `keda`.
        least: minReplicas.
        most: maxReplicas.
        settle: scaleDown.stabilizationWindowSeconds, with all pods going at once after it; None
            leaves the chart's own behaviour.
        target: requests in flight that the autoscaler wants in a pod.
        parameters: of the simulated model.
        model: `simulated`, or SMOLLM2 on the full image.
    """
    if model == SMOLLM2:
        spec: dict[str, Any] = {"repository": REPOSITORY, "parameters": REAL}
    else:
        spec = {"engine": "simulated", "parameters": dict(parameters)}
    autoscaling: dict[str, Any] = {
        "enabled": True,
        "scaler": scaler,
        "signal": "inflight",
        "target": target,
        "minReplicas": least,
        "maxReplicas": most,
    }
    if settle is not None:
        policy = {"type": "Percent", "value": 100, "periodSeconds": 15}
        autoscaling["behavior"] = {
            "scaleDown": {"stabilizationWindowSeconds": settle, "policies": [policy]}
        }
    return small.values(here, host, models={model: spec}, light=model != SMOLLM2) | {
        "shutdown": {"preStopSeconds": 5, "drainSeconds": 30},
        # Each look is a process in the pod; with a dozen new pods, one a second keeps a core busy.
        "probes": {"startup": {"budgetSeconds": 180, "periodSeconds": 2}},
        "autoscaling": autoscaling,
        "metrics": {
            "scrape": {"kind": "podMonitor", "intervalSeconds": 2},
            "rules": {"enabled": True},
            "dashboards": {"enabled": True},
        },
    }


def teach_adapter(release: Release) -> None:
    """Put the release's rule into prometheus-adapter's configuration, as a user would.

    Rules that are there stay; an adapter that knows the rule already is left alone.

    Raises:
        CommandFailedError: there is no adapter, or the release has no rule.
    """
    here = release.place
    own = helm.get(here, release.namespace, "configmap", f"{_fullname(release)}-adapter-rule")
    rules = yaml.safe_load(own["data"]["rule.yaml"])["rules"]
    shared = helm.get(here, MONITORING, "configmap", "adapter-config")
    config = yaml.safe_load(shared["data"]["config.yaml"])
    missing = [rule for rule in rules if rule not in config["rules"]]
    if not missing:
        return
    names = {rule["name"]["as"] for rule in missing}
    kept = [rule for rule in config["rules"] if rule.get("name", {}).get("as") not in names]
    text = yaml.safe_dump({**config, "rules": [*missing, *kept]}, sort_keys=False, width=1000)
    patch = json.dumps({"data": {"config.yaml": text}})
    kubectl = ("kubectl", "-n", MONITORING)
    helm.run(here, *kubectl, "patch", "configmap", "adapter-config", "--type=merge", "-p", patch)
    helm.run(here, *kubectl, "rollout", "restart", "deployment/prometheus-adapter")
    helm.run(here, *kubectl, "rollout", "status", "deployment/prometheus-adapter", "--timeout=90s")


def wait_for_metric(release: Release, *, seconds: float = 120) -> None:
    """Wait until the autoscaler has its metric.

    Raises:
        TimeoutError: with the autoscaler's conditions.
    """

    def active() -> None:
        items = helm.get(release.place, release.namespace, "hpa")["items"]
        assert items, "no HorizontalPodAutoscaler"
        conditions = items[0].get("status", {}).get("conditions", [])
        states = {item["type"]: item for item in conditions}
        assert states.get("ScalingActive", {}).get("status") == "True", states

    wait.until(active, seconds=seconds, every=1)


def _fullname(release: Release) -> str:
    items = helm.get(release.place, release.namespace, "deployment", "-l", release.selector())[
        "items"
    ]
    return str(items[0]["metadata"]["name"])


@contextlib.contextmanager
def installed(
    here: place.Place, namespace: str, *, scaler: str = "hpa", **more: Any
) -> Iterator[Release]:
    """Install the release and make its autoscaler work; everything goes when the block ends."""
    install.ensure_namespace(here, namespace)
    release = Release(place=here, namespace=namespace, name="scaled")
    try:
        release.apply(values(here, f"{namespace}.test", scaler=scaler, **more))
        if scaler == "hpa":
            teach_adapter(release)
        wait_for_metric(release)
        yield release
    finally:
        helm.run(here, "kubectl", "delete", "namespace", namespace, "--wait=false")
