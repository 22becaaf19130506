"""The simulation as a page: what was measured, what follows on paper, a plot.

`python3 -m benchmarks.scaling.simulation_report DIR/simulation.json` puts the page of a
run that `benchmarks.scaling.simulation` wrote beside this file.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml

matplotlib.use("Agg")
from matplotlib import pyplot

from tools.helm import CHART

PAGE = Path(__file__).with_name("simulation.md")
LINE_LIMIT = 8192  # longest request line that nginx takes by default (large_client_header_buffers)
WEIGHTS_BYTES = 16.06e9  # Meta-Llama-3-8B-Instruct in bf16
STORES = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}


def table(found: Mapping[str, Any]) -> str:
    """Return what a look of the autoscaler costs at each size, as Markdown."""
    head = (
        *(
            "wanted",
            "replicas",
            "ready after",
            "a look, mean",
            "every look below",
            "metric API, median",
        ),
        *("worst", "answer", "query", "samples", "its length"),
    )
    rows = [
        (
            str(cost["wanted"]),
            str(cost["replicas"]),
            f"{cost['reached_seconds']:.0f} s",
            _ms(cost["reconcile_seconds"]),
            _ms(cost["reconcile_below_seconds"]),
            _ms(cost["api_seconds"]),
            _ms(cost["api_worst_seconds"]),
            f"{cost['api_bytes'] / 1e3:.0f} kB",
            _ms(cost["query_seconds"]),
            f"{cost['query_samples']:,}",
            f"{cost['query_characters']:,}",
        )
        for cost in found["costs"]
    ]
    return _markdown(head, rows)


def watching(found: Mapping[str, Any]) -> str:
    """Return what Prometheus does for the fleet at each size, as Markdown."""
    head = ("replicas", "series", "all rules, once", "overview dashboard, 15 min", "Prometheus")
    rows = [
        (
            str(cost["replicas"]),
            f"{cost['series']:,}",
            _ms(cost["rules_seconds"]),
            _ms(cost["dashboard_seconds"]),
            f"{100 * cost['cpu']['prometheus']:.0f} % of a core, "
            f"{cost['resident_bytes']['prometheus'] >> 20} MiB",
        )
        for cost in found["costs"]
    ]
    return _markdown(head, rows)


def usage(found: Mapping[str, Any]) -> str:
    """Return CPU and memory of each program at the last size, as Markdown."""
    cost = found["costs"][-1]
    rows = [
        (name, f"{100 * cores:.1f} %", f"{cost['resident_bytes'][name] >> 20} MiB")
        for name, cores in cost["cpu"].items()
    ]
    return _markdown(("program", "of a core", "resident"), rows)


def scale_in_seconds(behavior: Mapping[str, Any], start: int, end: int = 1) -> float:
    """Return how long the policies of `behavior.scaleDown` take from `start` pods to `end`.

    The largest change that a policy allows in its period counts (selectPolicy Max), rounded as the
    HPA controller does; the stabilization window comes first.
    """
    policies = behavior["policies"]
    period = max(policy["periodSeconds"] for policy in policies)
    seconds, now = float(behavior["stabilizationWindowSeconds"]), start
    while now > end:
        allowed = [
            now - policy["value"]
            if policy["type"] == "Pods"
            else int(now * (1 - policy["value"] / 100))
            for policy in policies
        ]
        now = max(end, min(allowed))
        seconds += period if now > end else 0
    return seconds


def missing_pods(value: int | str, replicas: int) -> int:
    """Return how many pods `maxUnavailable` lets be away; at least 1, as without a surge."""
    if isinstance(value, str) and value.endswith("%"):
        return max(1, replicas * int(value[:-1]) // 100)
    return max(1, int(value))


def rollout_seconds(chart: Mapping[str, Any], replicas: int, load_seconds: float) -> float:
    """Return how long a rollout takes when each pod drains, loads and then stays ready for a while.

    Args:
        chart: values of the chart.
        replicas: pods.
        load_seconds: from the container's start to ready.
    """
    away = missing_pods(chart["strategy"]["maxUnavailable"], replicas)
    each = chart["shutdown"]["preStopSeconds"] + load_seconds + chart["minReadySeconds"]
    return float(math.ceil(replicas / away) * each)


def paper(found: Mapping[str, Any], chart: Mapping[str, Any] | None = None) -> list[str]:
    """Return what follows from the figures and the chart's defaults, a sentence each."""
    chart = chart or yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    last = found["costs"][-1]
    most = last["replicas"]
    down = chart["autoscaling"]["behavior"]["scaleDown"]
    budget = chart["probes"]["startup"]["budgetSeconds"]
    loads = "; ".join(
        f"at {name} {most} pods that start together load for "
        f"{_long(most * WEIGHTS_BYTES / rate)}, and {int(budget * rate / WEIGHTS_BYTES)} pods fit "
        f"the startup budget of {budget} s"
        for name, rate in STORES.items()
    )
    rolling = ", ".join(
        f"{_long(rollout_seconds(chart, most, seconds))} when a pod loads for {seconds} s"
        for seconds in (30, 180)
    )
    return [
        f"**The store.** Each pod reads the weights once ({WEIGHTS_BYTES / 1e9:.0f} GB for Llama 3 "
        f"8B in bf16): {loads}. A store on each node, or one that reads from many servers, is what "
        "a fleet needs first.",
        f"**Scale-in.** From {most} pods to 1 the default policies take "
        f"{_long(scale_in_seconds(down, most))}, from 4 to 1 {_long(scale_in_seconds(down, 4))}.",
        f"**A rollout** of {most} pods with the default `maxUnavailable` "
        f"({chart['strategy']['maxUnavailable']}, so "
        f"{missing_pods(chart['strategy']['maxUnavailable'], most)} at a time) takes {rolling}.",
        "**The tolerance** of the HPA controller, 10 % by default, is why fewer replicas came than "
        f"the demand wanted: at {most} it is {most // 10} pods' worth of load.",
    ]


