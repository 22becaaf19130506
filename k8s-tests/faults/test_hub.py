"""A model is added while Hub, token, disk or sync fail: it answers, or all is as it was before."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster import plan
from cluster.node import Node
from faults import servers, traffic
from faults.hub_outage import hub_that
from tools import helm
from tools.demo_model import REPOSITORY
from tools.fault_table import Row
from tools.helm import Release
from tools.hub_mirror.repositories import GATED_REPOSITORY, GATED_TOKEN
from tools.install import door
from tools.install import ensure_token as install_token
from tools.wait import until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("embedded"),
]

Install = Callable[..., dict[str, Any]]
MODEL = "smol"
SMOL = {"repository": REPOSITORY, "parameters": {"device": "cpu", "slots": 2}}
GATED = {**SMOL, "repository": GATED_REPOSITORY}
SECRET = "token"
SMALL = "/var/small"  # on a node
MEGABYTE = 1_000_000


def with_model(chosen: dict[str, Any], spec: dict[str, Any] = SMOL, **sync: Any) -> dict[str, Any]:
    """Return the values with one model more and other settings of the sync."""
    return {
        **chosen,
        "models": {**chosen["models"], MODEL: spec},
        "modelSync": {**chosen["modelSync"], "backoffLimit": 0, **sync},
    }


def answers(release: Release) -> None:
    """Check that the new model answers and that no server had to start twice."""
    assert door(release.place, release).infer(MODEL, "hello", max_tokens=2)["completion_tokens"] > 0
    assert {servers.restarts(release, pod["metadata"]["name"]) for pod in release.pods()} == {0}


def job_words(release: Release) -> str:
    """Return why Kubernetes ended the sync; a Job that took too long leaves no pod to ask."""
    jobs = helm.get(release.place, release.namespace, "jobs", "-l", release.selector("model-sync"))
    (said,) = [
        f"{condition['reason']}: {condition['message']}"
        for job in jobs["items"]
        for condition in job["status"].get("conditions", [])
        if condition["type"] == "Failed" and condition["status"] == "True"
    ]
    return said


def not_there(release: Release) -> None:
    """Check that no server knows the new model."""
    assert door(release.place, release).request("GET", f"/v2/models/{MODEL}/ready")[0] == 404


def kill_the_sync(release: Release) -> None:
    """Kill the sync with half of the weights on the disk."""

    def half() -> str:
        pods = release.pods("model-sync")
        (name,) = [p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"]
        words = ("-n", release.namespace, "exec", name, "--")
        script = "du -sm /models/incoming | cut -f1"
        assert int(helm.run(release.place, "kubectl", *words, "sh", "-c", script)) > 60
        return str(name)

    name = until(half, seconds=120, every=0.5)
    words = ("-n", release.namespace, "delete", "pod", name, "--grace-period=0", "--force")
    helm.run(release.place, "kubectl", *words)


@pytest.mark.parametrize(
    ("name", "faults", "also"),
    [
        pytest.param("Hub answers 429 three times", "status=429,times=3", None, id="429"),
        pytest.param("Hub answers 500 three times", "status=500,times=3", None, id="500"),
        pytest.param(
            "Hub cuts each download after 150 MB",
            f"truncate_after={150 * MEGABYTE}",
            None,
            id="truncated",
        ),
        pytest.param(
            "sync killed with half of the weights",
            f"bytes_per_second={10 * MEGABYTE}",
            kill_the_sync,
            id="killed",
        ),
    ],
)
def test_a_download_that_stumbles_ends_well_and_servers_notice_nothing(
    release: Release,
    install: Install,
    row: Row,
    name: str,
    faults: str,
    also: Callable[[Release], None] | None,
) -> None:
    row.fault = f"{name} while an upgrade adds a model"
    row.mark = "the model answers; 0 failed of >= 400; no server starts twice"
    chosen = with_model(install(light=False), backoffLimit=2)
    with (
        traffic.running(door(release.place, release), servers.MODEL) as load,
        hub_that(faults),
        ThreadPoolExecutor(1) as pool,
    ):
        upgrade = pool.submit(release.apply, chosen)
        if also is not None:
            also(release)
        upgrade.result()
        servers.wait_settled(release, 2)
        load.wait_for(traffic.ENOUGH)
    row.measured = load.summary()
    answers(release)
    load.lost_nothing()


@pytest.mark.parametrize(
    ("name", "faults", "sync", "words"),
    [
        pytest.param("Hub answers 500 for ever", "status=500,times=-1", {}, "500", id="500"),
        pytest.param(
            "Hub sends 1 MB/s, 60 s allowed",
            f"bytes_per_second={MEGABYTE}",
            {"timeoutSeconds": 60},
            "DeadlineExceeded",
            id="slow",
        ),
    ],
)
def test_a_hub_that_fails_for_good_changes_nothing_until_it_is_back(
    release: Release,
    install: Install,
    row: Row,
    name: str,
    faults: str,
    sync: dict[str, Any],
    words: str,
) -> None:
    row.fault = f"{name}, while an upgrade adds a model"
    row.mark = "the upgrade says why; 0 failed of >= 400; with the Hub back it works"
    chosen = with_model(install(light=False), **sync)
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        with hub_that(faults), pytest.raises(helm.CommandFailedError):
            release.apply(chosen)
        not_there(release)
        said = job_words(release) if sync else servers.sync_words(release)
        release.apply(with_model(chosen, attempt=2, timeoutSeconds=180))
        servers.wait_settled(release, 2)
        load.wait_for(traffic.ENOUGH)
    row.measured = f"{load.summary()}; said: {said}"
    assert words in said
    answers(release)
    load.lost_nothing()


def test_a_revoked_token_changes_nothing_and_a_new_one_works_at_once(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "token revoked, then rotated, while an upgrade adds a gated model"
    row.mark = "one sentence without the token; 0 failed of >= 400; works with the new token"
    install_token(release.place, release.namespace, SECRET, "hf_revoked")
    chosen = install(light=False)
    chosen["huggingface"] = {**chosen["huggingface"], "token": {"existingSecret": SECRET}}
    with traffic.running(door(release.place, release), servers.MODEL) as load:
        with pytest.raises(helm.CommandFailedError):
            release.apply(with_model(chosen, GATED))
        said = servers.sync_words(release)
        not_there(release)
        install_token(release.place, release.namespace, SECRET, GATED_TOKEN)
        release.apply(with_model(chosen, GATED, attempt=2))
        servers.wait_settled(release, 2)
        load.wait_for(traffic.ENOUGH)
    row.measured = f"{load.summary()}; said: {said}"
    assert GATED_REPOSITORY in said
    assert len(said.splitlines()) == 1, said
    assert "hf_revoked" not in said
    answers(release)
    load.lost_nothing()


def apply(release: Release, *objects: dict[str, Any]) -> None:
    """Hand objects to the API server."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    helm.run(release.place, "kubectl", "apply", "-f", "-", stdin=text)


