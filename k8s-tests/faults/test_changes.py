"""Upgrades, rollbacks, and changes that cannot work: the old servers go on."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import plan
from faults import servers, traffic
from tools import helm
from tools.fault_table import Row
from tools.helm import Release
from tools.install import door
from tools.place import ROOT
from tools.wait import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Install = Callable[..., dict[str, Any]]


def names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.pods()}


def kept(release: Release) -> dict[str, tuple[str, str]]:
    """Return identity and a hash of the data of claims and Secrets, without Helm's own records."""
    found = helm.get(release.place, release.namespace, "pvc,secret")["items"]
    return {
        each["metadata"]["name"]: (each["metadata"]["uid"], digest(each.get("data", {})))
        for each in found
        if each.get("type") != "helm.sh/release.v1"
    }


def digest(data: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def earlier_chart(folder: Path) -> tuple[Path, str]:
    """Return the chart as it was before its templates changed last, and its commit.

    There is no released version yet; with the first one this becomes its tag.
    """
    templates = "charts/triton/templates"
    git = ["git", "-C", str(ROOT)]
    words = [*git, "rev-list", "--max-count=1", "HEAD", "--", templates]
    last = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    words = [*git, "archive", f"{last}~1", "charts/triton"]
    archive = subprocess.run(words, capture_output=True, check=False)
    if not last or archive.returncode:
        pytest.skip("needs the history of the repository: no commit before the chart's last change")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder / "charts" / "triton", f"{last[:9]}~1"


def test_an_upgrade_from_the_earlier_chart_and_its_rollback_lose_nothing(
    release: Release, row: Row, tmp_path: Path
) -> None:
    chart, commit = earlier_chart(tmp_path)
    row.fault = f"upgrade from the earlier chart ({commit}), then rollback, under load"
    row.mark = "0 failed of >= 400; claim and Secrets are the same objects with the same data"
    older = dataclasses.replace(release, chart=chart)
    chosen = servers.values(release.place, release.namespace)
    # An annotation, so that all pods are replaced whatever else the two charts differ in.
    older.apply({**chosen, "podAnnotations": {"chart": "earlier"}})
    servers.wait_settled(release, 2)
    before = kept(release)
    assert {"Secret" if data != digest({}) else "claim" for _, data in before.values()} == {
        "Secret",
        "claim",
    }
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


NO_IMAGE = "sha256:" + "0" * 64


def pull_fault(release: Release, component: str, old: set[str]) -> str:
    """Return why the only new pod of a component cannot start.

    Raises:
        AssertionError: it does not say so yet.
    """
    pods = release.pods(component)
    (fresh,) = [pod for pod in pods if pod["metadata"]["name"] not in old]
    states = [
        each["state"].get("waiting", {})
        for kind in ("initContainerStatuses", "containerStatuses")
        for each in fresh["status"].get(kind, [])
    ]
    said = [
        str(s["message"]) for s in states if s.get("reason") in ("ErrImagePull", "ImagePullBackOff")
    ]
    assert said, states
    return said[0]


@pytest.mark.parametrize(
    ("before", "component"),
    [
        pytest.param(True, "model-sync", id="sync first"),
        pytest.param(False, "server", id="sync beside"),
    ],
)
def test_an_image_that_does_not_exist_stops_the_rollout_and_the_old_pods_serve(
    release: Release, install: Install, row: Row, before: bool, component: str
) -> None:
    row.fault = f"image that does not exist, modelSync.beforeUpgrade={str(before).lower()}"
    row.mark = "the new pod says why; " + (
        "no server is replaced" if before else "one server at most is replaced"
    )
    row.mark += ", the old ones serve: 0 failed of >= 400"
    chosen, old = install(), names(release)
    syncs = {pod["metadata"]["name"] for pod in release.pods("model-sync")}
    broken = {
        **chosen,
        "image": {**chosen["image"], "digest": NO_IMAGE},
        "modelSync": {**chosen["modelSync"], "beforeUpgrade": before},
    }
    with (
        traffic.running(door(release.place, release), servers.MODEL) as load,
        ThreadPoolExecutor(1) as pool,
    ):
        upgrade = pool.submit(release.apply, broken, timeout=45)
        said = until(lambda: pull_fault(release, component, old | syncs), seconds=60)
        with pytest.raises(helm.CommandFailedError):
            upgrade.result()
        load.wait_for(traffic.ENOUGH)
        serving = servers.in_rotation(release)
    row.measured = f"{load.summary()}; {len(serving)} old servers in rotation; said: {said[:100]}"
    assert NO_IMAGE in said
    assert serving == old if before else serving < old
    assert serving
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
    row.mark = "never ready, says why, the peer serves: 0 failed of >= 400; 0 broken streams"
    model = {
        "repository": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "parameters": {"device": "cpu", "slots": 2},
    }
    install(
        light=False, models={"llama3-8b": None, servers.MODEL: servers.SIMULATED, "smol": model}
    )
    truncate_weights(release.namespace)
    old = names(release)
    entrance = door(release.place, release)
    with traffic.running(entrance, servers.MODEL) as load:
        words = ("delete", "pod", min(old), "--wait=false")
        helm.run(release.place, "kubectl", "-n", release.namespace, *words)

        def said() -> str:
            (fresh,) = names(release) - old
            text = servers.last_words(release, fresh)
            assert text, "the new pod has said nothing yet"
            return text

        text = until(said, seconds=120)
        load.wait_for(traffic.ENOUGH)
        assert servers.in_rotation(release) == {max(old)}
        assert entrance.infer("smol", "hello", max_tokens=2)["completion_tokens"] >= 1
    row.measured = load.summary()
    assert "cannot be loaded" in text
    load.lost_nothing()
