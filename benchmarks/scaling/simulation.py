"""The chart at the size of a data centre: hundreds of GPU nodes and servers, on one machine.

Usage: python -m benchmarks.scaling.simulation --out DIR [--nodes 200]
       [--replicas 10 50 100 200 400] [--sync 15] [--hold 90]

Real: etcd, API server, controllers, scheduler, Prometheus, prometheus-adapter, the chart with its
HPA and its rules, and the text of the metrics, which comes from a Triton that ran a moment before.
Simulated: nodes and pods (kwok), so nothing is loaded and nothing is answered. The demand grows so
that the autoscaler wants each number of replicas in turn; what its look costs is measured there.
Writes DIR/simulation.json, simulation.md and simulation.png.
Exit codes: 0 done, 1 something did not start or did not follow the demand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scaling import controlplane, lab, metrics_pages, simulation_report
from benchmarks.scaling.controlplane import ControlPlane, program
from cluster import binaries
from dashboards import panels
from embedded_triton.fetch import EmbeddedError
from embedded_triton.server import running_server
from lib import offered_load
from lib.prometheus import Prometheus, PrometheusError, free_port
from lib.watch import Watcher
from tools import helm, install, wait
from tools.helm import Release
from triton_hf.progress import Progress

NAMESPACE, NAME = "fleet", "fleet"
MODEL = "llama3-8b"
GPUS_PER_NODE = 2
TARGET, SLOTS = 24, 32
METRIC = "triton_requests_inflight"
HPA_METRICS = "horizontal_pod_autoscaler_controller"
_SAMPLE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)$", re.MULTILINE)
FAULTS = (
    *(binaries.BinariesError, EmbeddedError, PrometheusError, helm.CommandFailedError),
    *(LookupError, OSError, metrics_pages.NoSignalError),
)


PROGRESS = Progress("simulation")
say = PROGRESS.say


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the autoscaler costs at one number of replicas; times in seconds, CPU in cores.

    Attributes:
        wanted: replicas that the demand is made for.
        replicas: those that the autoscaler made of it, ready and scraped.
        reached_seconds: from the change of the demand to the last ready pod.
        reconciles: looks of the HPA controller in the time of measuring.
        reconcile_seconds: mean of them, by the controller's own histogram.
        reconcile_below_seconds: upper bound of the histogram's bucket that holds the slowest.
        metric_seconds: mean time in which the controller had its metric computed.
        api_seconds: median of the same question asked by us, through the API server.
        api_worst_seconds: the slowest of them.
        api_bytes: size of the answer.
        query_seconds: median evaluation of the adapter's query, by Prometheus's own log.
        query_samples: samples that it read.
        query_characters: length of the query, URL-encoded as in a GET.
        listed_query_seconds: evaluation of the query in which the adapter names every pod.
        listed_query_samples: samples that it read.
        listed_query_characters: its length.
        rules_seconds: evaluation of all rules of the chart, once.
        dashboard_seconds: all queries of the overview dashboard over 15 minutes, in turn.
        series: in Prometheus.
        scrape_seconds: sum over the pods of one scrape of each.
        cpu: of each program while nothing changed.
        resident_bytes: of each program.
        etcd_bytes: size of the database file.
    """

    wanted: int
    replicas: int
    reached_seconds: float
    reconciles: int
    reconcile_seconds: float
    reconcile_below_seconds: float
    metric_seconds: float
    api_seconds: float
    api_worst_seconds: float
    api_bytes: int
    query_seconds: float
    query_samples: int
    query_characters: int
    listed_query_seconds: float
    listed_query_samples: int
    listed_query_characters: int
    rules_seconds: float
    dashboard_seconds: float
    series: int
    scrape_seconds: float
    cpu: Mapping[str, float]
    resident_bytes: Mapping[str, int]
    etcd_bytes: int


def values(most: int) -> dict[str, Any]:
    """Return the values of the release: the chart's defaults, what a fleet sets, no downloads."""
    return {
        "modelSync": {"enabled": False},
        "modelStore": {"existingClaim": "models", "accessModes": ["ReadWriteMany"]},
        "autoscaling": {
            "enabled": True,
            "scaler": "hpa",
            "signal": "inflight",
            "target": TARGET,
            "minReplicas": 1,
            "maxReplicas": most,
        },
        "metrics": {"scrape": {"kind": "podMonitor"}, "rules": {"enabled": True}},
    }


