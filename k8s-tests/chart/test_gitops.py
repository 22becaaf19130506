"""The charts below a parent chart, and under tools that render without a cluster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendering import CHART, CHARTS, LOCUST, Manifest, RenderError, helm, mappings, render

pytestmark = pytest.mark.chart
EXAMPLES = CHART / "examples"
SECOND = {"smollm2": {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}}


def parent(folder: Path, values: dict[str, Any], **aliases: str) -> Manifest:
    """Render both charts as dependencies of another one."""
    chart = folder / "parent"
    dependencies = []
    for each in CHARTS:
        shutil.copytree(each, chart / "charts" / each.name)
        version = yaml.safe_load((each / "Chart.yaml").read_text())["version"]
        entry = {"name": each.name, "version": version, "condition": f"{each.name}.enabled"}
        entry |= {"alias": aliases[each.name]} if each.name in aliases else {}
        dependencies.append(entry)
    head = {"apiVersion": "v2", "name": "parent", "version": "1.0.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(head))
    (chart / "values.yaml").write_text(yaml.safe_dump(values))
    text = helm("template", "p", str(chart), "--namespace", "models")
    return Manifest(text=text, objects=tuple(o for o in yaml.safe_load_all(text) if o))


def nulls(values: Any) -> Iterator[str]:
    for path, mapping in mappings(values):
        yield from (".".join((*path, key)) for key, value in mapping.items() if value is None)


def test_a_parent_switches_charts_and_the_default_model_off_without_null(tmp_path: Path) -> None:
    models = {"llama3-8b": {"enabled": False}, **SECOND}
    values = {"triton": {"enabled": True, "models": models}, "locust": {"enabled": False}}
    manifest = parent(tmp_path, values)
    assert {o["metadata"]["labels"]["app.kubernetes.io/name"] for o in manifest.objects} == {
        "triton"
    }
    assert "llama3-8b" not in manifest.text
    assert (
        "smollm2"
        in manifest.one("Job")["spec"]["template"]["metadata"]["annotations"]["triton-hf/models"]
    )


def test_servers_admit_load_tests_whatever_the_parent_calls_them(tmp_path: Path) -> None:
    manifest = parent(tmp_path, {}, locust="loadtest", triton="inference")
    (policy,) = [
        found
        for found in manifest.all("NetworkPolicy")
        if found["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
    ]
    peers = [
        peer["podSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
    ]
    jobs = [o for o in manifest.all("Job") if "locust" in str(o["spec"])]
    tests = [j["spec"]["template"]["metadata"]["labels"] for j in jobs]
    tests = [labels for labels in tests if labels["app.kubernetes.io/component"] == "worker"]
    assert tests
    for labels in tests:
        assert any(peer.items() <= labels.items() for peer in peers)


def test_a_parent_on_openshift_needs_no_null(tmp_path: Path) -> None:
    on = {"openshift": {"enabled": True}}
    manifest = parent(tmp_path, {"triton": on, "locust": on})
    assert len(list(manifest.pods())) >= 4
    assert "runAsUser" not in manifest.text
    assert "fsGroup:" not in manifest.text


def test_a_model_that_is_off_is_nowhere_and_all_off_is_a_sentence() -> None:
    values = {"models": {"llama3-8b": {"enabled": False}, **SECOND}, "ingress": {"enabled": True}}
    assert "llama3" not in render(values).text
    with pytest.raises(RenderError, match="models is empty: name at least one model"):
        render({"models": {"llama3-8b": {"enabled": False}}})


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
@pytest.mark.parametrize("release", ["first", "second"])
def test_applied_twice_a_render_differs_in_generated_secrets_only(
    chart: Path, release: str
) -> None:
    words = ("template", release, str(chart), "--namespace", "models")
    twice = [[o for o in yaml.safe_load_all(helm(*words)) if o] for _ in range(2)]
    differ = [a for a, b in zip(*twice, strict=True) if a != b]
    assert [o["kind"] for o in differ] == (["Secret"] if chart == CHART else [])
    chosen = {"server": {"restrictedApis": {"existingSecret": "mine"}}} if chart == CHART else {}
    assert "Secret" not in {o["kind"] for o in render(chosen, chart=chart).objects}


def applications() -> dict[str, dict[str, Any]]:
    """Return the values of each example for a GitOps tool, by the file's name."""
    argo = yaml.safe_load((EXAMPLES / "gitops" / "argocd.yaml").read_text())
    flux = list(yaml.safe_load_all((EXAMPLES / "gitops" / "flux.yaml").read_text()))
    (release,) = [o for o in flux if o["kind"] == "HelmRelease"]
    return {
        "argocd": argo["spec"]["source"]["helm"]["valuesObject"],
        "flux": release["spec"]["values"],
    }


@pytest.mark.parametrize("name", ["argocd", "flux"])
def test_an_example_renders_and_holds_no_null(name: str) -> None:
    values = applications()[name]
    assert list(nulls(values)) == []
    manifest = render(values)
    assert manifest.one("Deployment")
    assert manifest.all("Secret") == []


def test_under_argo_cd_no_job_is_removed_behind_its_back_and_nothing_is_a_helm_hook() -> None:
    """Argo CD runs `helm template`: no upgrade, no look-up, and null does not arrive."""
    manifest = render(applications()["argocd"])
    job = manifest.one("Job")
    assert "helm.sh/hook" not in str([o for o in manifest.objects if o["kind"] != "Pod"])
    assert "ttlSecondsAfterFinished" not in job["spec"]
    assert render(applications()["argocd"]).text == manifest.text


def test_under_argo_cd_a_scaler_owns_the_number_of_pods() -> None:
    manifest = render(applications()["argocd"])
    assert manifest.all("ScaledObject")
    assert "replicas" not in manifest.one("Deployment")["spec"]


def test_under_flux_an_upgrade_downloads_first() -> None:
    """Flux uses Helm itself: hooks run, and look-ups are answered."""
    manifest = render(applications()["flux"], upgrade=True)
    annotations = manifest.one("Job")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-upgrade,pre-rollback"
    flux = list(yaml.safe_load_all((EXAMPLES / "gitops" / "flux.yaml").read_text()))
    (release,) = [o for o in flux if o["kind"] == "HelmRelease"]
    minutes = int(release["spec"]["timeout"].removesuffix("m"))
    values = applications()["flux"]["modelSync"]
    assert minutes * 60 > values["timeoutSeconds"]


def test_the_load_test_keeps_its_jobs_where_a_tool_would_run_them_again() -> None:
    jobs = render({"jobs": {"keepFinished": True}}, chart=LOCUST).all("Job")
    assert all("ttlSecondsAfterFinished" not in job["spec"] for job in jobs)
