"""A cluster that KUBECONFIG names: a copy of the embedded one's stands for somebody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tools import helm, install, place, up
from tools.steps import StepFailedError

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def elsewhere(
    here: place.Place, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment of a user with a cluster, a registry and values of their own."""
    if not here.embedded:
        pytest.skip("needs the embedded cluster, to name it as somebody else's")
    shutil.copy(here.kubeconfig, tmp_path / "kubeconfig")
    values = yaml.safe_load((install.VALUES / "embedded.yaml").read_text())
    values["ingress"]["host"] = f"{namespace}.test"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("IMAGE_REGISTRY", here.pull)
    monkeypatch.setenv("VALUES", str(tmp_path / "mine.yaml"))
    monkeypatch.setenv("HF_TOKEN", "hf_not_needed")


def tool(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", f"tools.{module}", *words],
        env={**os.environ, "PYTHONPATH": place.python_path()},
        cwd=place.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.usefixtures("elsewhere")
def test_the_release_is_installed_answers_and_goes(
    here: place.Place, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    up.check_foreign()

    done = tool("install", "--namespace", namespace)

    assert f"http://{install.gateway_address(here)}/v2/models/smollm2-135m/infer" in done.stdout
    assert '"text_output"' in done.stdout
    kinds = "deployments,jobs,services,ingresses,persistentvolumeclaims"
    label = ("-l", f"app.kubernetes.io/instance={place.RELEASE}")
    assert helm.get(here, namespace, kinds, *label)["items"]

    monkeypatch.delenv("IMAGE_REGISTRY")
    done = tool("down", "--namespace", namespace)

    assert helm.get(here, namespace, f"{kinds},secrets", *label)["items"] == []
    secrets = helm.get(here, namespace, "secrets")["items"]
    assert place.TOKEN_SECRET not in {each["metadata"]["name"] for each in secrets}
    assert f"the namespace {namespace} stays" in done.stderr


@pytest.mark.usefixtures("elsewhere")
def test_without_values_that_name_one_a_default_ingress_class_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VALUES")
    with pytest.raises(StepFailedError, match=r"no default IngressClass \(it has traefik\)"):
        up.check_foreign()