def page(found: Mapping[str, Any], *, picture: str = "simulation.png") -> str:
    """Return the whole page as Markdown, with the plot at the path `picture`."""
    last = found["costs"][-1]
    most = last["replicas"]
    share = last["reconcile_seconds"] / found["sync_seconds"]
    parts = [
        "# A fleet, simulated: the last results",
        "Written by `make simulation`. Real: etcd, API server, controllers and scheduler "
        f"({found['kubernetes']}), Prometheus, prometheus-adapter, kube-state-metrics, the chart "
        "with its HPA and rules, and the page of metrics: that of a Triton, with the gauges "
        "that a fair balancer would make of the demand. Simulated by kwok: "
        f"{found['nodes']} nodes with {found['gpus_per_node']} GPUs each and their pods, which are "
        f"ready at once. All of it shared {found['cores']} cores. The demand is "
        f"{found['target']} requests in flight for each replica wanted; scrapes every 15 s, sync "
        f"{found['sync_seconds']} s; each size was held for {found['hold_seconds']:.0f} s.",
        f"![What a look costs, and how the fleet grew]({picture})",
        "## What a look of the autoscaler costs",
        "A look: the HPA controller's `reconciliation_duration_seconds`; mean, and the bound of "
        "the histogram under which all of them were. Metric API: the same question asked 20 times "
        "through the API server. Query: what the adapter asked Prometheus, by Prometheus's log; "
        "length in characters as in a GET.",
        table(found),
        f"At {most} replicas a look takes {100 * share:.1f} % of the sync.",
        "## What watching costs",
        f"{found['series_of_a_pod']} series of a pod and the states of Kubernetes' objects.",
        watching(found),
        f"At {most} replicas, while nothing changes:",
        usage(found),
    ]
    parts += ["## Why the chart's rule does not name the pods", _listed(found)]
    parts += ["## What breaks first", "\n".join(f"- {line}" for line in breaks(found))]
    return "\n\n".join(parts) + "\n"


