"""What the add-ons of the embedded cluster promise, asked of the cluster itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from cluster import plan
from tools.place import Place
from tools.wait import until

pytestmark = pytest.mark.cluster

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def kubectl(here: Place, namespace: str) -> Kubectl:
    """Run kubectl in the test's namespace, with objects on stdin."""
    if not here.embedded:
        pytest.skip("asks the embedded cluster for its own add-ons")

    def run(*words: str, apply: list[dict[str, Any]] | None = None, check: bool = True) -> Any:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": apply}) if apply else None
        done = subprocess.run(
            ["kubectl", "-n", namespace, *words],
            input=text,
            capture_output=True,
            text=True,
            env=here.environment(),
        )
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


def pod(name: str, node: str, *, claims: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """Return a pod of the test image that Pod Security `restricted` admits."""
    container = {
        "name": "main",
        "image": "localhost/curl:1",
        "imagePullPolicy": "Never",
        "command": ["sleep", "3600"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": claim, "mountPath": f"/{claim}"} for claim in claims],
        **more,
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"operator": "Exists"}],
            "terminationGracePeriodSeconds": 0,
            "securityContext": user,
            "containers": [container],
            "volumes": [
                {"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims
            ],
        },
    }


def web(node: str) -> list[dict[str, Any]]:
    """Return a server that answers "hello" behind a Service."""
    page = "mkdir /tmp/www; echo hello > /tmp/www/index.html"
    serve = f"{page}; exec busybox httpd -f -p 8080 -h /tmp/www"
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    ready = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    return [pod("web", node, command=["sh", "-c", serve], readinessProbe=ready), service]


def claim(name: str, mode: str, storage_class: str | None) -> dict[str, Any]:
    """Return a claim of 1 MiB; no class is the default class."""
    spec: dict[str, Any] = {
        "accessModes": [mode],
        "resources": {"requests": {"storage": "1Mi"}},
    }
    if storage_class:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


def ready(kubectl: Kubectl, *names: str) -> None:
    kubectl("wait", "--for=condition=Ready", "--timeout=120s", *(f"pod/{name}" for name in names))


def ask(kubectl: Kubectl, client: str, url: str) -> str:
    """Return the body that a client pod gets, or curl's complaint."""
    done = kubectl("exec", client, "--", "curl", "-sS", "-m", "3", url, check=False)
    return (done.stdout or done.stderr).strip()


def answer_at_the_door(host: str) -> str:
    """Return what port 80 of the system node answers for a host name."""
    words = ["curl", "-sS", "-m", "3", "-H", f"Host: {host}", f"http://{plan.SYSTEM.address}/"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


def gets_hello(kubectl: Kubectl, client: str) -> bool:
    return ask(kubectl, client, "http://web/") == "hello"


def is_refused(kubectl: Kubectl, client: str) -> bool:
    said = ask(kubectl, client, "http://web/")
    return "Failed to connect" in said or "timed out" in said


def answers_hello(host: str) -> bool:
    return answer_at_the_door(host) == "hello"


def test_what_a_pod_writes_to_a_shared_volume_another_node_reads(kubectl: Kubectl) -> None:
    write = ["sh", "-c", "echo kept > /data/file; exec sleep 3600"]
    kubectl(
        "apply",
        "-f",
        "-",
        apply=[
            claim("data", "ReadWriteMany", "shared"),
            pod("writer", "gpu-1", claims=("data",), command=write),
            pod("reader", "gpu-2", claims=("data",)),
        ],
    )
    ready(kubectl, "writer", "reader")

    until(
        lambda: kubectl("exec", "reader", "--", "cat", "/data/file").stdout == "kept\n", seconds=20
    )


def test_the_default_class_gives_a_volume_that_stays_with_its_node(kubectl: Kubectl) -> None:
    write = ["sh", "-c", "echo kept > /data/file; exec sleep 3600"]
    volume = claim("data", "ReadWriteOnce", None)
    kubectl(
        "apply", "-f", "-", apply=[volume, pod("writer", "gpu-1", claims=("data",), command=write)]
    )
    ready(kubectl, "writer")
    kubectl("delete", "pod", "writer")
    anywhere = pod("reader", "gpu-1", claims=("data",))
    del anywhere["spec"]["nodeSelector"]
    kubectl("apply", "-f", "-", apply=[anywhere])
    ready(kubectl, "reader")

    assert kubectl("exec", "reader", "--", "cat", "/data/file").stdout == "kept\n"
    assert kubectl("get", "pod", "reader", "-o", "jsonpath={.spec.nodeName}").stdout == "gpu-1"


def test_a_name_that_does_not_exist_is_refused_and_not_waited_for(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", apply=[pod("client", "gpu-1")])
    ready(kubectl, "client")

    assert "Could not resolve host" in ask(kubectl, "client", "http://huggingface.co/")


def test_a_network_policy_lets_in_only_whom_it_names(kubectl: Kubectl) -> None:
    """Same node, other node and the gateway, each with and without leave."""
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
        },
    }
    others = [pod("friend", "gpu-2"), pod("stranger-near", "gpu-1"), pod("stranger-far", "gpu-2")]
    kubectl("apply", "-f", "-", apply=[*web("gpu-1"), *others])
    ready(kubectl, "web", "friend", "stranger-near", "stranger-far")
    for client in ("friend", "stranger-near", "stranger-far"):
        until(partial(gets_hello, kubectl, client), seconds=30)

    kubectl("apply", "-f", "-", apply=[policy])

    for client in ("stranger-near", "stranger-far"):
        until(partial(is_refused, kubectl, client), seconds=30)
    assert ask(kubectl, "friend", "http://web/") == "hello"