def nodes(count: int) -> str:
    """Return `count` GPU nodes as the API takes them, with label and taint of their kind."""
    room = {"cpu": "64", "memory": "512Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    room["nvidia.com/gpu"] = str(GPUS_PER_NODE)
    items = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"gpu-{number:04}",
                "labels": {
                    "kubernetes.io/hostname": f"gpu-{number:04}",
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                    "nvidia.com/gpu.present": "true",
                },
            },
            "spec": {
                "taints": [{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]
            },
            "status": {"capacity": room, "allocatable": room},
        }
        for number in range(count)
    ]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def store() -> str:
    """Return a volume and the claim bound to it; nobody mounts it, because no pod runs."""
    size, modes = "1Ti", ["ReadWriteMany"]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "models"},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": modes,
            "storageClassName": "",
            "nfs": {"server": "store.invalid", "path": "/models"},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": NAMESPACE},
        "spec": {
            "accessModes": modes,
            "storageClassName": "",
            "volumeName": "models",
            "resources": {"requests": {"storage": size}},
        },
    }
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [volume, claim]})


def real_page(folder: Path) -> str:
    """Return the metrics of a real Triton with one model, after requests of it.

    Raises:
        EmbeddedError: Triton does not start.
    """
    repository = folder / "models"
    repository.mkdir()
    lab.write_model(repository, MODEL, {"ttft_ms": 1, "inter_token_ms": 1, "slots": SLOTS})
    arguments = [f"--model-repository={repository}", *lab.METRICS]
    with running_server(arguments=arguments, workdir=folder) as server:
        asked = offered_load.infer("127.0.0.1", server.ports.http, MODEL, max_tokens=4)
        for _ in range(10):
            _post(server.url + asked.path, asked.body)
        time.sleep(1)
        with urllib.request.urlopen(server.metrics_url, timeout=10) as answer:
            return str(answer.read().decode())


def _post(url: str, body: bytes) -> None:
    urllib.request.urlopen(url, data=body, timeout=30).close()