def _listed(found: Mapping[str, Any]) -> str:
    first, last = found["costs"][0], found["costs"][-1]
    each = (last["listed_query_characters"] - first["listed_query_characters"]) / max(
        1, last["replicas"] - first["replicas"]
    )
    fits = int(first["replicas"] + (LINE_LIMIT - first["listed_query_characters"]) / each)
    rows = [
        (
            str(cost["replicas"]),
            *(f"{cost[name]:,}" for name in ("query_characters", "listed_query_characters")),
            *(_ms(cost[name]) for name in ("query_seconds", "listed_query_seconds")),
        )
        for cost in found["costs"]
    ]
    head = ("replicas", "length: by namespace", "by pod", "evaluation: by namespace", "by pod")
    return (
        "With `<<.LabelMatchers>>`, as such rules are usually written, the adapter names every pod "
        "in the query. A second adapter with that rule was asked beside the first:"
        f"\n\n{_markdown(head, rows)}\n\n"
        f"The list grows by {each:.0f} characters a pod. From {fits + 1} pods on the request line "
        f"is longer than the {LINE_LIMIT:,} characters that nginx takes by default, and wherever "
        "such a proxy stands before Prometheus the autoscaler gets 414 instead of a metric. It is "
        "the first thing that would break, and it does not: the chart's rule names the namespace."
    )


def breaks(found: Mapping[str, Any]) -> list[str]:
    """Return what breaks first, and what was measured or reckoned of it."""
    last = found["costs"][-1]
    most = last["replicas"]
    each = last["reconcile_seconds"] / most
    store, *others = paper(found)
    lines = [
        "**Nothing of the control plane.** A look takes "
        f"{1000 * each:.1f} ms a pod here; if that stays so, it lasts as long as the sync "
        f"with some {_round(found['sync_seconds'] / each)} pods. What breaks is what they need:",
        store,
    ]
    if found.get("unplaced_message"):
        lines.append(
            f"**GPUs.** Replica {most + 1} finds no node, and the scheduler says: "
            f"`{found['unplaced_message']}`. The alert `TritonAtMaxReplicas` comes "
            "before it when `maxReplicas` is what the nodes hold."
        )
    lines += others
    for missing, seconds in found.get("rollout_seconds", {}).items():
        lines.append(
            f"**Measured: a rollout** of {most} pods with `maxUnavailable: {missing}` took "
            f"{_long(seconds)}, mostly `minReadySeconds`; these pods load in no time."
        )
    return lines


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Write a PNG: cost over size, and replicas over time."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    sizes = [cost["replicas"] for cost in found["costs"]]
    curves = {
        "a look of the HPA controller, mean": "reconcile_seconds",
        "metric API, median": "api_seconds",
        "the adapter's query, median": "query_seconds",
        "all rules of the chart": "rules_seconds",
    }
    for label, name in curves.items():
        left.plot(sizes, [1000 * cost[name] for cost in found["costs"]], marker="o", label=label)
    left.set_xlabel("replicas")
    left.set_ylabel("ms")
    left.set_title(f"What a look costs (the sync is {1000 * found['sync_seconds']:,} ms)")
    times = [each[0] for each in found["steps"]]
    right.step(times, [each[1] for each in found["steps"]], where="post", label="wanted")
    right.step(times, [each[2] for each in found["steps"]], where="post", label="ready")
    right.set_xlabel("seconds")
    right.set_ylabel("replicas")
    right.set_title("How the fleet grew")
    for axes in (left, right):
        axes.grid(color="0.92")
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _round(number: float) -> str:
    """Return two digits of a large number."""
    return f"{round(number, -int(math.log10(number)) + 1):,.0f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 0.01 else f"{1000 * seconds:.0f} ms"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def main() -> int:
    """Write simulation.md and its plot; return the exit code."""
    if len(sys.argv) != 2:
        print(
            "usage: python3 -m benchmarks.scaling.simulation_report DIR/simulation.json",
            file=sys.stderr,
        )
        return 2
    try:
        found = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    except (OSError, ValueError) as error:
        print(f"simulation_report: {sys.argv[1]} is not a result: {error}", file=sys.stderr)
        return 2
    picture = PAGE.parent / "results" / "simulation.png"
    draw(picture, found)
    PAGE.write_text(page(found, picture=f"results/{picture.name}"), encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