def test_ingress_and_route_lead_to_a_service(kubectl: Kubectl, namespace: str) -> None:
    backend = {"service": {"name": "web", "port": {"number": 80}}}
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "web"},
        "spec": {
            "ingressClassName": "traefik",
            "rules": [
                {
                    "host": f"in.{namespace}.test",
                    "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]},
                }
            ],
        },
    }
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web"},
        "spec": {
            "parentRefs": [{"name": "traefik", "namespace": "traefik"}],
            "hostnames": [f"route.{namespace}.test"],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
        },
    }
    kubectl("apply", "-f", "-", apply=[*web("gpu-2"), ingress, route])
    ready(kubectl, "web")

    for host in (f"in.{namespace}.test", f"route.{namespace}.test"):
        until(partial(answers_hello, host), seconds=30)
    assert "404" in answer_at_the_door(f"other.{namespace}.test")


def on_gpus(name: str, count: int) -> dict[str, Any]:
    """Return a pod that asks for GPUs of the node gpu-2."""
    return pod(name, "gpu-2", resources={"limits": {plan.GPU_RESOURCE: str(count)}})


def gpus_of(kubectl: Kubectl, name: str) -> set[str]:
    """Return the GPUs that the kubelet gave a pod."""
    shown = kubectl("exec", name, "--", "sh", "-c", 'echo "$NVIDIA_VISIBLE_DEVICES"').stdout
    return set(shown.strip().split(","))


def test_the_kubelet_gives_each_pod_gpus_of_its_own_and_none_that_are_not_there(
    kubectl: Kubectl,
) -> None:
    greedy = on_gpus("greedy", plan.GPUS_PER_NODE + 1)
    kubectl("apply", "-f", "-", apply=[on_gpus("one", 1), on_gpus("two", 2), greedy])
    ready(kubectl, "one", "two")

    one, two = gpus_of(kubectl, "one"), gpus_of(kubectl, "two")

    assert (len(one), len(two), len(one | two)) == (1, 2, 3)
    message = "{.status.conditions[?(@.type=='PodScheduled')].message}"
    said = kubectl("get", "pod", "greedy", "-o", f"jsonpath={message}").stdout
    assert f"Insufficient {plan.GPU_RESOURCE}" in said


def with_metrics(name: str, node: str, page: str) -> dict[str, Any]:
    """Return a pod whose port `metrics` shows one page of metrics for ever."""
    write = f"mkdir /tmp/www; printf '{page}' > /tmp/www/metrics"
    serve = f"{write}; exec busybox httpd -f -p 8002 -h /tmp/www"
    port = {"name": "metrics", "containerPort": 8002}
    return pod(name, node, command=["sh", "-c", serve], ports=[port])


def test_a_gauge_of_a_pod_becomes_a_metric_that_an_autoscaler_reads(
    kubectl: Kubectl, namespace: str
) -> None:
    """Requests in flight are running and waiting ones, over all models of the pod."""
    if kubectl("get", "namespace", "monitoring", check=False).returncode:
        pytest.skip("needs the add-on: python3 -m cluster up --with monitoring")
    page = (
        'triton_hf_requests_running{model="a"} 3\\n'
        'triton_hf_requests_running{model="b"} 1\\n'
        'triton_hf_requests_waiting{model="a"} 5\\n'
    )
    monitor = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {"name": "busy"},
        "spec": {
            "selector": {"matchLabels": {"app": "busy"}},
            "podMetricsEndpoints": [{"port": "metrics"}],
            # The server names no content type that Prometheus knows.
            "fallbackScrapeProtocol": "PrometheusText0.0.4",
        },
    }
    kubectl("apply", "-f", "-", apply=[with_metrics("busy", "gpu-1", page), monitor])
    ready(kubectl, "busy")
    api = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/busy"

    def value() -> str:
        answer = kubectl("get", "--raw", f"{api}/triton_requests_inflight").stdout
        found: str = json.loads(answer)["items"][0]["value"]
        return found

    assert until(value, seconds=180) == "9"


def test_series_about_an_object_carry_its_labels_not_those_of_the_exporter(
    kubectl: Kubectl, namespace: str
) -> None:
    if kubectl("get", "namespace", "monitoring", check=False).returncode:
        pytest.skip("needs the add-on: python3 -m cluster up --with monitoring")
    kubectl("apply", "-f", "-", apply=[pod("watched", "gpu-1", command=["sleep", "600"])])
    ready(kubectl, "watched")
    service = "/api/v1/namespaces/monitoring/services/prometheus:9090/proxy"
    query = f"kube_pod_status_ready%7Bnamespace=%22{namespace}%22,condition=%22true%22%7D"

    def series() -> list[dict[str, Any]]:
        answer = kubectl("get", "--raw", f"{service}/api/v1/query?query={query}").stdout
        found: list[dict[str, Any]] = json.loads(answer)["data"]["result"]
        assert [each["value"][1] for each in found] == ["1"]
        return found

    assert until(series, seconds=60)[0]["metric"]["pod"] == "watched"
