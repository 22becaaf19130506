"""The runs of charts/locust, and one's way in them."""

from __future__ import annotations

from typing import Any

from chart.rendering import LOCUST, Manifest, Object, mappings, render

EVERYTHING = LOCUST / "ci" / "everything-values.yaml"
SEARCH = LOCUST / "ci" / "capacity-values.yaml"


def locust(values: dict[str, Any] | None = None, **named: Any) -> Manifest:
    """Render the chart."""
    return render(values, chart=LOCUST, **named)


def job(manifest: Manifest, component: str) -> Object:
    """Return the Job of a component."""
    (found,) = [j for j in manifest.all("Job") if j["metadata"]["name"].endswith(component)]
    return found


def container(manifest: Manifest, component: str) -> Object:
    """Return the container of a component."""
    (found,) = job(manifest, component)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def pod_labels(manifest: Manifest) -> list[dict[str, str]]:
    """Return the labels of every pod."""
    return [pod["metadata"]["labels"] for _, pod in manifest.pods()]


def own_services(manifest: Manifest) -> list[Object]:
    """Return all Services but the one that counts the server's pods."""
    return [o for o in manifest.all("Service") if o["spec"].get("clusterIP") != "None"]


def selectors(manifest: Manifest) -> list[dict[str, str]]:
    """Return every selector by which an object of the release finds its own pods."""
    found = [o["spec"]["selector"] for o in own_services(manifest)]
    found += [o["spec"]["selector"]["matchLabels"] for o in manifest.all("PodMonitor")]
    for policy in manifest.all("NetworkPolicy"):
        found.append(policy["spec"]["podSelector"]["matchLabels"])
        for _, mapping in mappings([policy["spec"].get("ingress"), policy["spec"].get("egress")]):
            if "podSelector" in mapping:
                found.append(mapping["podSelector"]["matchLabels"])
    return found
