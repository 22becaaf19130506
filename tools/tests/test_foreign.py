"""`make up` and `make down` on a cluster that KUBECONFIG names; what it lacks is said first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import preflight
from tools import down, helm, install, place, up
from tools.helm import Release
from tools.steps import Board, StepFailedError

# Answers what a file says, and writes down what it was asked.
TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >>{folder}/asked
case "$*" in
*/readyz*) test -e {folder}/ready || {{ echo 'dial tcp: i/o timeout' >&2; exit 1; }} ;;
*storageclass*) cat {folder}/storageclass ;;
*ingressclass*) cat {folder}/ingressclass ;;
esac
"""


def classes(kind: str, **defaults: bool) -> str:
    """Return a list of classes as kubectl prints it; each name says whether it is the default."""
    annotation = f"{kind}/is-default-class"
    return json.dumps(
        {
            "items": [
                {"metadata": {"name": name, "annotations": {annotation: str(is_default).lower()}}}
                for name, is_default in defaults.items()
            ]
        }
    )


@dataclass
class Cluster:
    """A cluster of somebody else's, as far as kubectl and helm tell."""

    folder: Path

    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def storage(self, **defaults: bool) -> None:
        text = classes("storageclass.kubernetes.io", **defaults)
        (self.folder / "storageclass").write_text(text)

    def ingress(self, **defaults: bool) -> None:
        text = classes("ingressclass.kubernetes.io", **defaults)
        (self.folder / "ingressclass").write_text(text)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster without a fault; each test breaks one thing."""
    for name in ("kubectl", "helm"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(TOOL.format(folder=tmp_path))
        tool.chmod(0o755)
    made = Cluster(folder=tmp_path)
    made.storage(standard=True)
    made.ingress(nginx=True)
    (tmp_path / "ready").touch()
    (tmp_path / "kubeconfig").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("TRITON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("IMAGE_REGISTRY", "registry.example.com/ml")
    for name in ("PUSH", "VALUES", "HF_TOKEN", "TRITON_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return made


def only_fault() -> str:
    """Return the one sentence that is said."""
    with pytest.raises(StepFailedError) as error:
        up.check_foreign()
    (sentence,) = str(error.value).splitlines()
    return sentence


def test_a_fit_cluster_has_no_fault(cluster: Cluster) -> None:
    up.check_foreign()


def test_a_missing_tool_is_named(cluster: Cluster) -> None:
    (cluster.folder / "bin" / "helm").unlink()
    assert only_fault() == "helm is not on PATH: install it"


def test_a_kubeconfig_that_does_not_exist_is_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere/config")
    assert only_fault() == "KUBECONFIG names /nowhere/config, which does not exist"


def test_several_files_in_kubeconfig_are_handed_on_as_they_are(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = f"/nowhere/config:{cluster.folder / 'kubeconfig'}"
    monkeypatch.setenv("KUBECONFIG", named)
    up.check_foreign()
    assert place.current().environment()["KUBECONFIG"] == named


def test_a_missing_registry_is_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAGE_REGISTRY")
    assert only_fault() == "set IMAGE_REGISTRY to a registry that the cluster can pull from"


def test_an_api_that_does_not_answer_is_named_with_what_kubectl_said(cluster: Cluster) -> None:
    (cluster.folder / "ready").unlink()
    assert only_fault() == (
        "the API of the cluster does not answer (dial tcp: i/o timeout): "
        "check KUBECONFIG and network"
    )
    assert cluster.asked() == ["kubectl --request-timeout=5s get --raw /readyz"]


def test_a_cluster_without_default_storage_class_is_told_and_what_it_has(cluster: Cluster) -> None:
    cluster.storage(fast=False, slow=False)
    assert only_fault().startswith(
        "the cluster has no default StorageClass (it has fast, slow): mark one as default"
    )


def test_a_cluster_without_ingress_class_is_told(cluster: Cluster) -> None:
    cluster.ingress()
    assert only_fault().startswith(
        "the cluster has no default IngressClass (it has none): install an ingress controller"
    )


def test_values_of_the_user_say_which_classes_are_used(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.storage(fast=False)
    cluster.ingress(nginx=False)
    (cluster.folder / "mine.yaml").write_text("ingress: {className: nginx}\n")
    monkeypatch.setenv("VALUES", str(cluster.folder / "mine.yaml"))
    up.check_foreign()


def test_values_that_do_not_exist_are_named(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUES", "/nowhere/mine.yaml")
    assert only_fault() == "VALUES names /nowhere/mine.yaml, which does not exist"


def test_push_without_anything_that_builds_images_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUSH", "1")
    sh = cluster.folder / "bin" / "sh"
    sh.symlink_to("/bin/sh")
    for name in ("basename", "cat"):
        (cluster.folder / "bin" / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(cluster.folder / "bin"))
    assert only_fault().startswith("PUSH=1 builds the images, and neither Docker's engine nor")


def test_an_old_python_is_told_here_too(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "python_version", lambda: (3, 10))
    assert only_fault().startswith("Python 3.11 or newer is needed")


def test_nothing_is_made_before_all_of_that_holds(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.storage()
    cluster.ingress()
    monkeypatch.chdir(place.ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "tools.up"],
        env={**os.environ, "PYTHONPATH": place.python_path()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert [line.split(" ", 4)[4][:14] for line in done.stderr.splitlines()] == [
        "has no default",
        "has no default",
    ]
    assert not (cluster.folder / "cache").exists()


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, Any]]]:
    """The values of each `helm upgrade`, a list of files each, the last one counts most."""
    found: list[list[dict[str, Any]]] = []

    def run(here: place.Place, *words: str, **_: Any) -> str:
        if words[0] == "helm":
            files = [Path(words[at + 1]) for at, word in enumerate(words) if word == "-f"]
            found.append([yaml.safe_load(file.read_text()) for file in files])
        return ""

    monkeypatch.setattr(helm, "run", run)
    monkeypatch.setattr(install, "token", lambda: "")
    return found


def release() -> Release:
    return Release(place=place.current(), namespace="triton", name="triton")


def test_what_the_file_of_the_user_says_wins(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, applied: list[list[dict[str, Any]]]
) -> None:
    mine = {"image": {"tag": "mine"}, "ingress": {"className": "nginx"}}
    (cluster.folder / "mine.yaml").write_text(yaml.safe_dump(mine))
    monkeypatch.setenv("VALUES", str(cluster.folder / "mine.yaml"))

    install.apply(release(), Board())

    ((ours, made, last),) = applied
    assert ours == yaml.safe_load((install.VALUES / "foreign.yaml").read_text())
    assert made["image"]["registry"] == "registry.example.com/ml"
    assert last == mine


@pytest.mark.parametrize(
    ("named", "built", "expected"),
    [("2.60.0", "2.51.0", "2.60.0"), ("", "2.51.0", "2.51.0"), ("", "", None)],
)
def test_the_version_of_triton_is_what_is_in_the_image(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    applied: list[list[dict[str, Any]]],
    named: str,
    built: str,
    expected: str | None,
) -> None:
    monkeypatch.setenv("TRITON_VERSION", named)
    done = subprocess.CompletedProcess([], 0 if built else 2, stdout=f"{built}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)

    install.apply(release(), Board())

    ((_, made),) = applied
    assert made["image"].get("tritonVersion") == expected


def test_down_removes_both_releases_and_what_they_keep_and_wants_no_registry(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("IMAGE_REGISTRY")
    monkeypatch.setattr(sys, "argv", ["down"])

    assert down.main() == 0

    inside = "-n triton --ignore-not-found"
    assert cluster.asked() == [
        f"helm uninstall load {inside} --wait",
        f"helm uninstall triton {inside} --wait",
        f"kubectl delete jobs,pvc,secrets {inside} -l app.kubernetes.io/instance in (load, triton)",
        f"kubectl delete secret huggingface-token {inside}",
    ]
    assert "the namespace triton stays" in capfd.readouterr().err
