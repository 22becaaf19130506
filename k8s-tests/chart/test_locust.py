"""charts/locust: what a run is told, where its reports go, and that it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.rendered_runs import EVERYTHING, SEARCH, container, job, locust
from chart.rendering import LOCUST, LOCUST_CASE_IDS, LOCUST_CASES, helm

pytestmark = pytest.mark.chart
variant = pytest.mark.parametrize("file", LOCUST_CASES, ids=LOCUST_CASE_IDS)


@variant
def test_nothing_is_tried_again_and_everything_ends(file: Path | None) -> None:
    manifest = locust(file=file)
    assert len(manifest.all("Job")) == (1 if file == SEARCH else 2)
    for found in manifest.all("Job"):
        assert found["spec"]["backoffLimit"] == 0
        assert found["spec"]["ttlSecondsAfterFinished"] == 3600
        assert 60 <= found["spec"]["activeDeadlineSeconds"] <= 7200
        assert found["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_client_of_openais_api_may_leave_for_the_port_of_the_server_chart() -> None:
    values = {"target": {"url": "http://triton:9000"}, "run": {"client": "openai"}}
    manifest = locust(values)
    assert "--client=openai" in container(manifest, "master")["args"]
    rules = [r for p in manifest.all("NetworkPolicy") for r in p["spec"].get("egress", [])]
    ports = {port["port"] for rule in rules for port in rule["ports"]}
    server = yaml.safe_load((LOCUST.parent / "triton/values.yaml").read_text(encoding="utf-8"))
    assert server["openai"]["port"] in ports


def deadlines(values: dict[str, Any]) -> tuple[int, int]:
    manifest = locust(values)
    master, worker = (job(manifest, name)["spec"] for name in ("master", "worker"))
    return master["activeDeadlineSeconds"], worker["activeDeadlineSeconds"]


def test_workers_that_find_no_node_do_not_stay_as_long_as_a_test_may_take() -> None:
    run = {"durationSeconds": 100, "stopSeconds": 20}
    values = {"run": run, "master": {"waitForWorkersSeconds": 30}, "target": {"waitSeconds": 50}}
    assert deadlines(values) == (7200, 100 + 20 + 30 + 50 + 600)
    assert deadlines({**values, "jobs": {"deadlineSeconds": 300}}) == (300, 300)
    page = {"webUI": {"enabled": True, "lingerSeconds": 60}}
    assert deadlines({**values, **page})[1] == 260 + 600


@pytest.mark.parametrize("address", ["triton:8001", "10.0.0.1:8001", "[fd00::1]:8001"])
def test_the_grpc_address_may_be_of_ipv6(address: str) -> None:
    args = container(locust({"target": {"grpc": address}}), "worker")["args"]
    assert f"--grpc-host={address}" in args


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


def test_the_image_is_pinned() -> None:
    assert container(locust(), "master")["image"] == "triton-load:0.1.0"
    assert container(locust(file=EVERYTHING), "worker")["image"].startswith(
        "registry.example.com/ml/triton-load@sha256:"
    )


def test_the_notes_need_no_checkout_and_their_pod_reads_the_reports() -> None:
    words = ("install", "load", str(LOCUST), "--dry-run=client", "--namespace", "models")
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
