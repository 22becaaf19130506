"""The server's Deployment: GPUs, memory, probes, shutdown, rollout, command line."""

from __future__ import annotations

from typing import Any

import pytest

from chart.rendering import CHART, Manifest, Object, render

pytestmark = pytest.mark.chart
GPU_NODES = {"nvidia.com/gpu.present": "true"}
ONE_STORE = {"modelStore": {"accessModes": ["ReadWriteMany"]}}


def pod(manifest: Manifest) -> Object:
    return dict(manifest.one("Deployment")["spec"]["template"]["spec"])


def flags(values: dict[str, Any]) -> dict[str, str]:
    """Return tritonserver's flags by name."""
    words = render(values).server["args"]
    assert words[0] == "tritonserver"
    return dict(word.partition("=")[::2] for word in words[1:])


def test_a_server_asks_for_its_gpus_on_gpu_nodes() -> None:
    chosen = {"resourceName": "nvidia.com/mig-3g.40gb", "nodeSelector": {"pool": "gpu"}}
    manifest = render({"gpu": chosen})
    for part in ("requests", "limits"):
        assert manifest.server["resources"][part]["nvidia.com/mig-3g.40gb"] == "1"
    assert pod(manifest)["nodeSelector"] == {"pool": "gpu"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod(manifest)[
        "tolerations"
    ]
    assert "--allow-gpu-metrics=true" in manifest.server["args"]


def test_the_requested_gpu_alone_binds_a_pod_because_clouds_label_nodes_differently() -> None:
    assert "nodeSelector" not in pod(render())


def test_no_gpu_means_a_cpu_node() -> None:
    manifest = render({"gpu": {"count": 0, "nodeSelector": GPU_NODES}})
    assert not any("nvidia" in key for key in manifest.server["resources"]["limits"])
    assert "nodeSelector" not in pod(manifest)
    assert "tolerations" not in pod(manifest)
    assert "--allow-gpu-metrics=false" in manifest.server["args"]


def test_only_the_server_container_asks_for_gpus() -> None:
    for owner, template in render(file=CHART / "ci" / "gpu-values.yaml").pods():
        containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        for container in containers:
            asks = any("gpu" in key for key in container["resources"].get("limits", {}))
            assert asks == (container["name"] == "triton"), (owner["kind"], container["name"])


def test_users_selectors_and_tolerations_come_on_top_of_those_of_the_gpu() -> None:
    toleration = {"key": "reserved", "operator": "Exists"}
    values = {"nodeSelector": {"pool": "a"}, "gpu": {"nodeSelector": {"gpu": "l4"}}}
    spec = pod(render({**values, "tolerations": [toleration]}))
    assert spec["nodeSelector"] == {"pool": "a", "gpu": "l4"}
    assert len(spec["tolerations"]) == 2


@pytest.mark.parametrize(
    ("memory", "shared", "wanted"),
    [
        ("24Gi", "1Gi", "25600Mi"),
        ("3Gi", "64Mi", "3136Mi"),
        ("1.5Gi", "512Mi", "2048Mi"),
        ("2G", "1Mi", "1909Mi"),
        (1073741824, 1048576, "1025Mi"),
        ("500Mi", "1Ki", "501Mi"),
    ],
)
def test_shared_memory_is_counted_in_request_and_limit(
    memory: str | int, shared: str | int, wanted: str
) -> None:
    amounts = {"memory": memory}
    manifest = render(
        {"resources": {"requests": amounts, "limits": amounts}, "sharedMemory": shared}
    )
    assert manifest.server["resources"]["requests"]["memory"] == wanted
    assert manifest.server["resources"]["limits"]["memory"] == wanted
    volume = next(v for v in pod(manifest)["volumes"] if v["name"] == "shared-memory")
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": shared}
    mounts = {m["name"]: m["mountPath"] for m in manifest.server["volumeMounts"]}
    assert mounts["shared-memory"] == "/dev/shm"


def test_no_memory_limit_stays_none() -> None:
    manifest = render({"resources": {"limits": None}})
    assert "memory" not in manifest.server["resources"]["limits"]


@pytest.mark.parametrize(("budget", "period"), [(900, 5), (901, 5), (61, 10), (10, 30)])
def test_the_startup_probe_gives_the_whole_budget(budget: int, period: int) -> None:
    startup = {"budgetSeconds": budget, "periodSeconds": period}
    probe = render({"probes": {"startup": startup}}).server["startupProbe"]
    assert budget <= probe["failureThreshold"] * probe["periodSeconds"] < budget + period


def test_the_deadline_of_a_rollout_covers_download_and_load() -> None:
    values = {"probes": {"startup": {"budgetSeconds": 1000}}, "modelSync": {"timeoutSeconds": 7000}}
    assert render(values).one("Deployment")["spec"]["progressDeadlineSeconds"] >= 8000


def test_probes_ask_three_different_questions() -> None:
    server = render().server
    asked = [
        server[name]["exec"]["command"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    assert asked == [["triton-hf", "probe", word] for word in ("startup", "ready", "live")]


def test_the_grace_period_is_pre_stop_and_drain_and_ten() -> None:
    manifest = render({"shutdown": {"preStopSeconds": 20, "drainSeconds": 300}})
    assert pod(manifest)["terminationGracePeriodSeconds"] == 330
    assert manifest.server["lifecycle"]["preStop"] == {"sleep": {"seconds": 20}}
    assert "--exit-timeout-secs=300" in manifest.server["args"]


def test_no_pre_stop_means_no_hook() -> None:
    manifest = render({"shutdown": {"preStopSeconds": 0}})
    assert "lifecycle" not in manifest.server
    assert pod(manifest)["terminationGracePeriodSeconds"] == 70


@pytest.mark.parametrize(("pre_stop", "age"), [(15, 7000), (4, 2000), (0, 1000)])
def test_grpc_connections_are_renewed_before_a_pod_ends(pre_stop: int, age: int) -> None:
    got = flags({"shutdown": {"preStopSeconds": pre_stop}})
    assert got["--grpc-max-connection-age"] == str(age)


def test_the_age_of_grpc_connections_can_be_chosen() -> None:
    got = flags({"server": {"grpcMaxConnectionAgeSeconds": 300}})
    assert got["--grpc-max-connection-age"] == "300000"


def test_a_rollout_needs_no_spare_gpu_by_default() -> None:
    """5 % is one pod of fewer than 40, because Kubernetes never lets both resolve to 0."""
    strategy = render().one("Deployment")["spec"]["strategy"]
    assert strategy == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "5%"},
    }


def test_recreate_carries_no_rolling_update() -> None:
    strategy = render({"strategy": {"type": "Recreate"}}).one("Deployment")["spec"]["strategy"]
    assert strategy == {"type": "Recreate"}


def test_spread_constraints_select_the_servers_of_this_release() -> None:
    manifest = render({"topologySpreadConstraints": [spread("zone"), spread("host")]})
    wanted = manifest.one("Deployment")["spec"]["selector"]
    constraints = pod(manifest)["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in constraints] == ["zone", "host"]
    assert all(c["labelSelector"] == wanted for c in constraints)


def spread(key: str) -> Object:
    return {"topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}


@pytest.mark.parametrize(("replicas", "rendered"), [(1, 0), (2, 1)])
def test_a_disruption_budget_exists_only_where_it_can_be_kept(replicas: int, rendered: int) -> None:
    manifest = render({"replicas": replicas, **ONE_STORE})
    assert len(manifest.all("PodDisruptionBudget")) == rendered
    for budget in manifest.all("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == "5%"
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


# The table of flags by the version that brought them; an unknown flag stops tritonserver.
GATED = {
    "--grpc-max-response-pool-size": ("2.55.0", "2.56.0"),
    "--grpc-infer-thread-count": ("2.56.0", "2.57.0"),
    "--http-max-input-size": ("2.58.0", "2.59.0"),
    "--allow-client-shm": ("2.68.0", "2.69.0"),
}


@pytest.mark.parametrize(("flag", "versions"), GATED.items(), ids=GATED)
def test_a_flag_appears_with_the_version_that_knows_it(
    flag: str, versions: tuple[str, str]
) -> None:
    before, since = versions
    assert flag not in flags({"image": {"tritonVersion": before}})
    assert flag in flags({"image": {"tritonVersion": since}})


def test_the_oldest_supported_triton_gets_no_newer_flag() -> None:
    assert not set(GATED) & set(flags({"image": {"tritonVersion": "2.51.0"}}))


def test_large_numbers_are_written_out() -> None:
    got = flags({"server": {"maxInputBytes": 1073741824}})
    assert got["--http-max-input-size"] == "1073741824"


def test_what_must_stay_off_is_off() -> None:
    got = flags({})
    assert got["--model-control-mode"] == "none"
    assert got["--allow-sagemaker"] == got["--allow-vertex-ai"] == "false"
    assert got["--allow-client-shm"] == "false"


def test_without_grpc_no_port_flag_or_service_speaks_it() -> None:
    manifest = render({"grpc": {"enabled": False}, "openai": {"enabled": False}})
    assert [s["metadata"]["name"] for s in manifest.all("Service")] == [
        "rel-triton-metrics",
        "rel-triton",
    ]
    assert "grpc" not in {port["name"] for port in manifest.server["ports"]}
    assert not [word for word in manifest.server["args"] if word.startswith("--grpc")]


def test_extra_environment_adds_and_replaces() -> None:
    server = render({"extraEnv": {"HF_HUB_OFFLINE": "0", "N": 3}}).server
    found = {entry["name"]: entry.get("value") for entry in server["env"]}
    assert found["HF_HUB_OFFLINE"] == "0"
    assert found["N"] == "3"
    assert found["TRITON_HF_STORE"] == "/models"


def test_extra_words_come_last() -> None:
    assert render({"server": {"extraArgs": ["--x=1"]}}).server["args"][-1] == "--x=1"


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ({}, "triton-hf:0.1.0"),
        ({"registry": "r.example.com/a/"}, "r.example.com/a/triton-hf:0.1.0"),
        ({"tag": "7", "repository": "x/y"}, "x/y:7"),
        ({"tag": "7", "digest": "sha256:" + "a" * 64}, "triton-hf@sha256:" + "a" * 64),
    ],
)
def test_the_image_is_named_by_its_parts(image: Object, wanted: str) -> None:
    for _, template in render({"image": image}).pods():
        containers = [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]
        assert {container["image"] for container in containers} == {wanted}


def test_metrics_have_a_service_of_their_own() -> None:
    manifest = render({"service": {"type": "LoadBalancer"}})
    metrics = manifest.one("Service", "rel-triton-metrics")["spec"]
    assert metrics["type"] == "ClusterIP"
    for service in manifest.all("Service"):
        if service["metadata"]["name"] != "rel-triton-metrics":
            assert "metrics" not in {port["name"] for port in service["spec"]["ports"]}


def test_each_service_is_exposed_as_the_values_say() -> None:
    manifest = render(file=CHART / "ci" / "everything-values.yaml")
    http, grpc = (manifest.one("Service", name) for name in ("everything", "everything-grpc"))
    assert http["spec"]["type"] == "LoadBalancer"
    assert http["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert http["spec"]["loadBalancerClass"] == "example.com/internal"
    assert http["spec"]["externalTrafficPolicy"] == "Local"
    assert http["metadata"]["annotations"] == {
        "example.com/internal": "true",
        "example.com/health": "/v2/health/ready",
    }
    assert grpc["spec"]["type"] == "ClusterIP"
    assert not [key for key in grpc["spec"] if key.startswith(("loadBalancer", "external"))]
    assert grpc["metadata"]["annotations"] == {"example.com/internal": "true"}


def test_the_annotations_of_one_service_win() -> None:
    values = {"annotations": {"a": "both"}, "grpc": {"annotations": {"a": "grpc"}}}
    manifest = render({"service": values})
    assert manifest.one("Service", "rel-triton")["metadata"]["annotations"] == {"a": "both"}
    assert manifest.one("Service", "rel-triton-grpc")["metadata"]["annotations"] == {"a": "grpc"}


def test_a_port_need_not_name_its_protocol() -> None:
    for named in (True, False):
        manifest = render({"service": {"appProtocol": named}})
        for name in ("rel-triton", "rel-triton-grpc"):
            for port in manifest.one("Service", name)["spec"]["ports"]:
                assert ("appProtocol" in port) == named