def test_two_syncs_at_once_into_one_store_both_end_well(
    release: Release, install: Install, row: Row
) -> None:
    row.fault = "two releases sync the same model into one store at once, Hub at 25 MB/s"
    row.mark = "both serve the model; no server starts twice"
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "both", "namespace": release.namespace},
        "spec": {
            "storageClassName": "shared",
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    apply(release, claim)
    pair = [release, Release(place=release.place, namespace=release.namespace, name="other")]
    with hub_that(f"bytes_per_second={25 * MEGABYTE}"), ThreadPoolExecutor(2) as pool:
        started = []
        for each in pair:
            chosen = servers.values(
                release.place, f"{each.name}-{release.namespace}", light=False, replicas=1
            )
            chosen["modelStore"] = {"existingClaim": "both", "accessModes": ["ReadWriteMany"]}
            started.append(pool.submit(each.apply, with_model(chosen)))
        for one in started:
            one.result()
    for each in pair:
        servers.wait_settled(each, 1)
        answers(each)
    row.measured = "both answer"


@contextlib.contextmanager
def small_disk(node: Node, megabytes: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of so many megabytes on a node; yield what changes its size."""
    node.run(["mkdir", "-p", SMALL])
    node.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=1777", "tmpfs", SMALL])

    def resize(size: int) -> None:
        node.run(["mount", "-o", f"remount,size={size}m", SMALL])

    try:
        yield resize
    finally:
        node.run(["umount", "--lazy", SMALL])


def volume(release: Release, node: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a volume on the small disk and a claim for it."""
    size = {"storage": "1Gi"}
    where = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    terms = [{"matchExpressions": [where]}]
    name = f"small-{release.namespace}"
    shared = {"storageClassName": "", "accessModes": ["ReadWriteMany"]}
    disk = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **shared,
            "capacity": size,
            "hostPath": {"path": SMALL},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "small", "namespace": release.namespace},
        "spec": {**shared, "volumeName": name, "resources": {"requests": size}},
    }
    return disk, claim


def test_a_full_disk_changes_nothing_and_a_larger_one_works(release: Release, row: Row) -> None:
    row.fault = "disk full in the middle of a sync"
    row.mark = "one sentence; 0 failed of >= 400; with more room it works"
    name = servers.WORKERS[0]
    disk, claim = volume(release, name)
    with small_disk(Node(plan.node(name)), 120) as resize:
        apply(release, disk, claim)
        try:
            chosen = servers.values(release.place, release.namespace, light=False)
            chosen["modelStore"] = {"existingClaim": "small", "accessModes": ["ReadWriteMany"]}
            chosen["nodeSelector"] = {"kubernetes.io/hostname": name}
            chosen["modelSync"] |= {"nodeSelector": chosen["nodeSelector"]}
            chosen["modelSync"] |= {"tolerations": chosen["tolerations"]}
            release.apply(chosen)
            servers.wait_settled(release, 2)
            with traffic.running(door(release.place, release), servers.MODEL) as load:
                with pytest.raises(helm.CommandFailedError):
                    release.apply(with_model(chosen))
                said = servers.sync_words(release)
                not_there(release)
                resize(900)
                release.apply(with_model(chosen, attempt=2))
                servers.wait_settled(release, 2)
                load.wait_for(traffic.ENOUGH)
            answers(release)
            release.uninstall()
        finally:
            helm.run(release.place, "kubectl", "delete", "pv", disk["metadata"]["name"], "--wait=0")
    row.measured = f"{load.summary()}; said: {said}"
    assert "full" in said or "space" in said, said
    assert len(said.splitlines()) == 1, said
    load.lost_nothing()
