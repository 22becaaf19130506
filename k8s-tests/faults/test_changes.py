"""Upgrades, rollbacks, and changes that cannot work: the old servers go on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import plan
from faults import servers, traffic
from faults.results import Row
from support import helm
from support.helm import CHART, Release
from support.install import door
from support.wait import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Install = Callable[..., dict[str, Any]]


def names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.pods()}


def kept(release: Release) -> dict[str, str]:
    """Return the identity of claims and Secrets by name; Helm's own records are left out."""
    found = helm.get(release.place, release.namespace, "pvc,secret")["items"]
    return {
        each["metadata"]["name"]: each["metadata"]["uid"]
        for each in found
        if each.get("type") != "helm.sh/release.v1"
    }


def older_chart(folder: Path) -> Path:
    """Return the chart as an older version of it: another version, and pods that differ.

    There is no released version yet; with the first one this becomes `git archive` of its tag.
    """
    chart = shutil.copytree(CHART, folder / "triton")
    file = chart / "Chart.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "version": "0.0.1"}))
    values = chart / "values.yaml"
    text = values.read_text("utf-8")
    assert "\npodAnnotations: {}\n" in text
    values.write_text(text.replace("\npodAnnotations: {}\n", "\npodAnnotations: {older: 'true'}\n"))
    return chart


def test_an_upgrade_from_an_older_chart_and_its_rollback_lose_nothing(
    release: Release, row: Row, tmp_path: Path
) -> None:
    row.fault = "upgrade from an older chart version, then rollback, under load"
    row.mark = "0 failed of >= 400; claim and Secrets are the same objects"
    older = Release(
        place=release.place,
        namespace=release.namespace,
        name=release.name,
        chart=older_chart(tmp_path),
    )
    chosen = servers.values(release.place, release.namespace)
    older.apply(chosen)
    servers.wait_settled(release, 2)
    before = kept(release)
    assert before
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        old = names(release)
        release.apply(chosen)
        until(lambda: old.isdisjoint(names(release)), seconds=60)
        servers.wait_settled(release, 2)
        assert kept(release) == before
        old = names(release)
        words = ("rollback", release.name, "1", "-n", release.namespace, "--wait")
        helm.run(release.place, "helm", *words)
        until(lambda: old.isdisjoint(names(release)), seconds=60)
        servers.wait_settled(release, 2)
        load.wait_for(traffic.ENOUGH)
    row.measured = load.summary()
    assert kept(release) == before
    load.lost_nothing()


def test_a_config_that_is_corrupt_stops_the_rollout_and_says_why(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "corrupt config.pbtxt"
    row.mark = "never ready, says why, old pods serve: 0 failed of >= 400"
    chosen, old = install(), names(release)
    broken = servers.extra_model("broken", "this is { not a model", "")
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        release.apply({**chosen, **broken}, wait=False)

        def said() -> str:
            (fresh,) = names(release) - old
            words = servers.last_words(release, fresh)
            assert words, "the new pod has said nothing yet"
            return words

        text = until(said, seconds=120)
        load.wait_for(traffic.ENOUGH)
        assert servers.in_rotation(release) < old
    row.measured = f"{load.summary()}; the new pod said: {text.strip().splitlines()[-1]}"
    assert "config.pbtxt" in text
    load.lost_nothing()


def test_a_parameter_that_is_corrupt_fails_the_upgrade_and_changes_nothing(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "corrupt values: slots is no number"
    row.mark = "the upgrade fails and says why; the same pods serve: 0 failed of >= 400"
    chosen, old = install(), names(release)
    model = {"engine": "simulated", "parameters": {"slots": "many"}}
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        with pytest.raises(helm.CommandFailedError):
            release.apply({**chosen, "models": {"llama3-8b": None, servers.MODEL: model}})
        text = servers.sync_words(release)
        load.wait_for(traffic.ENOUGH)
    row.measured = f"{load.summary()}; model-sync said: {text}"
    assert "'slots' must be a whole number" in text
    assert names(release) == old
    load.lost_nothing()


def truncate_weights(namespace: str) -> Path:
    """Cut the weights of the namespace's store in half; servers that have them open keep theirs."""
    shared = plan.state() / "shared"
    (file,) = (
        p for p in shared.rglob("*.safetensors") if namespace in str(p) and "weights" in p.parts
    )
    half = file.with_suffix(".half")
    shutil.copyfile(file, half)
    os.truncate(half, half.stat().st_size // 2)
    half.replace(file)
    return file


@pytest.mark.usefixtures("embedded")
def test_weights_that_are_corrupt_keep_a_new_pod_out_and_it_says_why(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "corrupt weights: half a safetensors file"
    row.mark = "never ready, says why, the peer serves: 0 failed of >= 100"
    model = {
        "repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "parameters": {"device": "cpu", "slots": 2},
    }
    install(light=False, models={"llama3-8b": None, "smol": model})
    truncate_weights(release.namespace)
    old = names(release)
    with traffic.running(door(release.place, release), "smol", rate=2, streams=0) as load:
        words = ("delete", "pod", min(old), "--wait=false")
        helm.run(release.place, "kubectl", "-n", release.namespace, *words)

        def said() -> str:
            (fresh,) = names(release) - old
            text = servers.last_words(release, fresh)
            assert text, "the new pod has said nothing yet"
            return text

        text = until(said, seconds=120)
        load.wait_for(100)
        assert servers.in_rotation(release) == {max(old)}
    row.measured = load.summary()
    assert "cannot be loaded" in text
    load.lost_nothing(calls=100, streams=0)
