"""Ways to install: packaged, under a quota, as a subchart, by `kubectl apply` of the rendering."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.small import values
from tools import helm, install, place
from tools.helm import CHART, Release
from tools.wait import until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MakeRelease = Callable[..., Release]
QUOTA = {
    "requests.cpu": "20",
    "limits.cpu": "40",
    "requests.memory": "40Gi",
    "limits.memory": "80Gi",
}
LIMITS = {
    "type": "Container",
    "min": {"cpu": "50m", "memory": "64Mi"},
    "maxLimitRequestRatio": {"memory": "2"},
}


def closed(here: place.Place, namespace: str) -> None:
    """Give a namespace a quota of requests and limits, and bounds for each container."""
    manifests = [
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "all-four"},
            "spec": {"hard": QUOTA},
        },
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "floor"},
            "spec": {"limits": [LIMITS]},
        },
    ]
    text = yaml.safe_dump_all(manifests)
    helm.run(here, "kubectl", "-n", namespace, "apply", "-f", "-", stdin=text)


def within(memory: str) -> dict[str, Any]:
    """Return resources that the quota and the bounds admit."""
    return {
        "resources": {name: {"cpu": "100m", "memory": memory} for name in ("requests", "limits")}
    }


def test_the_packaged_chart_installs_and_is_tested_under_a_quota(
    here: place.Place, make_release: MakeRelease, tmp_path: Path
) -> None:
    release = make_release()
    closed(here, release.namespace)
    helm.run(here, "helm", "package", str(CHART), "--destination", str(tmp_path))
    (package,) = tmp_path.glob("triton-*.tgz")
    chosen = values(here, f"{release.namespace}.test")
    chosen |= within("512Mi")
    for name, memory in (("waitForModels", "128Mi"), ("openai", "512Mi"), ("tests", "128Mi")):
        chosen[name] = chosen.get(name, {}) | within(memory)
    chosen["modelSync"] |= within("1Gi")
    packed = Release(place=here, namespace=release.namespace, name=release.name, chart=package)
    packed.apply(chosen)
    assert "simulated: ready" in packed.test() + packed.logs("test")
    door = install.door(here, packed)
    assert door.infer("simulated", "hello", max_tokens=1)["completion_tokens"] == 1


def test_a_rendering_is_applied_twice_and_the_second_time_changes_nothing(
    here: place.Place, namespace: str
) -> None:
    secret = ("create", "secret", "generic", "admin", "--from-literal=header-value=k")
    helm.run(here, "kubectl", "-n", namespace, *secret)
    chosen = values(here, f"{namespace}.test")
    chosen["server"] = {"restrictedApis": {"existingSecret": "admin"}}
    with helm.values_file(chosen) as file:
        words = ("helm", "template", "plain", str(CHART), "-n", namespace, "-f", str(file))
        rendered = helm.run(here, *words, "--no-hooks")
    apply = ("kubectl", "-n", namespace, "apply", "-f", "-")
    first = helm.run(here, *apply, stdin=rendered).splitlines()
    assert len(first) > 8
    release = Release(place=here, namespace=namespace, name="plain")

    def ready() -> None:
        found = helm.get(here, namespace, "deployment", "-l", release.selector())["items"]
        assert [one["status"].get("readyReplicas") for one in found] == [1]

    until(ready, seconds=180)
    second = helm.run(here, *apply, stdin=rendered).splitlines()
    assert [line for line in second if not line.endswith(" unchanged")] == []


def test_a_parent_chart_installs_it_under_another_name(
    here: place.Place, namespace: str, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "triton")
    dependency = {"name": "triton", "version": "0.1.0", "alias": "models", "repository": ""}
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0"}
    (parent / "Chart.yaml").write_text(json.dumps(chart | {"dependencies": [dependency]}))
    release = Release(place=here, namespace=namespace, name="parent", chart=parent)
    release.apply({"models": values(here, f"{namespace}.test")})
    door = install.door(here, release)
    assert door.infer("simulated", "hello", max_tokens=1)["completion_tokens"] == 1
