"""charts/locust: its variants are valid, its runs never meet, its pods are closed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chart.rendering import KUBERNETES, Manifest, Object, helm, mappings, program, render
from cluster import binaries, schemas
from tools.place import ROOT

pytestmark = pytest.mark.chart
CHART = ROOT / "charts" / "locust"
SERVER = ROOT / "charts" / "triton"
CI_FILES = sorted(CHART.glob("ci/*-values.yaml"))
CASES = [None, *CI_FILES]
IDS = ["defaults", *(file.stem.removesuffix("-values") for file in CI_FILES)]
EVERYTHING = CHART / "ci" / "everything-values.yaml"
SEARCH = CHART / "ci" / "capacity-values.yaml"
SELECTOR = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "triton-load/run",
}
LABELS = SELECTOR | {
    "helm.sh/chart",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
}
variant = pytest.mark.parametrize("file", CASES, ids=IDS)


def locust(values: dict[str, Any] | None = None, **named: Any) -> Manifest:
    return render(values, chart=CHART, **named)


def own(manifest: Manifest) -> list[Object]:
    return [o for o in manifest.objects if "helm.sh/chart" in o["metadata"].get("labels", {})]


def job(manifest: Manifest, component: str) -> Object:
    (found,) = [j for j in manifest.all("Job") if j["metadata"]["name"].endswith(component)]
    return found


def container(manifest: Manifest, component: str) -> Object:
    (found,) = job(manifest, component)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def pod_labels(manifest: Manifest) -> list[dict[str, str]]:
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


# What Kubernetes says of it.


@variant
def test_variant_passes_strict_lint(file: Path | None) -> None:
    helm("lint", "--strict", str(CHART), *(["--values", str(file)] if file else []))


@pytest.fixture(scope="session")
def schema_location() -> str:
    try:
        return schemas.location()
    except binaries.MissingError as error:
        pytest.skip(str(error))


@variant
@pytest.mark.parametrize("version", KUBERNETES)
def test_variant_is_valid_for_kubernetes(
    file: Path | None, version: str, schema_location: str
) -> None:
    words = ["-strict", "-summary", "-kubernetes-version", version]
    done = subprocess.run(
        [program("kubeconform"), *words, "-schema-location", schema_location],
        input=locust(file=file).text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(locust(file=file).objects)} resources found" in done.stdout


@variant
def test_variant_is_tidy(file: Path | None) -> None:
    manifest = locust(file=file)
    empty = [
        f"{found['kind']}: {'.'.join((*path, key))}"
        for found in manifest.objects
        for path, mapping in mappings(found)
        for key, value in mapping.items()
        if value is None
    ]
    assert empty == []
    assert not re.search(r"\n\s*\n\s*\n", manifest.text)


# Two runs never meet.


@variant
def test_every_object_has_exactly_the_standard_labels(file: Path | None) -> None:
    user = {"team"} if file == EVERYTHING else set()
    for found in own(locust(file=file)):
        labels = set(found["metadata"]["labels"]) - {"release"}
        run = {"triton-load/run"} if found["kind"] == "PersistentVolumeClaim" else set()
        assert labels == (LABELS | user) - run, found["kind"]


@variant
def test_every_selector_is_exact_and_finds_a_pod_of_the_run(file: Path | None) -> None:
    manifest = locust(file=file)
    found = selectors(manifest)
    assert found
    for selector in found:
        assert set(selector) == SELECTOR
        assert any(selector.items() <= labels.items() for labels in pod_labels(manifest))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"release": "one"}, {"release": "two"}),
        ({"values": {"run": {"name": "one"}}}, {"values": {"run": {"name": "two"}}}),
        (
            {"release": "the-same-long-beginning-of-a-name-a"},
            {"release": "the-same-long-beginning-of-a-name-b"},
        ),
    ],
    ids=["releases", "runs", "long releases"],
)
def test_two_runs_share_no_job_no_service_and_no_pod(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    first, second = locust(**one), locust(**two)
    kinds = ("Job", "Service", "NetworkPolicy", "ConfigMap")
    names = [
        {(o["kind"], o["metadata"]["name"]) for kind in kinds for o in manifest.all(kind)}
        for manifest in (first, second)
    ]
    assert names[0]
    assert names[0] & names[1] == set()
    for selector in selectors(first):
        assert not any(selector.items() <= labels.items() for labels in pod_labels(second))


def test_workers_call_the_service_of_their_own_run() -> None:
    manifest = locust({"run": {"name": "nightly"}})
    (service,) = own_services(manifest)
    name = service["metadata"]["name"]
    assert name == "rel-locust-nightly-1"
    assert f"--master-host={name}" in container(manifest, "worker")["args"]


def test_no_name_is_longer_than_kubernetes_takes() -> None:
    values = {"run": {"name": "n" * 16}, "webUI": {"enabled": True}}
    for found in locust(values, release="r" * 53).objects:
        # A Job's pods add a dash and five letters.
        room = 57 if found["kind"] == "Job" else 63
        assert len(found["metadata"]["name"]) <= room, found["metadata"]["name"]


def test_servers_of_the_namespace_admit_the_pods() -> None:
    policy = render(chart=SERVER).one("NetworkPolicy", "rel-triton")["spec"]["ingress"]
    peers = [peer for rule in policy for peer in rule["from"] if "podSelector" in peer]
    for labels in pod_labels(locust({"nameOverride": "load"})):
        assert any(p["podSelector"]["matchLabels"].items() <= labels.items() for p in peers)


# What a run is.


@variant
def test_nothing_is_tried_again_and_everything_ends(file: Path | None) -> None:
    manifest = locust(file=file)
    assert len(manifest.all("Job")) == (1 if file == SEARCH else 2)
    for found in manifest.all("Job"):
        assert found["spec"]["backoffLimit"] == 0
        assert found["spec"]["ttlSecondsAfterFinished"] == 3600
        assert found["spec"]["activeDeadlineSeconds"] == 7200
        assert found["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_master_waits_for_as_many_workers_as_the_job_starts() -> None:
    manifest = locust({"workers": {"count": 7}})
    assert "--expect-workers=7" in container(manifest, "master")["args"]
    spec = job(manifest, "worker")["spec"]
    assert (spec["parallelism"], spec["completions"]) == (7, 7)


def test_master_and_workers_are_told_the_same_test() -> None:
    manifest = locust(file=EVERYTHING)
    words = ("--host", "--grpc-host", "--model", "--client", "--data", "--schema", "--rate")
    words += ("--arrival", "--shape", "--peak", "--keep-alive", "--max-tokens", "--stop-timeout")
    told = [
        [word for word in container(manifest, component)["args"] if word.startswith(words)]
        for component in ("master", "worker")
    ]
    assert told[0] == told[1]
    assert len(told[0]) == len(words)


def test_options_become_words_of_the_command_line() -> None:
    args = container(locust(file=EVERYTHING), "master")["args"]
    assert {"--rate=2.5", "--peak=16777216", "--max-tokens=64", "--keep-alive"} <= set(args)
    assert not [word for word in args if "insecure" in word]
    closed = container(locust(), "master")["args"]
    assert not [word for word in closed if word.startswith(("--rate", "--peak"))]


def test_a_page_makes_a_run_start_and_end_by_itself_all_the_same() -> None:
    args = container(locust({"webUI": {"enabled": True}}), "master")["args"]
    assert {"--autostart", "--autoquit=0"} <= set(args)
    assert "--headless" not in args
    assert "--headless" in container(locust(), "master")["args"]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, []),
        ({"data": {"file": "/a.json"}}, ["--data=/a.json"]),
        ({"data": {"inline": "[]"}}, ["--data=/etc/triton-load/data.json"]),
        (
            {"data": {"existingConfigMap": "x"}, "schema": {"existingConfigMap": "y"}},
            ["--data=/etc/triton-load/data.json", "--schema=/etc/triton-load/config.pbtxt"],
        ),
        ({"schema": {"inline": "name"}}, ["--schema=/etc/triton-load/config.pbtxt"]),
    ],
    ids=str,
)
def test_data_and_schema_come_from_the_image_or_a_config_map(
    values: dict[str, Any], wanted: list[str]
) -> None:
    manifest = locust(values)
    args = container(manifest, "worker")["args"]
    assert [word for word in args if word.startswith(("--data", "--schema"))] == wanted
    volumes = job(manifest, "worker")["spec"]["template"]["spec"]["volumes"]
    (projected,) = [v["projected"]["sources"] for v in volumes if v["name"] == "input"]
    named = {source["configMap"]["name"] for source in projected}
    given = {part["existingConfigMap"] for part in values.values() if "existingConfigMap" in part}
    assert named == {"rel-locust-run-1"} | given


def test_inline_text_arrives_as_it_was_written() -> None:
    text = '{"data": [\n  {"a": ["{{ .Values }} \\u00e9 \'\\" "]}\n]}\n'
    config = locust({"data": {"inline": text}}).one("ConfigMap")
    assert config["data"]["data.json"] == text


def test_a_new_report_never_overwrites_an_old_one() -> None:
    found = container(locust(), "master")
    assert "--out=/results/$(POD_NAME)" in found["args"]
    assert "--csv=/results/$(POD_NAME)/locust" in found["args"]
    (source,) = [e["valueFrom"] for e in found["env"] if e["name"] == "POD_NAME"]
    assert source == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_reports_outlive_the_release_and_only_the_master_writes_them() -> None:
    manifest = locust()
    claim = manifest.one("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert locust({"run": {"name": "next"}}).one("PersistentVolumeClaim") == claim
    mounts = {m["mountPath"] for m in container(manifest, "worker")["volumeMounts"]}
    assert "/results" not in mounts
    existing = locust({"results": {"existingClaim": "mine"}})
    assert existing.all("PersistentVolumeClaim") == []
    assert "'claimName': 'mine'" in str(job(existing, "master"))


def test_workers_have_a_core_each_and_no_limit_of_it() -> None:
    resources = container(locust(), "worker")["resources"]
    assert resources["requests"]["cpu"] == "1"
    assert set(resources["limits"]) == {"memory"}


def test_the_test_keeps_away_from_gpu_nodes() -> None:
    for found in locust().all("Job"):
        spec = found["spec"]["template"]["spec"]
        required = spec["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert required["nodeSelectorTerms"] == [
            {
                "matchExpressions": [
                    {"key": "nvidia.com/gpu.present", "operator": "NotIn", "values": ["true"]}
                ]
            }
        ]
        assert "tolerations" not in spec
    assert "affinity" not in str(locust({"gpuNodes": {"avoid": False}}).all("Job"))


# A search for the capacity.


def test_a_search_is_one_pod_that_makes_its_load_itself() -> None:
    manifest = locust(file=SEARCH)
    (only,) = manifest.all("Job")
    assert only["metadata"]["name"] == "rel-locust-run-1-master"
    assert own_services(manifest) == []
    (policy,) = manifest.all("NetworkPolicy")
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert opened == {"metrics"}
    found = container(manifest, "master")
    assert found["command"] == ["python3", "-m", "triton_load.capacity"]
    assert found["resources"] == container(locust(), "worker")["resources"]
    assert [port["name"] for port in found["ports"]] == ["metrics"]
    silent = locust({"metrics": {"enabled": False}}, file=SEARCH)
    assert "ports" not in container(silent, "master")
    assert "ingress" not in silent.one("NetworkPolicy")["spec"]


def test_a_search_takes_every_word_that_the_chart_gives_it(tmp_path: Path) -> None:
    words = container(locust({"capacity": {"forUsers": 50}}, file=SEARCH), "master")["args"]
    goals = tmp_path / "goals.yaml"
    goals.write_text("error ratio: 0\n")
    here = {
        "--out": tmp_path / "out",
        "--objectives": goals,
        "--host": "http://127.0.0.1:9",
        "--wait": 0,
        "--exporter-port": 0,
    }
    assert set(here) <= {word.split("=")[0] for word in words}
    names = [word.split("=")[0] for word in words]
    words = [f"{n}={here[n]}" if n in here else w for n, w in zip(names, words, strict=True)]
    done = subprocess.run(
        [sys.executable, "-m", "triton_load.capacity", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT / "load_testing")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot reach http://127.0.0.1:9")


# Who may do what.


@variant
def test_every_pod_is_one_that_restricted_admits(file: Path | None) -> None:
    for found, pod in locust(file=file).pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for part in spec["containers"]:
            context = part["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "limits" in part["resources"], found["metadata"]["name"]


def test_workers_let_nobody_in_and_masters_only_their_workers() -> None:
    manifest = locust()
    worker = manifest.one("NetworkPolicy", "rel-locust-run-1-worker")["spec"]
    assert worker["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in worker
    master = manifest.one("NetworkPolicy", "rel-locust-run-1-master")["spec"]
    opened = {port["port"]: rule["from"] for rule in master["ingress"] for port in rule["ports"]}
    assert set(opened) == {"locust", "metrics"}
    (peer,) = opened["locust"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"


def test_an_empty_list_of_peers_closes_and_never_opens() -> None:
    closed = {"target": [], "dns": [], "monitoring": [], "gateway": []}
    manifest = locust({"networkPolicy": closed, "webUI": {"enabled": True}})
    for policy in manifest.all("NetworkPolicy"):
        for rule in policy["spec"].get("ingress") or []:
            assert rule["from"]
        for rule in policy["spec"].get("egress") or []:
            assert rule["to"]


def test_the_page_is_closed_unless_asked_for() -> None:
    assert locust().all("Ingress") == []
    assert [s["metadata"]["name"] for s in own_services(locust())] == ["rel-locust-run-1"]
    manifest = locust({"webUI": {"enabled": True, "ingress": {"enabled": True}}})
    backend = manifest.one("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert manifest.one("Service", backend["service"]["name"])["spec"]["ports"][0]["name"] == "web"


@variant
def test_named_ports_are_ports_of_the_master(file: Path | None) -> None:
    manifest = locust(file=file)
    ports = {port["name"] for port in container(manifest, "master")["ports"]}
    used = {p["targetPort"] for s in own_services(manifest) for p in s["spec"]["ports"]}
    for policy in manifest.all("NetworkPolicy"):
        for _, mapping in mappings(policy["spec"].get("ingress", [])):
            used |= {port["port"] for port in mapping.get("ports", [])}
    for monitor in manifest.all("PodMonitor"):
        used |= {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]}
    assert used
    assert used <= ports


def test_the_servers_are_counted_by_a_service_that_selects_their_ready_pods() -> None:
    manifest = locust()
    service = manifest.one("Service", "rel-locust-run-1-servers")["spec"]
    assert service["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service
    server = render(chart=SERVER, release="triton").one("Deployment")["spec"]["template"]
    assert service["selector"].items() <= server["metadata"]["labels"].items()
    assert "--replicas-host=rel-locust-run-1-servers" in container(manifest, "master")["args"]
    none = locust({"target": {"podLabels": None}})
    assert "replicas" not in none.text


def test_the_image_is_pinned() -> None:
    assert container(locust(), "master")["image"] == "triton-load:0.1.0"
    assert container(locust(file=EVERYTHING), "worker")["image"].startswith(
        "registry.example.com/ml/triton-load@sha256:"
    )


def test_the_notes_need_no_checkout_and_their_pod_reads_the_reports() -> None:
    words = ("install", "load", str(CHART), "--dry-run=client", "--namespace", "models")
    notes = helm(*words).partition("NOTES:")[2]
    assert notes
    assert "charts/locust" not in notes
    assert "PYTHONPATH" not in notes
    (text,) = re.findall(r"^  echo '(.+)' \| kubectl apply -f -$", notes, re.MULTILINE)
    pod = json.loads(text)
    claim = locust(release="load").one("PersistentVolumeClaim")["metadata"]["name"]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert notes.count(f"-n models exec {pod['metadata']['name']} ") == 1
