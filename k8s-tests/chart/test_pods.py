"""What every pod of both charts may do, and that no secret stands in it.

The short checks are those of kube-linter, checkov, polaris and kubescape that fit these charts; the
strongest one, a namespace that enforces Pod Security `restricted`, runs in the cluster tests.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chart.rendering import VARIANT_IDS, VARIANTS, Object, render

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize(("chart", "file"), VARIANTS, ids=VARIANT_IDS)
ALLOWED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@variant
def test_every_pod_is_one_that_restricted_admits(chart: Path, file: Path | None) -> None:
    pods = list(render(chart=chart, file=file).pods())
    assert pods
    for _, template in pods:
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= ALLOWED_VOLUMES
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not any("hostPort" in port for port in container.get("ports", []))


@variant
def test_no_pod_holds_a_service_account_token(chart: Path, file: Path | None) -> None:
    for _, template in render(chart=chart, file=file).pods():
        assert template["spec"]["automountServiceAccountToken"] is False
        if render(chart=chart, file=file).all("ServiceAccount"):
            assert template["spec"]["serviceAccountName"] != "default"


@variant
def test_every_container_says_what_it_needs(chart: Path, file: Path | None) -> None:
    for owner, template in render(chart=chart, file=file).pods():
        for container in containers(template):
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"]), owner["kind"]
            assert "memory" in resources["limits"], owner["kind"]
            assert not container["image"].endswith(":latest")
            assert container["imagePullPolicy"]


def test_every_request_and_limit_can_be_set() -> None:
    """A LimitRange refuses a pod of which one container asks for too little."""
    chosen = {"requests": {"cpu": "111m", "memory": "111Mi"}, "limits": {"memory": "111Mi"}}
    keys = ("modelSync", "waitForModels", "openai", "tests")
    manifest = render({"resources": chosen, **{key: {"resources": chosen} for key in keys}})
    found = [each["resources"] for _, pod in manifest.pods() for each in containers(pod)]
    assert len(found) == 5
    assert all(each["requests"]["cpu"] == "111m" for each in found)


@variant
def test_every_volume_in_memory_or_on_disk_has_a_limit(chart: Path, file: Path | None) -> None:
    for _, template in render(chart=chart, file=file).pods():
        for volume in template["spec"].get("volumes", []):
            if "emptyDir" in volume and volume["name"] != "extra":
                assert "sizeLimit" in volume["emptyDir"], volume["name"]


@variant
def test_no_secret_stands_in_a_pod_or_a_config_map(chart: Path, file: Path | None) -> None:
    manifest = render(chart=chart, file=file)
    hidden = {value for s in manifest.all("Secret") for value in s.get("data", {}).values()}
    for _, template in manifest.pods():
        for container in containers(template):
            for entry in container.get("env", []):
                name = entry["name"].lower()
                if re.search("token$|key$|password|secret", name):
                    assert "value" not in entry, entry["name"]
    rest = [o for o in manifest.objects if o["kind"] != "Secret"]
    assert not any(value in str(rest) for value in hidden)
    assert "hf_not_a_real_token" not in str(rest)