def scrape_config(plane: ControlPlane, port: int, state: int) -> list[dict[str, Any]]:
    """Return how Prometheus finds the pods by the API and asks for their pages on loopback.

    Args:
        plane: whose pods.
        port: of the pages.
        state: port of kube-state-metrics.
    """
    return [
        {
            "job_name": "kube-state-metrics",
            "honor_labels": True,
            "static_configs": [{"targets": [f"127.0.0.1:{state}"]}],
        },
        {
            "job_name": "triton",
            "kubernetes_sd_configs": [
                {
                    "role": "pod",
                    "api_server": plane.url,
                    "authorization": {"credentials": plane.token},
                    "tls_config": {"insecure_skip_verify": True},
                    "namespaces": {"names": [NAMESPACE]},
                }
            ],
            "relabel_configs": [
                {
                    "source_labels": ["__meta_kubernetes_pod_container_port_name"],
                    "regex": "metrics",
                    "action": "keep",
                },
                {
                    "source_labels": ["__meta_kubernetes_pod_name"],
                    "target_label": "__metrics_path__",
                    "replacement": "/$1",
                },
                {"target_label": "__address__", "replacement": f"127.0.0.1:{port}"},
                {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
                {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
                {
                    "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_instance"],
                    "target_label": "release",
                },
            ],
        },
    ]


@contextlib.contextmanager
def prometheus(
    plane: ControlPlane, scrape: list[dict[str, Any]], rules: Mapping[str, Any]
) -> Iterator[Prometheus]:
    """Run Prometheus with the chart's rules and a log of its queries until the block ends.

    Raises:
        TimeoutError: it does not start; see prometheus.log.
    """
    (plane.folder / "rules.yml").write_text(yaml.safe_dump(dict(rules)))
    config = {
        "global": {
            "scrape_interval": "15s",
            "evaluation_interval": "15s",
            "query_log_file": str(plane.folder / "queries.log"),
        },
        "rule_files": ["rules.yml"],
        "scrape_configs": scrape,
    }
    file = plane.folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    listen = free_port()
    command = [str(plane.programs["prometheus"]), f"--config.file={file}"]
    command += [f"--storage.tsdb.path={plane.folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{listen}"]
    made = Prometheus(url=f"http://127.0.0.1:{listen}")
    with program(plane.folder, "prometheus", command) as process:
        plane.processes["prometheus"] = process.pid
        try:
            wait.until(made.ready, seconds=60, every=0.2)
            yield made
        finally:
            del plane.processes["prometheus"]


def listed(rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart's rules as they are usually written: the adapter names every pod.

    Raises:
        LookupError: the chart's query does not select by the namespace alone.
    """
    text = json.dumps(dict(rules))
    by_namespace = json.dumps('namespace="<<index .LabelValuesByName "namespace">>"')[1:-1]
    if by_namespace not in text:
        raise LookupError("the chart's rule does not select by the namespace alone")
    changed: dict[str, Any] = json.loads(text.replace(by_namespace, "<<.LabelMatchers>>"))
    return changed


@dataclass(frozen=True, kw_only=True)
class Rig:
    """All that runs."""

    plane: ControlPlane
    prometheus: Prometheus
    demand: metrics_pages.Demand
    watcher: Watcher
    release: Release
    page: str
    listing_port: int


@contextlib.contextmanager
def running(folder: Path, *, count: int, most: int, sync_seconds: int) -> Iterator[Rig]:
    """Start everything and install the release; remove everything when the block ends.

    Args:
        folder: for data and logs.
        count: GPU nodes.
        most: maxReplicas.
        sync_seconds: pause between two looks of the HPA controller.

    Raises:
        BinariesError, EmbeddedError, TimeoutError, CommandFailedError: a part does not start.
    """
    say("asks a real Triton for its metrics")
    page = real_page(folder)
    with contextlib.ExitStack() as stack:
        say("starts the control plane")
        plane = stack.enter_context(controlplane.running(folder, sync_seconds=sync_seconds))
        here = plane.place
        say(f"makes {count} nodes")
        helm.run(here, "kubectl", "create", "-f", "-", stdin=nodes(count))
        definitions = str(plane.programs["prometheus-operator-crds.yaml"])
        helm.run(here, "kubectl", "apply", "--server-side", "-f", definitions)
        install.ensure_namespace(here, NAMESPACE)
        helm.run(here, "kubectl", "apply", "-f", "-", stdin=store())
        wait.until(lambda: _ready_nodes(plane) == count, seconds=120)
        say("installs the chart")
        release = Release(place=here, namespace=NAMESPACE, name=NAME)
        release.apply(values(most), timeout=120)
        (deployment,) = helm.get(here, NAMESPACE, "deployment")["items"]
        watcher = stack.enter_context(
            Watcher(here, NAMESPACE, deployment["metadata"]["name"], release.selector())
        )
        demand = metrics_pages.Demand(slots=SLOTS, serving=watcher.ready_pods)
        port = stack.enter_context(metrics_pages.serving(page, demand))
        (rules,) = helm.get(here, NAMESPACE, "prometheusrule")["items"]
        state = stack.enter_context(controlplane.state_metrics(plane))
        scrape = scrape_config(plane, port, state)
        asked = stack.enter_context(prometheus(plane, scrape, rules["spec"]))
        own = helm.get(
            here, NAMESPACE, "configmap", f"{deployment['metadata']['name']}-adapter-rule"
        )
        rule = yaml.safe_load(own["data"]["rule.yaml"])
        own = stack.enter_context(controlplane.adapter(plane, asked.url, rule))
        controlplane.serve_metrics(plane, own)
        listing = stack.enter_context(
            controlplane.adapter(plane, asked.url, listed(rule), name="adapter-listing")
        )
        yield Rig(
            plane=plane,
            prometheus=asked,
            demand=demand,
            watcher=watcher,
            release=release,
            page=page,
            listing_port=listing,
        )


def _ready_nodes(plane: ControlPlane) -> int:
    found = json.loads(plane.get("/api/v1/nodes"))["items"]
    return sum(
        condition["status"] == "True"
        for node in found
        for condition in node["status"].get("conditions", [])
        if condition["type"] == "Ready"
    )


def reach(rig: Rig, wanted: int, *, most: int, sync: float, seconds: float) -> tuple[int, float]:
    """Let the demand want so many replicas; return how many came, and after how long.

    The autoscaler leaves what is within its tolerance of 10 %, so fewer may come; the last size is
    maxReplicas, and the demand a fifth above it.

    Args:
        rig: what runs.
        wanted: replicas.
        most: maxReplicas.
        sync: seconds between two looks; the number stands when two of them changed nothing.
        seconds: how long to wait for it.

    Raises:
        TimeoutError: the autoscaler did not follow; the text says how far it came.
    """
    start = time.time()
    rig.demand.in_flight = round(wanted * TARGET * (1.2 if wanted == most else 1.0))
    timeline = rig.watcher.timeline

    def there() -> int:
        desired, ready = timeline.value("desired"), timeline.value("ready")
        quiet = time.time() - max(change.at for change in timeline.changes)
        now = f"{ready} of {desired} pods are ready, {wanted} are wanted"
        assert abs(desired - wanted) <= 0.1 * wanted, now
        assert desired == ready, now
        assert quiet > 2 * sync, f"{now}, changed {quiet:.0f} s ago"
        return desired

    came = wait.until(there, seconds=seconds, every=0.25)
    took = max(change.at for change in timeline.changes) - start

    def scraped() -> None:
        known = rig.prometheus.query('count(up{job="triton"} == 1)')
        assert known, "nothing is scraped"
        assert known[0].last == came, f"{known[0].last:.0f} pods are scraped"

    wait.until(scraped, seconds=120)
    return came, took


def samples(text: str, name: str) -> dict[str, float]:
    """Return the values of one metric in the text format by their labels, as written."""
    return {
        match["labels"] or "": float(match["value"])
        for match in _SAMPLE.finditer(text)
        if match["name"] == name
    }


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """A Prometheus histogram: number and sum of observations, cumulative counts by bound."""

    count: float
    total: float
    buckets: Mapping[float, float]

    def since(self, before: Histogram) -> Histogram:
        """Return what was observed after an earlier look."""
        return Histogram(
            count=self.count - before.count,
            total=self.total - before.total,
            buckets={
                bound: value - before.buckets.get(bound, 0) for bound, value in self.buckets.items()
            },
        )

    @property
    def mean(self) -> float:
        """Mean of the observations; NaN when there are none."""
        return self.total / self.count if self.count else float("nan")

    @property
    def below(self) -> float:
        """The smallest bound that no observation exceeds."""
        return min((b for b, value in self.buckets.items() if value >= self.count), default=0.0)


def histogram(text: str, name: str) -> Histogram:
    """Return a histogram of the text format, summed over all labels but `le`."""
    buckets: dict[float, float] = {}
    for labels, value in samples(text, f"{name}_bucket").items():
        found = re.search(r'le="([^"]+)"', labels)
        if found:
            bound = float(found.group(1))
            buckets[bound] = buckets.get(bound, 0) + value
    return Histogram(
        count=sum(samples(text, f"{name}_count").values()),
        total=sum(samples(text, f"{name}_sum").values()),
        buckets=buckets,
    )


def metric_path() -> str:
    """Return what the HPA controller asks the API server."""
    selector = "app.kubernetes.io%2Fcomponent%3Dserver%2Capp.kubernetes.io%2Finstance%3D" + NAME
    base = f"/apis/{controlplane.METRICS_API}/v1beta2/namespaces/{NAMESPACE}"
    return f"{base}/pods/%2A/{METRIC}?labelSelector={selector}"


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query as Prometheus logged it: median evaluation, most samples, longest text in a GET."""

    seconds: float
    samples: int
    characters: int


def queries(log: Path, offset: int) -> tuple[Query, Query]:
    """Return what the adapters asked since `offset` of Prometheus's log: by namespace, by pod.

    Raises:
        LookupError: one of them asked nothing.
    """
    with log.open("rb") as lines:
        lines.seek(offset)
        entries = [json.loads(line) for line in lines]
    signal = [
        each
        for each in entries
        if "ruleGroup" not in each and each["params"]["query"].startswith("sum by (pod) (triton_hf")
    ]
    found = []
    for name, by_pod in (("adapter", False), ("adapter-listing", True)):
        mine = [each for each in signal if ("pod=~" in each["params"]["query"]) is by_pod]
        if not mine:
            raise LookupError(f"the adapter asked Prometheus nothing; see {name}.log")
        found.append(
            Query(
                seconds=statistics.median(
                    each["stats"]["timings"]["execTotalTime"] for each in mine
                ),
                samples=max(each["stats"]["samples"]["totalQueryableSamples"] for each in mine),
                characters=max(len(urllib.parse.quote(each["params"]["query"])) for each in mine),
            )
        )
    own, listing = found
    return own, listing


def measure(rig: Rig, wanted: int, replicas: int, reached: float, *, hold: float) -> Cost:
    """Return what a look costs while nothing changes for `hold` seconds.

    Raises:
        OSError, PrometheusError: a part does not answer.
        LookupError: the adapter asked Prometheus nothing.
    """
    plane = rig.plane

    def controllers() -> str:
        return plane.get("/metrics", port=plane.controllers_port).decode()

    log = plane.folder / "queries.log"
    offset = log.stat().st_size
    before, used, began = controllers(), plane.usage(), time.monotonic()
    time.sleep(hold)
    after, now, spent = controllers(), plane.usage(), time.monotonic() - began
    reconcile, computed = (
        histogram(after, f"{HPA_METRICS}_{name}_duration_seconds").since(
            histogram(before, f"{HPA_METRICS}_{name}_duration_seconds")
        )
        for name in ("reconciliation", "metric_computation")
    )
    times, size = [], 0
    for _ in range(20):
        start = time.perf_counter()
        body = plane.get(metric_path())
        times.append(time.perf_counter() - start)
        size = len(body)
        plane.get(metric_path(), port=rig.listing_port)
    if len(json.loads(body)["items"]) != replicas:
        raise LookupError(f"the adapter knows {len(json.loads(body)['items'])} of {replicas} pods")
    own, listing = queries(log, offset)
    groups = rig.prometheus.get("rules")["groups"]
    return Cost(
        wanted=wanted,
        replicas=replicas,
        reached_seconds=round(reached, 1),
        reconciles=int(reconcile.count),
        reconcile_seconds=reconcile.mean,
        reconcile_below_seconds=reconcile.below,
        metric_seconds=computed.mean,
        api_seconds=statistics.median(times),
        api_worst_seconds=max(times),
        api_bytes=size,
        query_seconds=own.seconds,
        query_samples=own.samples,
        query_characters=own.characters,
        listed_query_seconds=listing.seconds,
        listed_query_samples=listing.samples,
        listed_query_characters=listing.characters,
        rules_seconds=sum(group["evaluationTime"] for group in groups),
        dashboard_seconds=_dashboard(rig.prometheus),
        series=int(rig.prometheus.query('count({__name__=~".+"})')[0].last),
        scrape_seconds=rig.prometheus.query('sum(scrape_duration_seconds{job="triton"})')[0].last,
        cpu={
            name: round((now[name].cpu_seconds - used[name].cpu_seconds) / spent, 4) for name in now
        },
        resident_bytes={name: each.resident_bytes for name, each in now.items()},
        etcd_bytes=sum(
            file.stat().st_size for file in (plane.folder / "etcd" / "member" / "snap").glob("db")
        ),
    )


def _dashboard(asked: Prometheus) -> float:
    """Return how long the overview dashboard's queries take over the last 15 minutes."""
    board = panels.load(panels.FOLDER / "overview.json")
    chosen = panels.choose(board, asked, {}, interval="1m")
    end = time.time()
    start = time.perf_counter()
    for panel in board.panels:
        for query in panel.queries:
            asked.query_range(
                panels.fill(query.expression, chosen), start=end - 900, end=end, step=15
            )
    return time.perf_counter() - start


def rollout(rig: Rig, replicas: int, *, missing: str) -> float:
    """Return how long a rollout of all pods takes when `missing` may be away at a time.

    Raises:
        CommandFailedError: it does not end.
    """
    start = time.monotonic()
    change = values(replicas) | {
        "strategy": {"maxUnavailable": missing},
        "podAnnotations": {"example.com/rollout": str(start)},
    }
    rig.release.apply(change, timeout=1200)
    return time.monotonic() - start


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Play all sizes; return what is written as simulation.json; times in seconds.

    Raises:
        As `running`, `reach` and `measure`.
    """
    most = max(options.replicas)
    with running(folder, count=options.nodes, most=most, sync_seconds=options.sync) as rig:
        costs = []
        for wanted in sorted(options.replicas):
            say(f"{wanted} replicas: grows")
            came, took = reach(rig, wanted, most=most, sync=options.sync, seconds=options.patience)
            say(f"{came} came within {took:.0f} s; measures for {options.hold:.0f} s")
            costs.append(measure(rig, wanted, came, took, hold=options.hold))
            say(f"{came} replicas: a look takes {1000 * costs[-1].reconcile_seconds:.0f} ms")
        unplaced = overfull(rig, most) if most == options.nodes * GPUS_PER_NODE else None
        said = rig.plane.get("/version")
        return {
            "kubernetes": json.loads(said)["gitVersion"],
            "cores": os.cpu_count(),
            "nodes": options.nodes,
            "gpus_per_node": GPUS_PER_NODE,
            "sync_seconds": options.sync,
            "hold_seconds": options.hold,
            "target": TARGET,
            "series_of_a_pod": len(_SAMPLE.findall(rig.page)),
            "steps": [list(each) for each in _growth(rig)],
            "unplaced_message": unplaced,
            "rollout_seconds": {
                missing: round(rollout(rig, most, missing=missing), 1)
                for missing in options.rollouts
            },
            "costs": [dataclasses.asdict(cost) for cost in costs],
        }


def _growth(rig: Rig) -> list[tuple[float, int, int]]:
    """Return (seconds since the first, wanted, ready) at each change."""
    changes = [c for c in rig.watcher.timeline.changes if c.what in ("wanted", "ready")]
    now = {"wanted": 0, "ready": 0}
    found = []
    for change in changes:
        now[change.what] = change.value
        found.append((round(change.at - changes[0].at, 2), now["wanted"], now["ready"]))
    return found


def overfull(rig: Rig, most: int) -> str:
    """Ask for one replica more than the GPUs hold; return what Kubernetes says of it.

    The release is told of a higher maxReplicas, and afterwards of the old one.

    Raises:
        TimeoutError: no pod was left without a node.
    """
    rig.release.apply(values(most + 1), wait=False)
    rig.demand.in_flight = (most + 1) * TARGET * 2

    def waits() -> str:
        events = helm.get(rig.plane.place, NAMESPACE, "events")["items"]
        said = [each["message"] for each in events if each["reason"] == "FailedScheduling"]
        assert said, "every pod has a node"
        return str(said[-1])

    said = wait.until(waits, seconds=120)
    rig.demand.in_flight = most * TARGET
    rig.release.apply(values(most), wait=False)
    return said


def main() -> int:
    """Run, write, print; return the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(
        prog="benchmarks.scaling.simulation", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--nodes", type=int, default=200, help=f"of {GPUS_PER_NODE} GPUs each")
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 50, 100, 200, 400])
    parser.add_argument("--sync", type=int, default=15, help="seconds between two looks of the HPA")
    parser.add_argument(
        "--hold", type=float, default=90.0, help="seconds of measuring at each size"
    )
    parser.add_argument("--patience", type=float, default=600.0, help="seconds to reach a size")
    parser.add_argument(
        "--rollouts", nargs="*", default=["5%"], help="maxUnavailable of rollouts at the last size"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if max(options.replicas) > options.nodes * GPUS_PER_NODE:
        parser.error(
            f"{max(options.replicas)} replicas need a GPU each, and {options.nodes} nodes have "
            f"{options.nodes * GPUS_PER_NODE}; give more --nodes"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="simulation-") as folder:
            found = run(Path(folder), options)
    except FAULTS as error:
        print(f"simulation: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2) + "\n"
    (options.out / "simulation.json").write_text(text, encoding="utf-8")
    (options.out / "simulation.md").write_text(simulation_report.page(found), encoding="utf-8")
    simulation_report.draw(options.out / "simulation.png", found)
    print(simulation_report.table(found))
    print(options.out / "simulation.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
